"""``specprof prompts``: build prompts from public data sets, look at the packaged ones, check one's own."""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from specprof import __version__
from specprof.commands import narration, options
from specprof.commands.completing import one_of
from specprof.commands.help import CHOICE, RESULTS
from specprof.commands.narration import LOG
from specprof.commands.options import option
from specprof.commands.sinks import printable
from specprof.data import sources
from specprof.data.prompts import DOMAINS, ChatTemplate, PromptDataset, builtin
from specprof.data.sources import PER_DOMAIN, TINY_PER_DOMAIN
from specprof.errors import SpecprofError, UnavailableError, UsageError
from specprof.experiments.store import check_outputs
from specprof.models import hub, loader

SCHEMA = "specprof.prompts/1"
NEW_TOKENS = 96
"""What ``specprof run`` adds to a prompt unless told otherwise."""

_PROBE = "gpt2"
_EXCERPT = 60
_WARNINGS = 10
_NO_LIMIT = 10**9  # tokenizers that know no context name a number far above this


def _prompt_id(context: typer.Context, incomplete: str) -> Iterator[str]:
    return (prompt.prompt_id for prompt in builtin() if prompt.prompt_id.startswith(incomplete))


def prompts(
    tokenizer: Annotated[
        str,
        option(CHOICE, "--tokenizer", metavar="ID", help="Whose tokens are counted: hub id, directory or tiny_dev."),
    ] = "tiny_dev",
    tiny: Annotated[
        bool,
        option(
            CHOICE, "--tiny", help=f"Only the tiny set: {TINY_PER_DOMAIN} prompts of each domain, not {PER_DOMAIN}."
        ),
    ] = False,
    seed: Annotated[
        int | None,
        option(
            CHOICE, "--seed", metavar="N", help="Which of the first 1000 rows of each data set are taken. [default: 0]"
        ),
    ] = None,
    list_packaged: Annotated[bool, option(CHOICE, "--list", help="List the packaged prompts.")] = False,
    show: Annotated[
        str | None, option(CHOICE, "--show", metavar="ID", offers=_prompt_id, help="Print a packaged prompt's text.")
    ] = None,
    check: Annotated[
        str | None, option(CHOICE, "--check", metavar="FILE", help="Check a prompt file of your own; - reads stdin.")
    ] = None,
    max_tokens: Annotated[
        int | None,
        option(
            CHOICE,
            "--max-tokens",
            metavar="N",
            help="--check: warn of prompts longer than this. "
            f"[default: the tokenizer's context less the {NEW_TOKENS} tokens that run adds]",
        ),
    ] = None,
    chat_template: Annotated[
        str,
        option(
            CHOICE,
            "--chat-template",
            metavar="WHEN",
            offers=one_of(options.CHAT_TEMPLATES),
            help="auto or off: count tokens with the chat template as run does.",
        ),
    ] = "auto",
    offline: Annotated[
        bool, option(CHOICE, "--offline", help="Ask no network: packaged prompts, and a tokenizer on this machine.")
    ] = False,
    as_json: options.Json = False,
    output: Annotated[
        Path | None,
        option(
            RESULTS,
            "-o",
            "--output",
            metavar="FILE.json",
            help="Write the prompts to FILE.json, and the tiny set beside it, to FILE_tiny.json.",
        ),
    ] = None,
    quiet: options.Quiet = False,
    log_json: options.LogJson = False,
    debug: options.Debug = False,
) -> None:
    """Build prompts from public data sets, look at them, check a file.

    Builds 150, 50 of each domain, and prints how long they are. The data sets: openai/openai_humaneval (code),
    tatsu-lab/alpaca (conversation) and cnn_dailymail 3.0.0 (summarization, articles cut to 512 tokens). Where one
    can't be had, that domain takes the packaged prompts, which are also what --list and --show are about and what run
    decodes. Without --output nothing is written; with it the tiny set, the first 5 of each domain, is a file of its
    own besides.

    Examples:
        # 150 prompts in a file, with token counts
        specprof prompts --tokenizer gpt2 --output prompts.json

        # the packaged ones: a list, and one of them in full
        specprof prompts --list
        specprof prompts --show code_003

        # is a file of your own sound, and does every prompt fit the model?
        specprof prompts --check mine.jsonl --tokenizer ./my-model
    """
    narration.set_up(detailed=False, quiet=quiet, as_json=log_json)
    _check_flags(
        looking={"--list": list_packaged, "--show": show is not None, "--check": check is not None},
        building={"--output": output is not None, "--seed": seed is not None, "--tiny": tiny},
    )
    if max_tokens is not None and check is None:
        raise UsageError("--max-tokens needs --check", "it is the length above which --check warns")
    if max_tokens is not None and max_tokens < 1:
        raise UsageError(f"--max-tokens {max_tokens} is less than 1", "give 1 or more")
    if chat_template not in ("auto", "off"):
        raise UsageError(f"--chat-template {chat_template!r} is not a choice", "choices: auto, off")
    template: ChatTemplate = "off" if chat_template == "off" else "auto"
    ruler = partial(_Ruler.of, tokenizer, template, offline)
    per_domain = TINY_PER_DOMAIN if tiny else PER_DOMAIN
    if check is not None:
        facts, text = _check(check, max_tokens, ruler)
    elif show is not None:
        facts, text = _show(show, ruler)
    elif list_packaged:
        facts, text = _list(per_domain, ruler)
    else:
        facts, text = _build(per_domain, seed or 0, output, offline, ruler)
    header = {"schema": SCHEMA, "specprof_version": __version__, "tokenizer": tokenizer, "chat_template": template}
    print(json.dumps(header | facts, indent=2) if as_json else printable(text))


