"""From a model id to a directory of checked files: packaged, local, cached or downloaded.

Neither torch nor transformers is imported.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from specprof.errors import ResourceError, SpecprofError, UnavailableError, UsageError
from specprof.models import checkpoint

PACKAGED_IDS = ("tiny_dev/draft", "tiny_dev/target", "tiny_cross/draft")

_PAIRS = Path(__file__).parent / "pairs"
_WITHOUT_WEIGHTS = [f"*{ending}" for ending in checkpoint.DESCRIPTIONS]
_WANTED = ["*.safetensors", *_WITHOUT_WEIGHTS]
# Subfolders hold other formats (onnx/, original/); consolidated* is Mistral's second copy of the same weights.
_UNWANTED = ["*/*", "consolidated*.safetensors"]
_ANSWER_SECONDS = 2.5

Source = Literal["packaged", "local", "cache", "download"]


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A directory that holds a configuration and complete safetensors weights."""

    directory: Path
    model_id: str
    revision: str | None
    """Commit of the hub repository; None for packaged and local models."""
    source: Source


def resolve(
    model_id: str, *, revision: str | None = None, offline: bool = False, remote_code: bool = False
) -> ResolvedModel:
    """Find the files of a model, downloading them only if they are nowhere on this machine.

    Args:
        model_id: ``tiny_dev/target``, a local directory, or a hub id such as ``gpt2`` or ``owner/name``.
        revision: branch, tag or commit of a hub repository.
        offline: never use the network (``HF_HUB_OFFLINE=1`` does the same).
        remote_code: fetch the repository's Python files too.

    Raises:
        UsageError: an empty id, or a revision of something that has none.
        UnavailableError: missing, gated, offline, incomplete, pickled or corrupt; within 5 s if there is no network.
        ResourceError: the cache can't be written.
    """
    directory = _named_directory(model_id, revision)
    if directory is None:
        return _from_hub(model_id, revision, offline or offline_by_environment(), remote_code)
    checkpoint.check_model_directory(directory, model_id)
    return ResolvedModel(directory, model_id, None, "packaged" if model_id in PACKAGED_IDS else "local")


def resolve_tokenizer(
    model_id: str, *, revision: str | None = None, offline: bool = False, remote_code: bool = False
) -> Path:
    """The directory of a model's tokenizer files; weights need not be there, and none are fetched.

    Takes and raises what :func:`resolve` does.
    """
    directory = _named_directory(model_id, revision)
    if directory is None:
        directory = _tokenizer_from_hub(model_id, revision, offline or offline_by_environment(), remote_code)
    checkpoint.check_tokenizer_files(directory, model_id)
    return directory


def _named_directory(model_id: str, revision: str | None) -> Path | None:
    """The directory that an id names; None if it is the id of a hub repository."""
    _check_variables()
    if not model_id.strip():
        raise UsageError("the model id is empty", "give a hub id such as gpt2, or a directory")
    directory = local_directory(model_id)
    if directory is not None and revision is not None:
        raise UsageError(f"{model_id} is a directory, it has no revision {revision!r}", "leave the revision out")
    if directory is None and not is_hub_id(model_id):
        raise UnavailableError(
            f"{model_id!r} is neither an existing directory nor a hub id",
            "a hub id is NAME or OWNER/NAME, of letters, digits and . _ -",
        )
    return directory


def _check_variables() -> None:
    """Refuse what would keep the hub's library, and transformers with it, from being imported."""
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        seconds = os.environ.get(name, "0")
        try:
            int(seconds)
        except ValueError:
            raise UsageError(f"{name}={seconds} is not a whole number of seconds", f"unset {name}") from None


def local_directory(model_id: str) -> Path | None:
    """The packaged or existing directory of that name; None if there is none, so that it may be a hub id.

    Raises:
        UnavailableError: it can only mean a directory, and there is none.
    """
    if model_id in PACKAGED_IDS:
        return _PAIRS / model_id
    path = Path(os.path.expanduser(model_id))  # Path's own raises where nobody has that name
    with contextlib.suppress(OSError, ValueError):  # too long for a file name, or a null byte in it
        if path.is_dir():
            return path
        if path.is_file():
            raise UnavailableError(
                f"{model_id} is a file, not a model directory",
                f"give the directory that holds config.json and {checkpoint.WEIGHTS}",
            )
    if model_id.startswith(("/", "./", "../", "~")) or model_id in (".", ".."):
        raise UnavailableError(f"there is no directory {model_id}", "check the path; a hub id has no leading . / or ~")
    return None


