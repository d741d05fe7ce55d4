"""What an Ollama server holds, and how fast it says it generates: a quick look before weights are downloaded.

Nothing here can stand in a benchmark of speculative decoding, as baseline or as one of the two models:

- Verification needs the target's probabilities of tokens someone else drafted, over the whole vocabulary and at K + 1
  positions of one pass. Ollama generates and tells, at most, the log probabilities of its own tokens and of a few
  likely others.
- A rejected draft has to leave the KV cache. Ollama's cache can't be rolled back from outside, or looked at.
- So neither the acceptance test nor the residual distribution can be computed: the output would not be the target's.
- Its weights are quantised copies (Q4_0, Q4_K_M, ...), other models than those measured here, behind its own chat
  template and sampler. Its speed, timed by its own clock, says nothing about a speedup of ours.

The ``ollama`` library is imported when a server is asked, not before. Only the named host is contacted: directly,
whatever proxies the environment names, and following no redirects.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import os
import re
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specprof.errors import ResourceError, UnavailableError, UsageError

if TYPE_CHECKING:
    import httpx
    import ollama

DEFAULT_URL = "http://localhost:11434"
CONNECT_SECONDS = 3.0
STATUS_SECONDS = 10.0
GENERATE_SECONDS = 120.0  # without a sign of life: loading a model comes before the first token

_HOST_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")

# What the library raises when an answer is not what it expects: it checks little before it takes it apart.
_NONSENSE = (ValueError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as the server describes it; ``None`` for what it leaves out."""

    model: str | None
    parameter_size: str | None
    quantization_level: str | None
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class Status:
    """A running server and its models, in the server's order."""

    url: str
    version: str | None
    models: tuple[ServedModel, ...]


@dataclass(frozen=True, slots=True)
class Generation:
    """A generation by the server's own counts and clock; ``None`` for what it didn't report.

    Prompt tokens the server still had from an earlier request count in ``prompt_tokens`` but cost nothing.
    ``prompt_tokens_per_second`` leaves them out where the server tells their number; older servers don't.
    """

    model: str
    prompt: str
    max_tokens: int
    text: str
    thinking: str | None
    finish_reason: str | None
    prompt_tokens: int | None
    prompt_cached_tokens: int | None
    prompt_seconds: float | None
    prompt_tokens_per_second: float | None
    generated_tokens: int | None
    generation_seconds: float | None
    generated_tokens_per_second: float | None
    load_seconds: float | None
    total_seconds: float | None


def server_url(host: str | None) -> str:
    """The address of the server: ``host``, or else the variable OLLAMA_HOST, or else ``DEFAULT_URL``.

    Read as the ollama library reads it: a scheme is optional, and the port is 11434 without one.

    Raises:
        UsageError: not an address, or one of something else than a server.
    """
    named = os.environ.get("OLLAMA_HOST") if host is None else host
    if host is None and not named:
        return DEFAULT_URL
    text = named or ""
    try:
        return _parsed(text)
    except ValueError as error:
        source = "OLLAMA_HOST" if host is None else "--host"
        shown = text.rpartition("@")[2]  # a password may stand before it
        raise UsageError(
            f"{source} {shown!r} is no address of a server: {error}", f"for instance: {DEFAULT_URL}"
        ) from None


def _parsed(text: str) -> str:
    """The address in full.

    Raises:
        ValueError: says what is wrong with it.
    """
    if not text.isprintable() or " " in text:
        raise ValueError("it holds a space or something not printable")
    bare = "://" not in text
    split = urllib.parse.urlsplit(f"http://{text}" if bare else text)
    if split.scheme not in ("http", "https"):
        raise ValueError("its scheme is not http or https")
    if split.username is not None:
        raise ValueError("it holds a user name")
    if split.query or split.fragment:
        raise ValueError("it holds more than host, port and path")
    try:
        port = split.port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError("its port is not a number from 1 to 65535")
    name = split.hostname or ("localhost" if port else "")
    if port is None:
        port = 11434 if bare else 443 if split.scheme == "https" else 80
    if ":" in name:
        name = f"[{ipaddress.IPv6Address(name)}]"
    elif not _HOST_NAME.fullmatch(name):
        raise ValueError("it names no host")
    return f"{split.scheme}://{name}:{port}{split.path.rstrip('/')}"


def status(url: str) -> Status:
    """Ask a server which models it has.

    Raises:
        ResourceError: no server, one that is silent, or one that isn't Ollama; or the library is missing.
    """
    with _asking(url, STATUS_SECONDS) as (client, answers):
        from ollama import ResponseError

        try:
            listed = client.list().models
        except (ResponseError, *_NONSENSE) as error:
            raise _not_ollama(url, answers[-1]) from error
        return Status(url, _version(url), tuple(_served(model) for model in listed))