def _check_flags(looking: dict[str, bool], building: dict[str, bool]) -> None:
    """Refuse two ways of looking at prompts at once, and flags that only make sense for building some."""
    asked = [flag for flag, given in looking.items() if given]
    if len(asked) > 1:
        raise UsageError(f"{asked[0]} and {asked[1]} exclude each other", "give one of them")
    for flag, given in building.items():
        if asked and given and (asked[0], flag) != ("--list", "--tiny"):
            raise UsageError(f"{flag} does not apply to {asked[0]}", f"leave out {asked[0]} to build prompts")


# --- what is done


def _build(
    per_domain: int, seed: int, output: Path | None, offline: bool, ruler: Callable[[], _Ruler]
) -> tuple[dict[str, Any], str]:
    check_outputs((output,))
    measure = ruler()
    why_not = _why_no_data_sets(offline)
    if why_not is None:
        LOG.info("reading %s", ", ".join(source.dataset for source in sources.SOURCES))
    with loader.quiet_transformers():
        dataset, origins = sources.build(measure.tokenizer, per_domain=per_domain, seed=seed, unavailable=why_not)
    dataset = measure(dataset)
    for origin in origins:
        n = len(dataset.get_by_domain(origin.domain))
        if origin.reason is None:
            LOG.info("%s: %d prompts from %s", origin.domain, n, origin.source)
        else:
            LOG.info("%s: %d %s prompts, because %s", origin.domain, n, origin.source, origin.reason)
    tiny_output = None if output is None or per_domain == TINY_PER_DOMAIN else _beside(output)
    for path, written in ((output, dataset), (tiny_output, _first(dataset, TINY_PER_DOMAIN))):
        if path is not None:
            written.save(path)
            LOG.info("saved %d prompts: %s", len(written), path)
    facts = {
        "domains": [
            dataclasses.asdict(stats) | {"source": origin.source, "reason": origin.reason}
            for stats, origin in zip(dataset.stats(), origins, strict=True)
        ],
        "seed": seed,
        "output": None if output is None else str(output),
        "tiny_output": None if tiny_output is None else str(tiny_output),
    }
    return facts, dataset.table({origin.domain: origin.source for origin in origins})


def _beside(output: Path) -> Path | None:
    """Where the tiny set goes; None if the output is no place that something can lie beside (a pipe, a device)."""
    return output.with_stem(f"{output.stem}_tiny") if output.is_file() or not output.exists() else None


def _first(dataset: PromptDataset, per_domain: int) -> PromptDataset:
    chosen = [prompt for domain in DOMAINS for prompt in dataset.get_by_domain(domain)[:per_domain]]
    return PromptDataset(tuple(chosen))