def _from_hub(model_id: str, revision: str | None, offline: bool, remote_code: bool) -> ResolvedModel:
    wanted = [*_WANTED, "*.py"] if remote_code else _WANTED
    snapshot = cached_snapshot(model_id, revision, wanted)
    missing = checkpoint.missing_files(snapshot) if snapshot else []
    if snapshot and not missing:
        checkpoint.check_model_directory(snapshot, model_id)
        return ResolvedModel(snapshot, model_id, snapshot.name, "cache")
    state = (
        f"is cached but incomplete ({checkpoint.count(missing)} missing: {checkpoint.some(missing)})"
        if missing
        else "is not cached"
    )
    if offline:
        raise UnavailableError(
            f"{_at(model_id, revision)} {state}, and offline mode is on",
            "run it once with a network (no --offline, no HF_HUB_OFFLINE), or give a local directory",
        )
    ask(model_id, revision, state)
    snapshot = download(model_id, revision, wanted, state)
    checkpoint.check_model_directory(snapshot, model_id)
    return ResolvedModel(snapshot, model_id, snapshot.name, "download")


def _tokenizer_from_hub(model_id: str, revision: str | None, offline: bool, remote_code: bool) -> Path:
    wanted = [*_WITHOUT_WEIGHTS, "*.py"] if remote_code else _WITHOUT_WEIGHTS
    snapshot = cached_snapshot(model_id, revision, wanted)
    if snapshot is not None and checkpoint.tokenizer_files(snapshot):
        return snapshot
    if offline:
        raise UnavailableError(
            f"the tokenizer of {_at(model_id, revision)} is not cached, and offline mode is on",
            "run it once with a network (no --offline, no HF_HUB_OFFLINE), give a directory, or --pair tiny_dev",
        )
    ask(model_id, revision, "is not cached")
    return download(model_id, revision, wanted, "is not cached")


