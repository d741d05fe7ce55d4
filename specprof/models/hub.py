"""From a model id to a directory of checked files: packaged, local, cached or downloaded.

Nothing here reads weights: a safetensors file is judged by its header and its size.
Neither torch nor transformers is imported.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import re
import struct
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from specprof.errors import ResourceError, SpecprofError, UnavailableError, UsageError

PACKAGED_IDS = ("tiny_dev/draft", "tiny_dev/target", "tiny_cross/draft")

_PAIRS = Path(__file__).parent / "pairs"
_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_WITHOUT_WEIGHTS = ["*.json", "*.model", "*.txt", "*.jinja"]
_WANTED = ["*.safetensors", *_WITHOUT_WEIGHTS]
# Subfolders hold other formats (onnx/, original/); consolidated* is Mistral's second copy of the same weights.
_UNWANTED = ["*/*", "consolidated*.safetensors"]
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_ANSWER_SECONDS = 2.5
_MAX_HEADER_BYTES = 100_000_000
_SAMPLE_BYTES = 1 << 20
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip

Source = Literal["packaged", "local", "cache", "download"]


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A directory that holds a configuration and complete safetensors weights."""

    directory: Path
    model_id: str
    revision: str | None
    """Commit of the hub repository; None for packaged and local models."""
    source: Source


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as a safetensors header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def is_parameter(self) -> bool:
        """False for attention masks and frequencies that old checkpoints stored as weights (gpt2's do)."""
        is_mask = self.name.endswith(("attn.bias", "attention.bias")) and len(self.shape) == 4
        return not (is_mask or self.name.endswith((".masked_bias", "rotary_emb.inv_freq")))


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
    check_model_directory(directory, model_id)
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
    check_tokenizer_files(directory, model_id)
    return directory


def check_model_directory(directory: Path, model_id: str) -> None:
    """Raise UnavailableError unless ``directory`` holds a readable config.json and intact safetensors weights."""
    read_config(directory, model_id)
    missing = missing_files(directory)
    if missing:
        raise _missing_weights(directory, model_id, missing)
    stored = {tensor.name for tensor in stored_tensors(directory, model_id)}
    absent = sorted(set(_weight_map(directory, model_id)) - stored)
    if absent:
        raise UnavailableError(
            f"the weights of {model_id} are incomplete: its index names {absent[0]}"
            f"{f' and {len(absent) - 1} more tensors' if len(absent) > 1 else ''}, no file holds it",
            _fetch_again(directory, model_id),
        )


def check_tokenizer_files(directory: Path, model_id: str) -> None:
    """Raise UnavailableError unless ``directory`` holds a tokenizer in one of the usual forms."""
    present = tokenizer_files(directory)
    if not present:
        raise UnavailableError(
            f"{model_id} has no tokenizer files",
            f"put tokenizer.json and tokenizer_config.json into {directory} (tokenizer.save_pretrained writes them)",
        )
    if present == ["vocab.json"] and not (directory / "merges.txt").is_file():
        raise UnavailableError(
            f"the tokenizer of {model_id} is incomplete: vocab.json is there, merges.txt is not",
            f"copy merges.txt (or tokenizer.json) into {directory}",
        )


def tokenizer_files(directory: Path) -> list[str]:
    """Names of the files in ``directory`` that a tokenizer can be made from."""
    return [name for name in _TOKENIZERS if (directory / name).is_file()]


def read_config(directory: Path, model_id: str) -> dict[str, Any]:
    """``config.json`` as a dictionary.

    Raises:
        UnavailableError: it is missing or not a JSON object.
    """
    path = directory / _CONFIG
    if not path.is_file():
        raise UnavailableError(
            f"{model_id} is not a model: it has no config.json",
            f"give the directory that holds config.json and {_WEIGHTS} (looked in {directory})",
        )
    return _json_object(path, model_id)


def missing_files(directory: Path) -> list[str]:
    """Names of the files that loading needs and ``directory`` lacks; empty if it is complete."""
    missing = [] if (directory / _CONFIG).is_file() else [_CONFIG]
    if not (directory / _WEIGHTS).is_file():
        if (directory / _INDEX).is_file():
            shards = sorted(set(_weight_map(directory, str(directory)).values()))
            missing += [name for name in shards if not (directory / name).is_file()]
        else:
            missing.append(_WEIGHTS)
    return missing