def _list(per_domain: int, ruler: Callable[[], _Ruler]) -> tuple[dict[str, Any], str]:
    dataset = ruler()(_first(builtin(), per_domain))
    lines = [f"{'id':<20}{'domain':<16}{'tokens':>6}  text"]
    for prompt in dataset:
        words = " ".join(prompt.raw_text.split())
        beginning = words if len(words) <= _EXCERPT else words[:_EXCERPT].rsplit(" ", 1)[0] + " ..."
        lines.append(f"{prompt.prompt_id:<20}{prompt.domain:<16}{prompt.token_count:>6}  {beginning}")
    return {"prompts": [dataclasses.asdict(prompt) for prompt in dataset]}, "\n".join(lines)


def _show(prompt_id: str, ruler: Callable[[], _Ruler]) -> tuple[dict[str, Any], str]:
    packaged = {prompt.prompt_id: prompt for prompt in builtin()}
    if prompt_id not in packaged:
        close = difflib.get_close_matches(prompt_id.lower(), packaged, n=3)
        raise UsageError(
            f"there is no packaged prompt {prompt_id!r}",
            f"close to it: {', '.join(close)}" if close else "`specprof prompts --list` has the ids",
        )
    [prompt] = ruler()(PromptDataset((packaged[prompt_id],)))
    LOG.info("%s: %d tokens", prompt.prompt_id, prompt.token_count)
    return {"prompts": [dataclasses.asdict(prompt)]}, prompt.raw_text


def _check(path: str, max_tokens: int | None, ruler: Callable[[], _Ruler]) -> tuple[dict[str, Any], str]:
    own = PromptDataset.read(sys.stdin.buffer) if path == "-" else PromptDataset.load(path)
    measure = ruler()
    dataset = measure(own)
    limit = measure.room if max_tokens is None else max_tokens
    too_long = [prompt for prompt in dataset if limit is not None and (prompt.token_count or 0) > limit]
    for prompt in too_long[:_WARNINGS]:
        LOG.warning("%s is longer than %d tokens: it has %d", prompt.prompt_id, limit, prompt.token_count)
    if len(too_long) > _WARNINGS:
        LOG.warning("and %d more are longer", len(too_long) - _WARNINGS)
    longer = "no length known to be too much" if limit is None else f"{len(too_long)} longer than {limit} tokens"
    LOG.info("%s: %d prompts, %s", "standard input" if path == "-" else path, len(dataset), longer)
    facts = {
        "domains": [dataclasses.asdict(stats) for stats in dataset.stats()],
        "file": path,
        "max_tokens": limit,
        "too_long": [prompt.prompt_id for prompt in too_long],
    }
    return facts, dataset.table()


# --- what is needed for it


@dataclass(frozen=True, slots=True)
class _Ruler:
    """Measures prompts in a model's tokens."""

    tokenizer: Any
    template: ChatTemplate

    @classmethod
    def of(cls, name: str, template: ChatTemplate, offline: bool) -> _Ruler:
        LOG.info("loading tokenizer: %s", name)
        try:
            tokenizer = loader.load_tokenizer("tiny_dev/target" if name == "tiny_dev" else name, offline=offline)
        except UnavailableError as error:
            hint = error.hint.replace("--pair tiny_dev", "--tokenizer tiny_dev")
            raise UnavailableError(error.message, hint) from error
        return cls(tokenizer, template)

    def __call__(self, dataset: PromptDataset) -> PromptDataset:
        with loader.quiet_transformers():
            return dataset.with_token_counts(self.tokenizer, chat_template=self.template)

    @property
    def room(self) -> int | None:
        """Tokens a prompt may have if ``run`` is to add its own; None where the tokenizer names no context."""
        context = self.tokenizer.model_max_length
        return context - NEW_TOKENS if NEW_TOKENS < context < _NO_LIMIT else None


def _why_no_data_sets(offline: bool) -> str | None:
    """Why no data set can be had; None if they can be asked for.

    The hub is asked once for all of them: without a network each would go on trying for half a minute.
    """
    if offline:
        return "of --offline"
    if hub.offline_by_environment():
        return "offline mode is on"
    missing = sources.missing_library()
    if missing is not None:
        return missing
    try:
        hub.ask(_PROBE, None, "is asked for")
    except SpecprofError as error:
        response = getattr(error.__cause__, "response", None)
        if response is not None and response.status_code in (401, 403, 404):
            return None  # a hub without this model is a hub: it may have the data sets
        return error.message.removeprefix(f"{_PROBE} is asked for, and ")
    return None
