"""``specprof load``: can this model, or this pair, run here? What does an Ollama server have?"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specprof import __version__
from specprof.commands import narration, options
from specprof.commands.chosen import chosen_pair
from specprof.commands.completing import one_of
from specprof.commands.help import MESSAGES, MODELS, OLLAMA, PROMPTS
from specprof.commands.narration import LOG
from specprof.commands.ollama import DEFAULT_MAX_TOKENS, DEFAULT_PROMPT, ask_server
from specprof.commands.options import option
from specprof.commands.sinks import printable
from specprof.data.prompts import builtin
from specprof.errors import UsageError
from specprof.experiments.config import RunConfig
from specprof.models import hub
from specprof.models.devices import DTYPES, canonical_dtype
from specprof.models.ollama import DEFAULT_URL
from specprof.models.registry import REGISTRY, ModelPair, user_pairs

if TYPE_CHECKING:
    from specprof.models.wrapper import ModelWrapper

SCHEMA = "specprof.load/1"
PAIRS_SCHEMA = "specprof.pairs/1"
SMOKE_PROMPT = "The quick brown fox"
SAMPLE_TEXTS = 6


def load(
    name: Annotated[str | None, typer.Argument(metavar="MODEL", help="One model; the same as --model.")] = None,
    model: Annotated[
        str | None, option(MODELS, "--model", metavar="MODEL", help="One model: hub id or directory.")
    ] = None,
    pair: options.Pair = None,
    draft: options.Draft = None,
    target: options.Target = None,
    list_pairs: Annotated[bool, option(MODELS, "--list", help="List the pairs known by name.")] = False,
    dtype: Annotated[
        str | None,
        option(
            MODELS,
            "--dtype",
            metavar="TYPE",
            offers=one_of(DTYPES),
            help="float16, bfloat16, float32 or int4. [default: float16, or the pair's]",
        ),
    ] = None,
    revision: options.Revision = None,
    random_weights: options.RandomWeights = False,
    scale_layers: options.ScaleLayers = None,
    offline: options.Offline = False,
    trust_remote_code: options.TrustRemoteCode = False,
    n_tokens: Annotated[
        int | None,
        option(PROMPTS, "--n-tokens", metavar="N", help="Tokens of the smoke generation; 0 for none. [default: 10]"),
    ] = None,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    ollama: Annotated[
        bool,
        option(OLLAMA, "--ollama", help="Ask an Ollama server for its models, and for a test generation by MODEL."),
    ] = False,
    prompt: Annotated[
        str | None,
        option(
            OLLAMA,
            "--prompt",
            metavar="TEXT",
            help=f"--ollama: the text to go on from. [default: {DEFAULT_PROMPT}]",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        option(
            OLLAMA,
            "--max-tokens",
            metavar="N",
            help=f"--ollama: the most tokens to generate. [default: {DEFAULT_MAX_TOKENS}]",
        ),
    ] = None,
    host: Annotated[
        str | None,
        option(
            OLLAMA, "--host", metavar="URL", help=f"--ollama: its address. [default: OLLAMA_HOST, else {DEFAULT_URL}]"
        ),
    ] = None,
    as_json: options.Json = False,
    verbose: Annotated[bool, option(MESSAGES, "-v", "--verbose", help="Tell details: where the files lie.")] = False,
    quiet: options.Quiet = False,
    log_json: options.LogJson = False,
    debug: options.Debug = False,
) -> None:
    """Load a model or a pair: its size, its memory, a few tokens.

    Fetches what is missing, so that a later run finds it. For a pair, also compares the vocabularies.

    Examples:
        # do these two fit together, and into memory?
        specprof load --pair tiny_cross

        # one model, by hub id or directory
        specprof load gpt2 --dtype float16 --n-tokens 20

        # the pairs known by name
        specprof load --list

        # what an Ollama server has, before anything is downloaded
        specprof load --ollama llama3:8b --max-tokens 100
    """
    narration.set_up(detailed=verbose, quiet=quiet, as_json=log_json)
    if name is not None and model is not None:
        raise UsageError("MODEL and --model are the same", "give one of them")
    model = name if model is None else model
    if ollama:
        for_weights = {
            "--list": list_pairs,
            "--pair": pair is not None,
            "--draft": draft is not None,
            "--target": target is not None,
            "--dtype": dtype is not None,
            "--n-tokens": n_tokens is not None,
            "--device": device is not None,
            "--device-map": device_map is not None,
            "--revision": revision is not None,
            "--offline": offline,
            "--trust-remote-code": trust_remote_code,
            "--random-weights": random_weights,
            "--scale-layers": scale_layers is not None,
        }
        given = [flag for flag, is_given in for_weights.items() if is_given]
        if given:
            raise UsageError(
                f"--ollama asks an Ollama server; {', '.join(given)} does not apply",
                "it takes MODEL, --prompt, --max-tokens and --host",
            )
        ask_server(model, prompt, max_tokens, host, as_json=as_json)
        return
    for flag, value in (("--prompt", prompt), ("--max-tokens", max_tokens), ("--host", host)):
        if value is not None:
            raise UsageError(f"{flag} needs --ollama", "`specprof run` decodes prompts")
    if list_pairs:
        _print_pairs(as_json=as_json)
        return
    n_tokens = 10 if n_tokens is None else n_tokens
    if n_tokens < 0:
        raise UsageError(f"--n-tokens {n_tokens} is negative", "0 skips the smoke generation")
    of_pair = [name for name in (pair, draft, target) if name is not None]
    if model is not None and of_pair:
        raise UsageError("one model and a pair exclude each other", "give MODEL, or --pair, or --draft and --target")
    if model is None and not of_pair:
        raise UsageError("there is nothing to load", "give MODEL, --pair P, or --draft D and --target T")
    how = RunConfig(
        pair=ModelPair(model, model, model) if model is not None else chosen_pair(pair, draft, target, dtype),
        device=device,
        device_map=device_map,
        random_weights=random_weights,
        scale_layers=scale_layers,
        revision=revision,
        offline=offline,
        trust_remote_code=trust_remote_code,
    )
    if model is not None:
        document = _load_model(how, canonical_dtype(dtype or "float16"), n_tokens)
    else:
        document = _load_pair(how, n_tokens)
    for caveat in how.caveats:
        LOG.info("note: %s", caveat)
    document = {"schema": SCHEMA, "specprof_version": __version__, "caveats": list(how.caveats)} | document
    print(json.dumps(document, indent=2) if as_json else _card(document))


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


def _load_model(how: RunConfig, dtype: str, n_tokens: int) -> dict[str, Any]:
    pair = dataclasses.replace(how.pair, target_dtype=dtype)
    how = dataclasses.replace(how, pair=pair, drafter="ngram")  # which needs no second model
    _find(how, pair.target_model_id, how.revision)
    from specprof.experiments.arms import load_arms

    LOG.info("loading %s (%s)", pair.target_model_id, dtype)
    arms = load_arms(how)
    return {
        "device": str(arms.target.device),
        "models": {"model": _describe(arms.target, dtype, n_tokens)},
        "notes": list(arms.notes),
    }


def _load_pair(how: RunConfig, n_tokens: int) -> dict[str, Any]:
    pair = how.pair
    roles = {
        "target": (pair.target_model_id, pair.target_dtype, how.revision),
        "draft": (pair.draft_model_id, pair.draft_dtype, None),
    }
    for model_id, _, revision in roles.values():
        _find(how, model_id, revision)
    from specprof.experiments.arms import load_arms
    from specprof.experiments.run import target_mass
    from specprof.models.devices import choose_device, map_devices
    from specprof.models.footprint import available_memory, memory_footprint_bytes, memory_needed

    device, needed = choose_device(how.device), None
    if not how.random_weights:
        needed = sum(
            memory_needed(hub.resolve(model_id, revision=revision, offline=how.offline).directory, dtype, device)
            for model_id, dtype, revision in roles.values()
        )
    places = [device] if how.device_map is None else map_devices(device, pair.target_dtype)
    available = sum(map(available_memory, places))
    LOG.info("loading %s", pair.name)
    arms = load_arms(how)
    assert arms.draft is not None and arms.vocabulary is not None
    mass = None
    if arms.vocabulary.kind == "overlapping" and not how.random_weights:
        LOG.info("reading sample texts with the target")
        mass = target_mass(arms, list(builtin().take(SAMPLE_TEXTS)))
    return {
        "pair": pair.name,
        "device": ", ".join(map(str, places)),
        "models": {
            "target": _describe(arms.target, pair.target_dtype, n_tokens),
            "draft": _describe(arms.draft, pair.draft_dtype, 0),
        },
        "notes": list(arms.notes),
        "vocabulary": arms.vocabulary.to_dict() | {"target_mass": mass},
        "memory_bytes": memory_footprint_bytes(arms.target.model, arms.draft.model),
        "memory_needed_bytes": needed,
        "memory_available_bytes": available,
    }


def _find(how: RunConfig, model_id: str, revision: str | None) -> None:
    if how.random_weights:
        return
    LOG.info("finding %s", model_id)
    found = hub.resolve(model_id, revision=revision, offline=how.offline)
    LOG.debug("%s: %s, in %s", model_id, found.source, found.directory)


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
    lines += [f"note       : {note}" for note in document["notes"] if note not in document["caveats"]]
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
            if vocabulary["target_mass"] is not None:
                share = f"{vocabulary['target_mass']:.1%}"
                lines.append(f"             they carry {share} of the target's probability on packaged sample texts")
        needed, available = document["memory_needed_bytes"], document["memory_available_bytes"]
        by_files = "" if needed is None else f" ({_size(needed)} by the files)"
        lines.append(
            f"memory     : {_size(document['memory_bytes'])} together{by_files}, "
            f"{_size(available)} were available on {document['device']}"
        )
    return printable("\n".join(lines).rstrip())


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GB" if num_bytes >= 2**27 else f"{num_bytes / 2**20:.1f} MB"