def generate(url: str, model: str, prompt: str, max_tokens: int) -> Generation:
    """Have a model of the server generate, greedily where its template and options allow.

    Raises:
        UnavailableError: the server doesn't have the model, or it is one that generates no text.
        ResourceError: the server fails, is silent or breaks off.
    """
    with _asking(url, GENERATE_SECONDS) as (client, answers):
        from ollama import ResponseError

        options = {"num_predict": max_tokens, "temperature": 0, "seed": 0}
        try:
            # As a stream, each token is a sign of life, and whether the answer is whole can be seen.
            parts = list(client.generate(model, prompt, stream=True, options=options))
            last = json.loads(answers[-1].content.strip().split(b"\n")[-1])
        except ResponseError as error:
            raise _refusal(url, model, error) from error
        except _NONSENSE as error:
            raise _broken_off(url) from error
    if not parts or not parts[-1].done:
        raise _broken_off(url)
    end = parts[-1]
    prompt_tokens, prompt_seconds = _count(end.prompt_eval_count), _seconds(end.prompt_eval_duration)
    cached = _count(last.get("prompt_eval_cached_count"))  # newer than the library, which drops it
    generated, seconds = _count(end.eval_count), _seconds(end.eval_duration)
    return Generation(
        model=model,
        prompt=prompt,
        max_tokens=max_tokens,
        text="".join(part.response or "" for part in parts),
        thinking="".join(part.thinking or "" for part in parts) or None,
        finish_reason=end.done_reason,
        prompt_tokens=prompt_tokens,
        prompt_cached_tokens=cached,
        prompt_seconds=prompt_seconds,
        prompt_tokens_per_second=_rate(prompt_tokens and prompt_tokens - (cached or 0), prompt_seconds),
        generated_tokens=generated,
        generation_seconds=seconds,
        generated_tokens_per_second=_rate(generated, seconds),
        load_seconds=_seconds(end.load_duration),
        total_seconds=_seconds(end.total_duration),
    )


@contextmanager
def _asking(url: str, silence_seconds: float) -> Iterator[tuple[ollama.Client, list[httpx.Response]]]:
    """A client of the server, and the answers it got, to be read beyond what the library keeps of them."""
    try:
        import httpx
        import ollama
    except ImportError as error:
        raise ResourceError("--ollama needs the ollama library", "pip install 'specprof[ollama]'") from error
    answers: list[httpx.Response] = []

    def keep(response: httpx.Response) -> None:
        answers.append(response)
        response.read()

    try:
        with ollama.Client(
            url,
            timeout=httpx.Timeout(silence_seconds, connect=CONNECT_SECONDS),
            follow_redirects=False,
            trust_env=False,
            event_hooks={"response": [keep]},
        ) as client:
            yield client, answers
    except (ConnectionError, httpx.ConnectError, httpx.ConnectTimeout) as error:
        # The library's own ConnectionError hides the reason, which is its context.
        raise ResourceError(
            f"no server answers at {url}: {error.__context__ or error}",
            "start it with `ollama serve`, or name its address with --host",
        ) from error
    except httpx.TimeoutException as error:
        raise ResourceError(
            f"the server at {url} was silent for {silence_seconds:g} s",
            "it may be busy, or still loading a large model: look at its log, and try again",
        ) from error
    except httpx.RequestError as error:
        if answers:
            raise _broken_off(url) from error
        raise ResourceError(
            f"what listens at {url} does not answer as a web server does: {error}",
            "name the address of an Ollama server with --host",
        ) from error


def _version(url: str) -> str | None:
    """The server's version; the library can't ask for it."""
    import httpx

    try:
        answer = httpx.get(f"{url}/api/version", timeout=STATUS_SECONDS, follow_redirects=False, trust_env=False)
        version = answer.json()["version"]
    except (httpx.HTTPError, KeyError, *_NONSENSE):
        return None
    return version if isinstance(version, str) else None


def _served(model: ollama.ListResponse.Model) -> ServedModel:
    details = model.details
    return ServedModel(
        model=model.model,
        parameter_size=(details and details.parameter_size) or None,
        quantization_level=(details and details.quantization_level) or None,
        size_bytes=_count(model.size),
    )


def _not_ollama(url: str, answer: httpx.Response) -> ResourceError:
    kind = answer.headers.get("content-type", "no content type").partition(";")[0]
    sender = f" from {answer.headers['server']}" if "server" in answer.headers else ""
    where = f", pointing to {answer.headers['location']}" if answer.has_redirect_location else ""
    return ResourceError(
        f"{url} is not an Ollama server: it answered /api/tags with HTTP {answer.status_code}, {kind}{sender}{where}",
        f"name the address of one with --host; Ollama's own default is {DEFAULT_URL}",
    )


def _refusal(url: str, model: str, error: ollama.ResponseError) -> UnavailableError | ResourceError:
    """Why the server refused to generate, judged by its status and words."""
    said = str(error.error)[:300]
    if error.status_code == 404:
        names = [served.model for served in status(url).models if served.model]
        close = difflib.get_close_matches(model, names, n=3, cutoff=0.5) or names[:3]
        rest = f", or take one it has: {', '.join(close)}" if close else ""
        return UnavailableError(f"the server at {url} has no model {model!r}", f"`ollama pull {model}`{rest}")
    if error.status_code == 400 and "does not support" in said:
        return UnavailableError(
            f"model {model!r} generates no text: {said}", "choose another; embedding models only turn text into vectors"
        )
    return ResourceError(
        f"the server at {url} failed to generate: {said}", "look at its log; where memory lacks, take a smaller model"
    )


def _broken_off(url: str) -> ResourceError:
    return ResourceError(
        f"the answer of the server at {url} broke off or makes no sense", "look at the server's log, and try again"
    )


def _count(value: Any) -> int | None:
    """A positive number of the server's; it leaves out what is 0, or what it doesn't know."""
    return int(value) if isinstance(value, int) and 0 < value < 2**63 else None


def _seconds(nanoseconds: int | None) -> float | None:
    count = _count(nanoseconds)
    return None if count is None else count / 1e9


def _rate(tokens: int | None, seconds: float | None) -> float | None:
    return tokens / seconds if tokens and tokens > 0 and seconds else None