def cached_snapshot(model_id: str, revision: str | None, wanted: list[str]) -> Path | None:
    """The cached snapshot, complete or not. Which files a load needs is for us to say: the
    hub's own verdict counts every file of the repository that matches."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            model_id, revision=revision, allow_patterns=wanted, ignore_patterns=_UNWANTED, local_files_only=True
        )
    except IncompleteSnapshotError as error:
        found = error.snapshot_path
    except LocalEntryNotFoundError:
        return None
    except OSError as error:
        raise _cache_error(error) from error
    return Path(found)


def ask(model_id: str, revision: str | None, state: str) -> None:
    """One request to the hub, answered within seconds or given up: is the repository there, and may we have it?

    It runs in a thread of its own because name resolution has no timeout. The hub's own
    downloads would retry for 23 s without a network, so they only start after this.
    """
    from huggingface_hub import HfApi

    seconds = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or _ANSWER_SECONDS)
    outcome: list[Any] = []

    def request() -> None:
        try:
            outcome.append(HfApi().model_info(model_id, revision=revision, timeout=seconds))
        except Exception as error:  # carried to the caller's thread, where it is explained
            outcome.append(error)

    thread = threading.Thread(target=request, daemon=True)
    with _quiet_hub():
        thread.start()
        thread.join(seconds)
    if not outcome:
        raise _unreachable(model_id, state, f"no answer within {seconds:g} s")
    answer = outcome[0]
    if isinstance(answer, Exception):
        raise _explain(answer, model_id, revision, state) from answer
    names = sorted(sibling.rfilename for sibling in answer.siblings or ())
    pickles = [name for name in names if name.endswith(checkpoint.PICKLES)]
    if pickles and not any(name.endswith(".safetensors") for name in names):
        raise checkpoint.pickled_weights(model_id, pickles, model_id)


def download(model_id: str, revision: str | None, wanted: list[str], state: str) -> Path:
    """Fetch the files of a repository that match ``wanted`` into the cache; :func:`ask` first."""
    from huggingface_hub import snapshot_download

    try:
        with _quiet_hub():
            found = snapshot_download(
                model_id, revision=revision, allow_patterns=wanted, ignore_patterns=_UNWANTED, etag_timeout=10
            )
    except SpecprofError:
        raise
    except Exception as error:
        # The hub's client raises its own, httpx's and the operating system's errors, from several threads.
        raise _explain(error, model_id, revision, state) from error
    return Path(found)


def _explain(error: BaseException, model_id: str, revision: str | None, state: str) -> SpecprofError:
    """What a failure of the hub's client means for the user."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # its httpx or httpx2, whichever it uses

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        return _explain(error.__cause__, model_id, revision, state)
    # Gated before missing: GatedRepoError is a RepositoryNotFoundError.
    if isinstance(error, errors.GatedRepoError):
        return _gated(model_id)
    if isinstance(error, errors.RevisionNotFoundError):
        return UnavailableError(
            f"{model_id} has no revision {revision or 'main'!r}",
            f"its revisions are listed at {_page(model_id)}/tree/main",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return _not_found(model_id)
    if isinstance(error, errors.HfHubHTTPError):
        message = error.response.headers.get("X-Error-Message", "")
        return _refused(error.response.status_code, message, model_id)
    if isinstance(error, httpx.TimeoutException):
        return _unreachable(model_id, state, "no answer in time")
    if isinstance(error, (httpx.TransportError, httpx.InvalidURL, errors.OfflineModeIsEnabled)):
        return _unreachable(model_id, state, _first_line(error) or type(error).__name__)
    if isinstance(error, ValueError):
        return UnavailableError(
            f"{_host()} gave an answer that is not the hub's, so {model_id} can't be fetched",
            "a captive portal or a proxy may be answering; check the network and HF_ENDPOINT",
        )
    if isinstance(error, OSError) and error.errno is not None:
        return _cache_error(error)
    return UnavailableError(
        f"fetching {model_id} failed: {_first_line(error)}", "run it again, or give a local directory"
    )


def _refused(status: int, message: str, model_id: str) -> UnavailableError:
    if status == 401 and "credentials" in message:
        return UnavailableError(
            f"{_host()} refuses the token it was sent for {model_id} (401)", "log in again with `hf auth login`"
        )
    if status == 403:
        return _gated(model_id)
    if status in (401, 404):  # the hub says 401 for what a stranger may not know exists
        return _not_found(model_id)
    if status == 429:
        return UnavailableError(
            f"{_host()} limits the rate of requests (429)", "wait a few minutes, or `hf auth login`"
        )
    what = "has a server error" if status >= 500 else "refuses the request"
    return UnavailableError(f"{_host()} {what} ({status}) for {model_id}", "try again later, or give a local directory")


def _gated(model_id: str) -> UnavailableError:
    return UnavailableError(
        f"{model_id} is gated (403) and this account has no access",
        f"accept its licence at {_page(model_id)}, then `hf auth login`, or give a local directory",
    )


def _not_found(model_id: str) -> UnavailableError:
    return UnavailableError(
        f"{model_id} is not on {_host()}: it is missing, private or misspelt (the hub does not tell which)",
        f"check {_page(model_id)}; for a private model `hf auth login`; for a directory give ./{model_id}",
    )


def _unreachable(model_id: str, state: str, why: str) -> UnavailableError:
    return UnavailableError(
        f"{model_id} {state}, and {_host()} can't be reached ({why})",
        "check the network or HF_ENDPOINT, give a local directory, or use --pair tiny_dev, which is packaged",
    )


def _cache_error(error: OSError) -> ResourceError:
    from huggingface_hub import constants

    cache = constants.HF_HUB_CACHE
    if error.errno == errno.ENOSPC:
        return ResourceError(f"the disk that holds the model cache is full ({cache})", "free space, or set HF_HOME")
    return ResourceError(
        f"the model cache {cache} can't be used: {error.strerror or error}", "check its permissions, or set HF_HOME"
    )


@contextlib.contextmanager
def _quiet_hub() -> Iterator[None]:
    """Keep the hub's warnings and, unless a person watches stderr, its progress bars out of our narration."""
    from huggingface_hub import constants
    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    verbosity = hub_logging.get_verbosity()
    hide_bars = not sys.stderr.isatty() and not are_progress_bars_disabled()
    hub_logging.set_verbosity(logging.ERROR)
    if hide_bars:
        disable_progress_bars()
    try:
        yield
    finally:
        hub_logging.set_verbosity(verbosity)
        if hide_bars and constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
            enable_progress_bars()


def offline_by_environment() -> bool:
    """Whether the hub's own variables forbid the network."""
    return any(
        os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def is_hub_id(model_id: str) -> bool:
    """The hub's rules for repository ids."""
    part = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
    well_formed = re.fullmatch(rf"(?:{part}/)?{part}", model_id) is not None
    return well_formed and "--" not in model_id and ".." not in model_id and not model_id.endswith(".git")


def _at(model_id: str, revision: str | None) -> str:
    return f"{model_id} (revision {revision})" if revision else model_id


def _page(model_id: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{model_id}"


def _host() -> str:
    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).netloc or constants.ENDPOINT


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
