"""Finding a model's files: real directories with real damage, and a small server that answers as the hub does."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from packaged import llama_parameters
from specprof.errors import SpecprofError, UnavailableError, UsageError
from specprof.models import checkpoint, hub

ROOT = Path(__file__).parent.parent
PACKAGED = ROOT / "specprof" / "models" / "pairs" / "tiny_dev"


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    shutil.copytree(PACKAGED / "draft", directory)
    return directory


def shard(directory: Path) -> tuple[str, str]:
    """Split the weights of ``directory`` into two files with an index, byte for byte; their names."""
    whole = (directory / "model.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    header.pop("__metadata__", None)
    data = whole[8 + length :]
    tensors = sorted(header)
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    weight_map = {}
    for name, part in zip(names, (tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]), strict=True):
        entries, blob = {}, b""
        for tensor in part:
            begin, end = header[tensor]["data_offsets"]
            entries[tensor] = {**header[tensor], "data_offsets": [len(blob), len(blob) + end - begin]}
            blob += data[begin:end]
            weight_map[tensor] = name
        text = json.dumps(entries).encode()
        (directory / name).write_bytes(len(text).to_bytes(8, "little") + text + blob)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (directory / "model.safetensors").unlink()
    return names


def refusal(model_id: str | Path, **options: Any) -> SpecprofError:
    with pytest.raises(UnavailableError) as caught:
        hub.resolve(str(model_id), **options)
    assert caught.value.exit_code == 3
    assert caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value


# --- packaged and local


@pytest.mark.parametrize("name", ["draft", "target"])
def test_packaged_models_are_found_without_a_hub(name: str) -> None:
    found = hub.resolve(f"tiny_dev/{name}", offline=True)
    assert found == hub.ResolvedModel(PACKAGED / name, f"tiny_dev/{name}", None, "packaged")


def test_sizes_come_from_the_headers() -> None:
    # Llama with a tied head: table + layers x (4 attention + 3 MLP matrices + 2 norms) + final norm.
    assert llama_parameters("tiny_dev/target") == 4096 * 256 + 8 * (4 * 256 * 256 + 3 * 256 * 672 + 2 * 256) + 256
    for name in ("target", "draft"):
        parameters, stored = llama_parameters(f"tiny_dev/{name}"), checkpoint.stored_tensors(PACKAGED / name, name)
        assert sum(math.prod(tensor.shape) for tensor in stored) == parameters
        assert sum(tensor.num_bytes for tensor in stored) == 2 * parameters


def test_masks_that_old_checkpoints_store_are_no_parameters() -> None:
    mask = checkpoint.StoredTensor("h.0.attn.bias", "F32", (1, 1, 1024, 1024), 0, 4 << 20)
    bias = checkpoint.StoredTensor("h.0.attn.c_attn.bias", "F32", (2304,), 0, 9216)
    assert not mask.is_parameter
    assert bias.is_parameter


def test_local_directory(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.resolve(str(model_dir)).source == "local"
    monkeypatch.chdir(model_dir.parent)
    for spelling in ("./model", "model", "../" + model_dir.parent.name + "/model"):
        assert hub.resolve(spelling).directory.resolve() == model_dir
    monkeypatch.setenv("HOME", str(model_dir.parent))
    assert hub.resolve("~/model").directory == model_dir


def test_sharded_directory(model_dir: Path) -> None:
    shard(model_dir)
    assert hub.resolve(str(model_dir)).source == "local"
    kept, whole = (checkpoint.stored_tensors(directory, "m") for directory in (model_dir, PACKAGED / "draft"))
    assert {(t.name, t.shape) for t in kept} == {(t.name, t.shape) for t in whole} and len(kept) == len(whole)


def test_the_home_of_nobody_is_no_directory() -> None:
    for name in ("~nobody-of-that-name/model", "~nobody-of-that-name"):
        assert refusal(name).message == f"there is no directory {name}"


def test_a_fingerprint_knows_every_tensor(model_dir: Path) -> None:
    """Also of models that differ in a single one, wherever it lies: their results are not to be mixed."""
    original = checkpoint.fingerprint(model_dir)
    weights = model_dir / WEIGHTS
    content = weights.read_bytes()
    for tensor in checkpoint.stored_tensors(model_dir, "m"):
        other = bytearray(content)
        end = tensor.begin + tensor.num_bytes
        other[tensor.begin : end] = bytes(byte ^ 1 for byte in content[tensor.begin : end])
        weights.write_bytes(other)
        assert checkpoint.fingerprint(model_dir) != original, tensor.name
    weights.write_bytes(content)
    assert checkpoint.fingerprint(model_dir) == original
    for name in ("tokenizer.json", "config.json"):
        kept = (model_dir / name).read_bytes()
        (model_dir / name).write_bytes(kept + b" ")
        assert checkpoint.fingerprint(model_dir) != original
        (model_dir / name).write_bytes(kept)


@pytest.mark.parametrize("variable", ["HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"])
def test_variables_that_the_hubs_library_would_stumble_over(variable: str) -> None:
    """In a process that has not imported it yet."""
    code = "from specprof.models import hub\nhub.resolve('tiny_dev/draft')"
    for seconds, returned in (("soon", 1), ("10", 0)):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, variable: seconds},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == returned
        assert (f"UsageError: {variable}=soon is not a whole number of seconds" in done.stderr) is bool(returned)


def test_a_directory_has_no_revision(model_dir: Path) -> None:
    with pytest.raises(UsageError, match="has no revision"):
        hub.resolve(str(model_dir), revision="main")


def test_what_is_neither_a_directory_nor_an_id(model_dir: Path) -> None:
    assert "no directory ./nothing" in refusal("./nothing").message
    assert "no directory /nowhere/at/all" in refusal("/nowhere/at/all").message
    for bad in ("a/b/c", "spaces in it", "org/x--y", "-x", "name.git", "x" * 300, "nul\0byte"):
        assert "neither an existing directory nor a hub id" in refusal(bad).message
    assert "is a file" in refusal(model_dir / "model.safetensors").message
    with pytest.raises(UsageError, match="empty"):
        hub.resolve("  ")


def _truncate(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


def _rewrite_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def _endless(header: dict[str, Any]) -> None:
    header["model.norm.weight"]["shape"] = [math.inf]


WEIGHTS = "model.safetensors"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), "no config.json"),
    "config is not JSON": (lambda d: (d / "config.json").write_text('{"a": 1\n"b": 2}'), "not valid JSON (line 2)"),
    "config is not text": (lambda d: (d / "config.json").write_bytes(b"\xff\xfe"), "not UTF-8"),
    "config is a list": (lambda d: (d / "config.json").write_text("[]"), "not a JSON object"),
    "no weights": (lambda d: (d / WEIGHTS).unlink(), "has no weights"),
    "pickled weights": (lambda d: (d / WEIGHTS).rename(d / "pytorch_model.bin"), "pickled weights only"),
    "a .pt file": (lambda d: (d / WEIGHTS).rename(d / "model.pt"), "pickled weights only"),
    "a .ckpt file": (lambda d: (d / WEIGHTS).rename(d / "last.ckpt"), "pickled weights only"),
    "GGUF": (lambda d: (d / WEIGHTS).rename(d / "model-q4.gguf"), "found model-q4.gguf"),
    "another name": (lambda d: (d / WEIGHTS).rename(d / "weights.safetensors"), "found weights.safetensors"),
    "shard without index": (lambda d: (d / WEIGHTS).rename(d / "model-00001-of-00002.safetensors"), "but no model."),
    "empty file": (lambda d: _truncate(d / WEIGHTS, 0), "damaged"),
    "cut in its header": (lambda d: _truncate(d / WEIGHTS, 100), "ends inside its header"),
    "cut in its data": (lambda d: _truncate(d / WEIGHTS, 1_000_000), "it has 1000000 bytes"),
    "cut by one byte": (lambda d: _truncate(d / WEIGHTS, (d / WEIGHTS).stat().st_size - 1), "its header describes"),
    "bytes at its end": (lambda d: _truncate(d / WEIGHTS, (d / WEIGHTS).stat().st_size + 1), "its header describes"),
    "header is noise": (lambda d: (d / WEIGHTS).write_bytes((5).to_bytes(8, "little") + b"noise"), "can't be read"),
    "endless tensor": (lambda d: _rewrite_header(d / WEIGHTS, _endless), "can't be read"),
    "Git LFS pointer": (
        lambda d: (d / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        "Git LFS pointer",
    ),
    "shape against offsets": (
        lambda d: _rewrite_header(d / WEIGHTS, lambda h: h["model.norm.weight"].update(shape=[127])),
        "header can't be read",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named(what: str, model_dir: Path) -> None:
    damage, said = DAMAGE[what]
    damage(model_dir)
    error = refusal(model_dir)
    assert said in error.message
    assert str(model_dir) in error.message + error.hint


def test_refused_pickles_come_with_a_way_out(model_dir: Path) -> None:
    (model_dir / WEIGHTS).rename(model_dir / "pytorch_model.bin")
    assert "save_pretrained" in refusal(model_dir).hint


def test_damaged_shards(model_dir: Path) -> None:
    first, second = shard(model_dir)
    index = model_dir / "model.safetensors.index.json"
    written = index.read_text()
    (model_dir / second).rename(model_dir / "away")
    error = refusal(model_dir)
    assert "1 file of its index is missing" in error.message
    assert second in error.message
    (model_dir / "away").rename(model_dir / second)

    content = json.loads(written)
    content["weight_map"]["model.layers.7.mlp.up_proj.weight"] = first
    index.write_text(json.dumps(content))
    assert "index names model.layers.7.mlp.up_proj.weight" in refusal(model_dir).message

    index.write_text(json.dumps({"weight_map": {"x": "../../secret.safetensors"}}))
    assert "not a safetensors file beside it" in refusal(model_dir).message
    index.write_text("{}")
    assert "no weight_map" in refusal(model_dir).message
    index.write_text(written)
    _truncate(model_dir / first, 1000)
    assert "damaged" in refusal(model_dir).message


def test_tokenizer_files(model_dir: Path) -> None:
    checkpoint.check_tokenizer_files(model_dir, "m")
    (model_dir / "tokenizer.json").unlink()
    with pytest.raises(UnavailableError, match="no tokenizer files"):
        checkpoint.check_tokenizer_files(model_dir, "m")
    (model_dir / "vocab.json").write_text("{}")
    with pytest.raises(UnavailableError, match=r"merges\.txt is not"):
        checkpoint.check_tokenizer_files(model_dir, "m")


# --- the hub

SHA = "0123456789abcdef0123456789abcdef01234567"
GOOD_FILES = {path.name: path.read_bytes() for path in (PACKAGED / "draft").iterdir() if path.is_file()}
EXTRA = {"README.md": b"hello", "pytorch_model.bin": b"pickle", "onnx/config.json": b"{}", "run.py": b"pass"}
REPOSITORIES: dict[str, dict[str, bytes]] = {
    "org/good": {**GOOD_FILES, **EXTRA},
    "gpt2": GOOD_FILES,
    "org/pickled": {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
    "org/gated-files": GOOD_FILES,
    "org/truncated": {**GOOD_FILES, WEIGHTS: GOOD_FILES[WEIGHTS][:500_000]},
}
ANSWERS: dict[str, tuple[int, dict[str, str]]] = {
    "org/unauthorised": (401, {}),
    "org/bad-token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "org/gated": (403, {"X-Error-Code": "GatedRepo"}),
    "org/forbidden": (403, {}),
    "org/missing": (404, {"X-Error-Code": "RepoNotFound"}),
    "org/plain404": (404, {}),
    "org/busy": (429, {}),
    "org/broken": (500, {}),
    "org/down": (503, {}),
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as a download uses."""

    requests: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0].strip("/")
        if path.startswith("api/models/"):
            self.api(path.removeprefix("api/models/"))
        elif "/resolve/" in path:
            repository, _, rest = path.partition("/resolve/")
            self.file(repository, rest.partition("/")[2])
        else:
            self.reply(404, b"")

    do_HEAD = do_GET

    def api(self, path: str) -> None:
        repository, _, rest = path.partition("/revision/") if "/revision/" in path else path.partition("/tree/")
        if repository in ANSWERS:
            status, headers = ANSWERS[repository]
            self.reply(status, b'{"error": "no"}', headers)
        elif repository == "org/portal":
            self.reply(200, b"<html>Welcome to the hotel</html>")
        elif repository not in REPOSITORIES:
            self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif rest and rest not in ("main", SHA):
            self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif "/tree/" in path:
            files = REPOSITORIES[repository]
            listing = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
            self.reply(200, json.dumps(listing).encode())
        else:
            names = [{"rfilename": name} for name in REPOSITORIES[repository]]
            self.reply(200, json.dumps({"id": repository, "sha": SHA, "siblings": names, "tags": []}).encode())

    def file(self, repository: str, name: str) -> None:
        data = REPOSITORIES.get(repository, {}).get(name)
        if repository == "org/gated-files":
            self.reply(403, b"", {"X-Error-Code": "GatedRepo"})
        elif data is None:
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            self.reply(200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": SHA})

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


CLIENT = """
import json, sys, time
from specprof.errors import SpecprofError
from specprof.models.hub import resolve, resolve_tokenizer
for model_id, options in json.loads(sys.argv[1]):
    start = time.perf_counter()
    try:
        if options.pop("tokenizer", False):
            answer = {"directory": str(resolve_tokenizer(model_id, **options))}
        else:
            found = resolve(model_id, **options)
            answer = {"directory": str(found.directory), "revision": found.revision, "source": found.source}
    except SpecprofError as error:
        answer = {"exit": error.exit_code, "message": error.message, "hint": error.hint}
    answer["seconds"] = time.perf_counter() - start
    answer["heavy"] = sorted({"torch", "transformers"} & set(sys.modules))
    print(json.dumps(answer))
"""


def client(home: Path, endpoint: str, *calls: tuple[str, dict[str, Any]], **environment: str) -> list[dict[str, Any]]:
    """Resolve in a process of its own, because the hub's library reads the environment when imported."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().endswith("_PROXY") and not name.startswith("HF_")
    }
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, json.dumps(calls)],
        env={**inherited, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(answer["heavy"] == [] for answer in answers)
    return answers


def test_every_refusal_of_the_hub_is_one_sentence(tmp_path: Path, endpoint: str) -> None:
    expected = {
        "org/unauthorised": ("missing, private or misspelt", "hf auth login"),
        "org/missing": ("missing, private or misspelt", f"{endpoint}/org/missing"),
        "org/plain404": ("missing, private or misspelt", "hf auth login"),
        "org/bad-token": ("refuses the token", "hf auth login"),
        "org/gated": ("is gated (403)", f"{endpoint}/org/gated, then `hf auth login`"),
        "org/gated-files": ("is gated (403)", "hf auth login"),
        "org/forbidden": ("is gated (403)", "hf auth login"),
        "org/busy": ("429", "wait"),
        "org/broken": ("server error (500)", "try again later"),
        "org/down": ("server error (503)", "try again later"),
        "org/portal": ("not the hub's", "captive portal"),
        "org/pickled": ("pickled weights only (pytorch_model.bin)", "convert"),
        "org/truncated": ("damaged", "hf cache rm model/org/truncated"),
    }
    answers = client(tmp_path, endpoint, *((model_id, {}) for model_id in expected))
    for (model_id, (said, hinted)), answer in zip(expected.items(), answers, strict=True):
        assert answer["exit"] == 3, model_id
        assert said in answer["message"], (model_id, answer)
        assert hinted in answer["hint"], (model_id, answer)
        assert model_id in answer["message"] or "429" in said
        assert answer["seconds"] < 4, model_id


def test_a_revision_that_is_not_there(tmp_path: Path, endpoint: str) -> None:
    [answer] = client(tmp_path, endpoint, ("org/good", {"revision": "v9"}))
    assert answer["exit"] == 3
    assert "has no revision 'v9'" in answer["message"]


def test_download_then_cache_then_offline(tmp_path: Path, endpoint: str) -> None:
    [first] = client(tmp_path, endpoint, ("org/good", {}))
    assert (first["source"], first["revision"]) == ("download", SHA)
    directory = Path(first["directory"])
    assert {path.name for path in directory.iterdir()} == set(GOOD_FILES)  # no pickle, no subfolder, no code
    assert (directory / WEIGHTS).read_bytes() == GOOD_FILES[WEIGHTS]

    before = len(Hub.requests)
    again = client(
        tmp_path,
        endpoint,
        ("org/good", {}),
        ("org/good", {"offline": True}),
        ("org/good", {"revision": SHA, "offline": True}),
        ("org/good", {"revision": "v9", "offline": True}),
    )
    assert [answer.get("source") for answer in again] == ["cache", "cache", "cache", None]
    assert again[0]["directory"] == first["directory"]
    assert "org/good (revision v9) is not cached, and offline mode is on" in again[3]["message"]
    assert len(Hub.requests) == before  # what is cached is not asked for

    (directory / WEIGHTS).unlink()
    [incomplete] = client(tmp_path, endpoint, ("org/good", {}), HF_HUB_OFFLINE="1")
    assert "is cached but incomplete (1 file missing: model.safetensors)" in incomplete["message"]
    [completed] = client(tmp_path, endpoint, ("org/good", {}))
    assert completed["source"] == "download"


def test_a_tokenizer_comes_without_the_weights(tmp_path: Path, endpoint: str) -> None:
    before = len(Hub.requests)
    alone = {"tokenizer": True}
    offline, first, again, model, whole, refused = client(
        tmp_path,
        endpoint,
        ("org/good", alone | {"offline": True}),
        ("org/good", alone),
        ("org/good", alone | {"offline": True}),
        ("org/good", {"offline": True}),
        ("org/good", {}),
        ("org/missing", alone),
    )
    assert "the tokenizer of org/good is not cached, and offline mode is on" in offline["message"]
    assert again["directory"] == first["directory"]
    assert "is cached but incomplete (1 file missing: model.safetensors)" in model["message"]
    assert whole["source"] == "download"
    assert refused["exit"] == 3
    requests = Hub.requests[before:]
    assert sum("GET" in request and WEIGHTS in request for request in requests) == 1, "by the model, not the tokenizer"


def test_a_tokenizer_needs_no_model_beside_it(model_dir: Path) -> None:
    for name in ("config.json", WEIGHTS):
        (model_dir / name).unlink()
    assert hub.resolve_tokenizer(str(model_dir)) == model_dir
    with pytest.raises(UsageError, match="has no revision"):
        hub.resolve_tokenizer(str(model_dir), revision="v1")
    (model_dir / "tokenizer.json").unlink()
    with pytest.raises(UnavailableError, match="no tokenizer files"):
        hub.resolve_tokenizer(str(model_dir))


def test_an_id_without_owner_and_code_only_on_request(tmp_path: Path, endpoint: str) -> None:
    plain, with_code = client(tmp_path, endpoint, ("gpt2", {}), ("org/good", {"remote_code": True}))
    assert plain["source"] == "download"
    assert (Path(with_code["directory"]) / "run.py").is_file()


def test_offline_fails_at_once(tmp_path: Path, endpoint: str) -> None:
    before = len(Hub.requests)
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"TRANSFORMERS_OFFLINE": "true"}):
        [answer] = client(tmp_path, endpoint, ("org/good", {}), **environment)
        assert answer["exit"] == 3
        assert "org/good is not cached, and offline mode is on" in answer["message"]
        assert answer["seconds"] < 3
    assert len(Hub.requests) == before


def test_no_network_is_an_error_within_five_seconds(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with socket.socket() as mute:
            mute.bind(("127.0.0.1", 0))
            mute.listen()  # accepts, never answers
            silent = f"http://127.0.0.1:{mute.getsockname()[1]}"
            for address in (closed, silent, "http://no-such-host.invalid", "not-a-url"):
                start = time.perf_counter()
                [answer] = client(tmp_path, address, ("gpt2", {}))
                assert answer["exit"] == 3
                assert "gpt2 is not cached, and" in answer["message"], address
                assert "can't be reached" in answer["message"], address
                assert "tiny_dev" in answer["hint"]
                assert answer["seconds"] < 5, address
                assert time.perf_counter() - start < 10, address


def test_a_cache_that_can_not_be_written(tmp_path: Path, endpoint: str) -> None:
    home = tmp_path / "home"
    home.write_text("a file where the cache should be")
    [answer] = client(home, endpoint, ("org/good", {}))
    assert answer["exit"] == 4
    assert "model cache" in answer["message"]