def fingerprint(directory: Path) -> str:
    """12 hexadecimal digits that tell a model without a commit from its retrained self.

    Of small files the whole contents, of weights their size and three samples: training changes all of them.
    """
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.suffix not in (".json", ".safetensors", ".model", ".txt", ".jinja") or not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for start in sorted({0, size // 2, max(size - _SAMPLE_BYTES, 0)}):
                file.seek(start)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:12]


def weight_bytes(directory: Path) -> int:
    """Bytes of all tensors in the safetensors files, from their headers."""
    return sum(tensor.num_bytes for tensor in stored_tensors(directory, str(directory)))


def num_parameters(directory: Path) -> int:
    """Number of parameters in the safetensors files, from their headers; tied tensors are stored and counted once."""
    return sum(t.num_elements for t in stored_tensors(directory, str(directory)) if t.is_parameter)


def stored_tensors(directory: Path, model_id: str) -> list[StoredTensor]:
    """Every tensor of the weights, from the headers alone.

    Raises:
        UnavailableError: a file that is truncated, or not safetensors.
    """
    shards = sorted(set(_weight_map(directory, model_id).values())) or [_WEIGHTS]
    return [tensor for name in shards for tensor in _read_header(directory / name, model_id)]


# --- local files


def _named_directory(model_id: str, revision: str | None) -> Path | None:
    """The directory that an id names; None if it is the id of a hub repository."""
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


def local_directory(model_id: str) -> Path | None:
    if model_id in PACKAGED_IDS:
        return _PAIRS / model_id
    path = Path(model_id).expanduser()
    with contextlib.suppress(OSError, ValueError):  # too long for a file name, or a null byte in it
        if path.is_dir():
            return path
        if path.is_file():
            raise UnavailableError(
                f"{model_id} is a file, not a model directory",
                f"give the directory that holds config.json and {_WEIGHTS}",
            )
    if model_id.startswith(("/", "./", "../", "~")) or model_id in (".", ".."):
        raise UnavailableError(f"there is no directory {model_id}", "check the path; a hub id has no leading . / or ~")
    return None


def _weight_map(directory: Path, model_id: str) -> dict[str, str]:
    """Tensor name to shard name; empty for weights in one file."""
    path = directory / _INDEX
    if (directory / _WEIGHTS).is_file() or not path.is_file():
        return {}
    weight_map = _json_object(path, model_id).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnavailableError(f"{_INDEX} of {model_id} has no weight_map", _fetch_again(directory, model_id))
    for name in weight_map.values():
        # A shard lies beside its index: a path would let an index read other files.
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise UnavailableError(
                f"{_INDEX} of {model_id} names {name!r}, which is not a safetensors file beside it",
                _fetch_again(directory, model_id),
            )
    return weight_map


def _read_header(path: Path, model_id: str) -> list[StoredTensor]:
    """Tensors of one file. Format: 8 bytes of length, a JSON header, then the data, nothing after it.

    Source: https://huggingface.co/docs/safetensors/index#format
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            raise UnavailableError(
                f"{path.name} of {model_id} is a Git LFS pointer, not the weights",
                f"run `git lfs pull` in {path.parent}",
            )
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, _MAX_HEADER_BYTES):
            raise _corrupt(path, model_id, f"it ends inside its header, at {size} bytes")
        header = file.read(length)
    try:
        entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        tensors = [_stored(name, entry) for name, entry in entries.items()]
        end = max(entry["data_offsets"][1] for entry in entries.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _corrupt(path, model_id, "its header can't be read") from error
    if 8 + length + end != size:
        raise _corrupt(path, model_id, f"it has {size} bytes, its header describes {8 + length + end}")
    return tensors


def _stored(name: str, entry: dict[str, Any]) -> StoredTensor:
    """One header entry; ValueError unless its offsets enclose exactly its elements."""
    begin, end = entry["data_offsets"]
    shape = tuple(int(n) for n in entry["shape"])
    bits = _BITS.get(entry["dtype"])
    if begin < 0 or min(shape, default=0) < 0 or (bits and (end - begin) * 8 != math.prod(shape) * bits):
        raise ValueError(f"{name}: {entry}")
    return StoredTensor(name, entry["dtype"], shape, end - begin)


def _json_object(path: Path, model_id: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        reason = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "not UTF-8 text"
        raise UnavailableError(
            f"{path.name} of {model_id} is not valid JSON ({reason})", _fetch_again(path.parent, model_id)
        ) from error
    except OSError as error:
        raise UnavailableError(f"can't read {path}: {error.strerror}", "check its permissions") from error
    if not isinstance(value, dict):
        raise UnavailableError(f"{path.name} of {model_id} is not a JSON object", _fetch_again(path.parent, model_id))
    return value


def _missing_weights(directory: Path, model_id: str, missing: list[str]) -> UnavailableError:
    if missing != [_WEIGHTS]:
        return UnavailableError(
            f"{model_id} is incomplete: {_count(missing)} of its index {'is' if len(missing) == 1 else 'are'} missing"
            f" ({_some(missing)})",
            _fetch_again(directory, model_id),
        )
    names = sorted(path.name for path in directory.iterdir())
    pickles = sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern))
    others = [name for name in names if name.endswith((".safetensors", ".gguf"))]
    if any(name.startswith("model-0") for name in others):
        return UnavailableError(
            f"{model_id} has shards but no {_INDEX}", f"copy the index file into {directory} as well"
        )
    if others:
        return UnavailableError(
            f"{model_id} has no {_WEIGHTS} (found {_some(others)})",
            "give a directory written by save_pretrained, or rename the file if it holds the same tensors",
        )
    if pickles:
        return pickled_weights(model_id, pickles, str(directory))
    return UnavailableError(
        f"{model_id} has no weights: no {_WEIGHTS} in {directory}",
        "give a directory written by save_pretrained, or fetch the weights",
    )


def pickled_weights(model_id: str, names: list[str], source: str) -> UnavailableError:
    """The refusal of weights that only a pickle holds: loading one runs whatever code is in it."""
    return UnavailableError(
        f"{model_id} has pickled weights only ({_some(names)}), which can run code when loaded: refused",
        'if you trust them, convert them once: python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('{source}', use_safetensors=False).save_pretrained('converted')\" "
        "and copy the tokenizer files",
    )


def _corrupt(path: Path, model_id: str, why: str) -> UnavailableError:
    return UnavailableError(f"{path.name} of {model_id} is damaged: {why}", _fetch_again(path.parent, model_id))


def _fetch_again(directory: Path, model_id: str) -> str:
    if directory.parent.name == "snapshots" and is_hub_id(model_id):
        return f"remove it from the cache with `hf cache rm model/{model_id}`, then run this again with a network"
    return f"copy or convert the model into {directory} again"


def _count(names: list[str]) -> str:
    return f"{len(names)} file{'s' if len(names) > 1 else ''}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")


# --- the hub


def _from_hub(model_id: str, revision: str | None, offline: bool, remote_code: bool) -> ResolvedModel:
    wanted = [*_WANTED, "*.py"] if remote_code else _WANTED
    snapshot = cached_snapshot(model_id, revision, wanted)
    missing = missing_files(snapshot) if snapshot else []
    if snapshot and not missing:
        check_model_directory(snapshot, model_id)
        return ResolvedModel(snapshot, model_id, snapshot.name, "cache")
    state = f"is cached but incomplete ({_count(missing)} missing: {_some(missing)})" if missing else "is not cached"
    if offline:
        raise UnavailableError(
            f"{_at(model_id, revision)} {state}, and offline mode is on",
            "run it once with a network (no --offline, no HF_HUB_OFFLINE), or give a local directory",
        )
    ask(model_id, revision, state)
    snapshot = download(model_id, revision, wanted, state)
    check_model_directory(snapshot, model_id)
    return ResolvedModel(snapshot, model_id, snapshot.name, "download")


def _tokenizer_from_hub(model_id: str, revision: str | None, offline: bool, remote_code: bool) -> Path:
    wanted = [*_WITHOUT_WEIGHTS, "*.py"] if remote_code else _WITHOUT_WEIGHTS
    snapshot = cached_snapshot(model_id, revision, wanted)
    if snapshot is not None and tokenizer_files(snapshot):
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
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickles and not any(name.endswith(".safetensors") for name in names):
        raise pickled_weights(model_id, pickles, model_id)


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
