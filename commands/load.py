"""``specprof load``: can this model, or this pair, run here?"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specprof import __version__
from specprof.commands import narration, options
from specprof.commands.narration import LOG
from specprof.commands.pairs import chosen_pair
from specprof.commands.sinks import printable
from specprof.errors import UsageError
from specprof.experiments.config import RANDOM_WEIGHTS
from specprof.models import hub
from specprof.models.loader import canonical_dtype
from specprof.models.registry import REGISTRY, ModelPair, user_pairs

if TYPE_CHECKING:
    import torch

    from specprof.models.wrapper import ModelWrapper

SCHEMA = "specprof.load/1"
PAIRS_SCHEMA = "specprof.pairs/1"
SMOKE_PROMPT = "The quick brown fox"


def load(
    model: Annotated[str | None, typer.Option("--model", help="One model: hub id or directory.")] = None,
    pair: options.Pair = None,
    draft: Annotated[str | None, typer.Option("--draft", help="Draft model: hub id or directory.")] = None,
    target: Annotated[str | None, typer.Option("--target", help="Target model: hub id or directory.")] = None,
    list_pairs: Annotated[bool, typer.Option("--list", help="List the pairs known by name.")] = False,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="float16, bfloat16, float32 or int4. [default: float16, or the pair's]"),
    ] = None,
    n_tokens: Annotated[int, typer.Option("--n-tokens", help="Length of the smoke generation; 0 for none.")] = 10,
    device: options.Device = None,
    revision: options.Revision = None,
    offline: options.Offline = False,
    trust_remote_code: options.TrustRemoteCode = False,
    random_weights: options.RandomWeights = False,
    as_json: options.Json = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Tell details: where the files lie.")] = False,
    quiet: options.Quiet = False,
    log_json: options.LogJson = False,
    debug: options.Debug = False,
) -> None:
    """Load a model or a pair, print its size and memory, and generate a few tokens.

    Fetches what is missing, so that a later run finds it. For a pair, also compares the vocabularies.

    \b
    specprof load --model gpt2 --dtype float16 --n-tokens 20
    specprof load --pair tiny_dev
    """
    narration.set_up(detailed=verbose, quiet=quiet, as_json=log_json)
    if list_pairs:
        _print_pairs(as_json=as_json)
        return
    if n_tokens < 0:
        raise UsageError(f"--n-tokens {n_tokens} is negative", "0 skips the smoke generation")
    of_pair = [name for name in (pair, draft, target) if name is not None]
    if model is not None and of_pair:
        raise UsageError("--model and a pair exclude each other", "give --model, or --pair, or --draft and --target")
    if model is None and not of_pair:
        raise UsageError("there is nothing to load", "give --model M, --pair P, or --draft D and --target T")
    how = _How(device, revision, offline, trust_remote_code, random_weights)
    if random_weights:
        LOG.info("note: %s", RANDOM_WEIGHTS)
    if model is not None:
        document = _load_model(model, canonical_dtype(dtype or "float16"), n_tokens, how)
    else:
        document = _load_pair(chosen_pair(pair, draft, target, dtype, needs_draft=True), n_tokens, how)
    caveats = [RANDOM_WEIGHTS] if random_weights else []
    header = {"schema": SCHEMA, "specprof_version": __version__, "caveats": caveats}
    print(json.dumps(header | document, indent=2) if as_json else _card(header | document))
    vocabulary = document.get("vocabulary")
    if vocabulary is not None and vocabulary["kind"] == "different":
        from specprof.experiments.arms import different_vocabularies

        raise different_vocabularies(chosen_pair(pair, draft, target, dtype, needs_draft=True), vocabulary["reason"])


@dataclasses.dataclass(frozen=True, slots=True)
class _How:
    device: str | None
    revision: str | None
    offline: bool
    trust_remote_code: bool
    random_weights: bool


def _print_pairs(*, as_json: bool) -> None:
    pairs = [*REGISTRY.values(), *user_pairs().values()]
    if as_json:
        header = {"schema": PAIRS_SCHEMA, "specprof_version": __version__}
        print(json.dumps(header | {"pairs": [dataclasses.asdict(pair) for pair in pairs]}, indent=2))
        return
    width = max(len(pair.name) for pair in pairs)
    for pair in pairs:
        print(printable(f"{pair.name:<{width}}  {pair.draft_model_id} ({pair.draft_dtype})"))
        print(printable(f"{'':<{width}}  -> {pair.target_model_id} ({pair.target_dtype})"))
        if pair.notes:
            print(printable(f"{'':<{width}}  {pair.notes}"))


def _load_model(model_id: str, dtype: str, n_tokens: int, how: _How) -> dict[str, Any]:
    if not how.random_weights:
        _find(model_id, how.revision, how)
    from specprof.models.loader import choose_device

    device = choose_device(how.device)
    return {
        "device": str(device),
        "models": {"model": _describe(_wrapped(model_id, dtype, device, how.revision, how), dtype, n_tokens)},
    }


def _load_pair(pair: ModelPair, n_tokens: int, how: _How) -> dict[str, Any]:
    roles = {
        "target": (pair.target_model_id, pair.target_dtype, how.revision),
        "draft": (pair.draft_model_id, pair.draft_dtype, None),
    }
    if not how.random_weights:
        for model_id, _, revision in roles.values():
            _find(model_id, revision, how)
    from specprof.experiments.arms import vocabulary_verdict
    from specprof.models.loader import available_memory, choose_device, memory_needed

    device = choose_device(how.device)
    vocabulary, needed = None, None
    if not how.random_weights:
        vocabulary = vocabulary_verdict(
            pair, revision=how.revision, offline=how.offline, trust_remote_code=how.trust_remote_code
        )
        needed = sum(
            memory_needed(hub.resolve(model_id, revision=revision, offline=how.offline).directory, dtype, device)
            for model_id, dtype, revision in roles.values()
        )
    available = available_memory(device)
    models = {}
    for role, (model_id, dtype, revision) in roles.items():
        tokens = n_tokens if role == "target" else 0
        models[role] = _describe(_wrapped(model_id, dtype, device, revision, how), dtype, tokens)
    return {
        "pair": pair.name,
        "device": str(device),
        "models": models,
        "vocabulary": None if vocabulary is None else dataclasses.asdict(vocabulary),
        "memory_needed_bytes": needed,
        "memory_available_bytes": available,
    }


def _find(model_id: str, revision: str | None, how: _How) -> None:
    LOG.info("finding %s", model_id)
    found = hub.resolve(model_id, revision=revision, offline=how.offline)
    LOG.debug("%s: %s, in %s", model_id, found.source, found.directory)


def _wrapped(model_id: str, dtype: str, device: torch.device, revision: str | None, how: _How) -> ModelWrapper:
    from specprof.models import loader
    from specprof.models.random_weights import random_model, random_tokenizer
    from specprof.models.wrapper import ModelWrapper

    LOG.info("loading %s (%s)", model_id, dtype)
    if how.random_weights:
        model, tokenizer = random_model(model_id, dtype, device), random_tokenizer()
    else:
        model, tokenizer = loader.load_model(
            model_id,
            dtype,
            device,
            revision=revision,
            offline=how.offline,
            trust_remote_code=how.trust_remote_code,
        )
    return ModelWrapper(model, tokenizer, device, name=model_id)


def _describe(wrapper: ModelWrapper, dtype: str, n_tokens: int) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "model": wrapper.name,
        "parameters": wrapper.param_count,
        "memory_bytes": round(wrapper.memory_footprint_mb * 2**20),
        "dtype": dtype,
        "compute_dtype": str(wrapper.dtype).removeprefix("torch."),
        "forward": wrapper.forward_name,
        "max_context": wrapper.max_context,
        "vocab_size": wrapper.vocab_size,
        "output": None,
    }
    wrapper.check_numbers()
    if n_tokens:
        from specprof.decoding.autoregressive import AutoregressiveDecoder

        LOG.info("generating %d tokens", n_tokens)
        facts["output"] = SMOKE_PROMPT + AutoregressiveDecoder(wrapper).generate_text(SMOKE_PROMPT, n_tokens)
    return facts


def _card(document: dict[str, Any]) -> str:
    """The document as lines for people."""
    lines = [f"caveat     : {caveat}" for caveat in document["caveats"]]
    for role, facts in document["models"].items():
        computes = "" if facts["compute_dtype"] == facts["dtype"] else f", computes in {facts['compute_dtype']}"
        lines += [
            f"{role:<10} : {facts['model']}",
            f"parameters : {facts['parameters'] / 1e6:.1f} M",
            f"memory     : {_size(facts['memory_bytes'])} ({facts['dtype']}{computes})",
            f"forward    : {facts['forward']}, context {facts['max_context']}, vocabulary {facts['vocab_size']}",
        ]
        if facts["output"] is not None:
            lines.append(f"output     : {json.dumps(facts['output'], ensure_ascii=False)}")
        lines.append("")
    if "pair" in document:
        vocabulary = document["vocabulary"]
        if vocabulary is not None:
            lines.append(f"vocabulary : {vocabulary['kind']}: {vocabulary['reason']}")
        needed, available = document["memory_needed_bytes"], document["memory_available_bytes"]
        lines.append(f"memory     : {_size(needed)} needed, {_size(available)} were available on {document['device']}")
    return printable("\n".join(lines).rstrip())


def _size(num_bytes: int | None) -> str:
    if num_bytes is None:
        return "-"
    return f"{num_bytes / 2**30:.2f} GB" if num_bytes >= 2**27 else f"{num_bytes / 2**20:.1f} MB"
