"""``specprof load --ollama``: what an Ollama server holds, and a test generation by its own clock."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from specprof import __version__
from specprof.commands.narration import LOG
from specprof.commands.sinks import printable
from specprof.data.prompts import PromptDataset
from specprof.errors import UsageError
from specprof.models import ollama

SCHEMA = "specprof.ollama/1"
DEFAULT_PROMPT = "Why is the sky blue?"
DEFAULT_MAX_TOKENS = 50
NOTE = (
    "not a benchmark: Ollama shows neither full token probabilities nor its KV cache, so no draft can be verified or "
    "rejected with it, and its quantised weights are not the ones measured"
)


def ask_server(
    model: str | None, prompt: str | None, max_tokens: int | None, host: str | None, *, as_json: bool
) -> None:
    """Print the server's state and models and, if a model is named, what it generates and how fast.

    Raises:
        UsageError: flags that can't be meant, found before anything is asked.
        UnavailableError, ResourceError: see ``specprof.models.ollama``.
    """
    if model is None and (prompt is not None or max_tokens is not None):
        flag = "--prompt" if prompt is not None else "--max-tokens"
        raise UsageError(f"{flag} needs a MODEL to generate", "for instance: specprof load --ollama llama3:8b")
    if model is not None and (not model.strip() or not model.isprintable()):
        raise UsageError(f"the model name {model!r} is blank or not printable", "`ollama list` has the names")
    if max_tokens is not None and max_tokens < 1:
        raise UsageError(f"--max-tokens {max_tokens} is less than 1", "give 1 or more")
    if prompt is not None:
        PromptDataset.from_texts([prompt])  # which refuses what is no text
    url = ollama.server_url(host)
    LOG.info("checking server at %s", url)
    status = ollama.status(url)
    generation = None
    if model is not None:
        limit = max_tokens or DEFAULT_MAX_TOKENS
        LOG.info("generating up to %d tokens with %s; the server may have to load it first", limit, model)
        generation = ollama.generate(url, model, prompt or DEFAULT_PROMPT, limit)
    document = {
        "schema": SCHEMA,
        "specprof_version": __version__,
        "note": NOTE,
        "host": status.url,
        "server_version": status.version,
        "models": [dataclasses.asdict(served) for served in status.models],
        "generation": None if generation is None else dataclasses.asdict(generation),
    }
    print(json.dumps(document, indent=2) if as_json else _card(document))


def _card(document: dict[str, Any]) -> str:
    """The document as lines for people."""
    version = f" (Ollama {_one_line(document['server_version'])})" if document["server_version"] else ""
    lines = [f"server is running at {document['host']}{version}", "", *_table(document["models"])]
    if document["generation"] is not None:
        lines += ["", *_generation(document["generation"])]
    return printable("\n".join([*lines, "", f"note       : {document['note']}"]))


def _table(models: list[dict[str, Any]]) -> list[str]:
    if not models:
        return ["it has no models; get one with `ollama pull llama3:8b`"]
    names = [_one_line(model["model"]) for model in models]
    width = max(34, *map(len, names))
    lines = [f"{'model':<{width}}{'params':>8}{'quant':>8}{'size (GB)':>11}"]
    lines.append("-" * (width + 27))
    for name, model in zip(names, models, strict=True):
        size = "-" if model["size_bytes"] is None else f"{model['size_bytes'] / 1e9:.1f}"
        parameters, quantization = _one_line(model["parameter_size"]), _one_line(model["quantization_level"])
        lines.append(f"{name:<{width}} {parameters:>7} {quantization:>7} {size:>10}")
    return lines


def _generation(facts: dict[str, Any]) -> list[str]:
    cached = facts["prompt_cached_tokens"]
    lines = [
        f"model      : {facts['model']}",
        f"prompt     : {_speed(facts['prompt_tokens'], facts['prompt_tokens_per_second'])}"
        + (f", {cached} of them cached" if cached else ""),
        f"generated  : {_speed(facts['generated_tokens'], facts['generated_tokens_per_second'])}"
        + f", at most {facts['max_tokens']}",
        f"loading    : {_duration(facts['load_seconds'])}",
        f"total      : {_duration(facts['total_seconds'])}",
    ]
    if facts["thinking"] is not None:
        lines.append(f"thinking   : {json.dumps(facts['thinking'], ensure_ascii=False)}")
    return [*lines, f"output     : {json.dumps(facts['text'], ensure_ascii=False)}"]


def _speed(tokens: int | None, tokens_per_second: float | None) -> str:
    rate = "-" if tokens_per_second is None else f"{tokens_per_second:.1f}"
    return f"{'-' if tokens is None else tokens} tokens, {rate} tokens/s"


def _duration(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f} s"


def _one_line(text: str | None) -> str:
    """A cell of the table: line breaks are shown, not made."""
    return json.dumps(text, ensure_ascii=False)[1:-1] if text else "-"
