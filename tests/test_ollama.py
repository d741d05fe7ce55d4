"""``specprof load --ollama`` against a local server that speaks Ollama's protocol, well or badly."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from ollama._client import _parse_host

from command_line import Outcome, command, isolate, ok, process
from specprof.commands.ollama import DEFAULT_PROMPT, NOTE
from specprof.errors import ResourceError, UnavailableError, UsageError
from specprof.models import ollama

USAGE, UNAVAILABLE, RESOURCES = 2, 3, 4

LLAMA = {
    "name": "llama3:8b",
    "model": "llama3:8b",
    "modified_at": "2026-05-01T12:00:00.123456789+02:00",
    "size": 4661224676,
    "digest": "365c0bd3c000a25d28ddbf732fe1c6add414de7275464c4e4d1c3b5fcb5d8ad1",
    "details": {
        "parent_model": "",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "8.0B",
        "quantization_level": "Q4_0",
    },
}
PHI = LLAMA | {
    "name": "phi3:mini",
    "model": "phi3:mini",
    "size": 2176178913,
    "details": {"parameter_size": "3.8B", "quantization_level": "Q4_0"},
}
EMBEDDER = LLAMA | {"name": "nomic-embed-text:latest", "model": "nomic-embed-text:latest"}
END: dict[str, Any] = {
    "model": "llama3:8b",
    "created_at": "2026-05-01T12:00:01Z",
    "response": "",
    "done": True,
    "done_reason": "length",
    "context": [1, 2, 3],
    "total_duration": 3_500_000_000,
    "load_duration": 2_000_000_000,
    "prompt_eval_count": 16,
    "prompt_eval_duration": 250_000_000,
    "eval_count": 50,
    "eval_duration": 1_250_000_000,
}

Route = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "Fake/1", ""
    server: FakeOllama

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self.body = json.loads(self.rfile.read(length)) if length else None
        self.server.asked.append((f"{self.command} {self.path}", self.body))
        self.server.routes.get(f"{self.command} {self.path}", reply(404, b"404 page not found", "text/plain"))(self)

    def log_message(self, *_: object) -> None:
        """The tests' standard error is read by tests."""


class FakeOllama(ThreadingHTTPServer):
    """An Ollama server on a free port: what it answers can be replaced, what it was asked is kept."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[tuple[str, Any]] = []
        self.released = threading.Event()
        self.routes: dict[str, Route] = {"GET /api/version": json_reply({"version": "0.33.2"})}
        self.has(LLAMA, PHI)
        self.generates({"response": "Light "}, {"response": "scatters."}, END)

    def has(self, *models: dict[str, Any]) -> None:
        self.routes["GET /api/tags"] = json_reply({"models": list(models)})

    def generates(self, *parts: dict[str, Any]) -> None:
        lines = [json.dumps({"model": "m", "done": False} | part).encode() + b"\n" for part in parts]
        self.routes["POST /api/generate"] = chunks(*lines)

    def refuses(self, status: int, error: object) -> None:
        self.routes["POST /api/generate"] = json_reply({"error": error}, status)


def reply(status: int, content: bytes, kind: str, **headers: str) -> Route:
    def route(handler: Handler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    return route


def json_reply(document: object, status: int = 200) -> Route:
    return reply(status, json.dumps(document).encode(), "application/json; charset=utf-8")


def chunks(*pieces: bytes, whole: bool = True) -> Route:
    """A streamed answer; unless it is ``whole``, the connection closes before the end is told."""

    def route(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/x-ndjson")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for piece in pieces:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        handler.wfile.write(b"0\r\n\r\n" if whole else b"")
        handler.close_connection = True

    return route


def hang(handler: Handler) -> None:
    handler.server.released.wait(20)
    handler.close_connection = True


@pytest.fixture
def server() -> Iterator[FakeOllama]:
    fake = FakeOllama()
    threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield fake
    fake.released.set()
    fake.shutdown()
    fake.server_close()


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)
    # Reading the authorities' certificates takes longer than all else here, and nothing here is encrypted.
    monkeypatch.setattr("ssl.SSLContext.load_verify_locations", lambda *_, **__: None)
    for name in ("OLLAMA_HOST", "OLLAMA_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def load(server: FakeOllama, *arguments: str) -> Outcome:
    return ok("load", "--ollama", *arguments, "--host", server.url)


def refused(*arguments: str, code: int) -> tuple[str, str]:
    outcome = command("load", "--ollama", *arguments)
    assert outcome.code == code, outcome.err
    assert outcome.out == "" and "Traceback" not in outcome.err
    return outcome.told


# What it prints


def test_the_server_and_its_models(server: FakeOllama) -> None:
    outcome = load(server)
    assert outcome.out == (
        f"server is running at {server.url} (Ollama 0.33.2)\n"
        "\n"
        "model                               params   quant  size (GB)\n"
        "-------------------------------------------------------------\n"
        "llama3:8b                             8.0B    Q4_0        4.7\n"
        "phi3:mini                             3.8B    Q4_0        2.2\n"
        "\n"
        f"note       : {NOTE}\n"
    )
    assert outcome.err == f"checking server at {server.url}\n"
    assert [what for what, _ in server.asked] == ["GET /api/tags", "GET /api/version"]


def test_the_server_and_its_models_as_json(server: FakeOllama) -> None:
    document = load(server, "--json", "-q").document
    assert document.pop("specprof_version")
    assert document == {
        "schema": "specprof.ollama/1",
        "note": NOTE,
        "host": server.url,
        "server_version": "0.33.2",
        "models": [
            {
                "model": "llama3:8b",
                "parameter_size": "8.0B",
                "quantization_level": "Q4_0",
                "size_bytes": 4661224676,
            },
            {
                "model": "phi3:mini",
                "parameter_size": "3.8B",
                "quantization_level": "Q4_0",
                "size_bytes": 2176178913,
            },
        ],
        "generation": None,
    }


def test_a_generation_and_its_speed(server: FakeOllama) -> None:
    outcome = load(server, "llama3:8b", "--prompt", "Explain attention", "--max-tokens", "50")
    table, _, rest = outcome.out.partition("\n\nmodel      : ")
    assert "phi3:mini" in table
    assert rest == (
        "llama3:8b\n"
        "prompt     : 16 tokens, 64.0 tokens/s\n"
        "generated  : 50 tokens, 40.0 tokens/s, at most 50\n"
        "loading    : 2.00 s\n"
        "total      : 3.50 s\n"
        'output     : "Light scatters."\n'
        "\n"
        f"note       : {NOTE}\n"
    )
    assert "generating up to 50 tokens with llama3:8b" in outcome.err
    what, body = server.asked[-1]
    assert what == "POST /api/generate"
    assert (body["model"], body["prompt"], body["stream"]) == ("llama3:8b", "Explain attention", True)
    assert body["options"] == {"num_predict": 50, "temperature": 0, "seed": 0}
    assert {what for what, _ in server.asked} == {"GET /api/tags", "GET /api/version", "POST /api/generate"}


def test_a_generation_as_json(server: FakeOllama) -> None:
    document = load(server, "--model", "llama3:8b", "--json").document
    assert document["note"] == NOTE and len(document["models"]) == 2
    assert document["generation"] == {
        "model": "llama3:8b",
        "prompt": DEFAULT_PROMPT,
        "max_tokens": 50,
        "text": "Light scatters.",
        "thinking": None,
        "finish_reason": "length",
        "prompt_tokens": 16,
        "prompt_cached_tokens": None,
        "prompt_seconds": 0.25,
        "prompt_tokens_per_second": 64.0,
        "generated_tokens": 50,
        "generation_seconds": 1.25,
        "generated_tokens_per_second": 40.0,
        "load_seconds": 2.0,
        "total_seconds": 3.5,
    }


@pytest.mark.parametrize("missing", [{"prompt_eval_count": 0, "prompt_eval_duration": 0}, None])
def test_a_cached_prompt_has_no_speed(server: FakeOllama, missing: dict[str, int] | None) -> None:
    server.generates(
        {"response": "Hi"}, {key: END[key] for key in END if not key.startswith("prompt")} | (missing or {})
    )
    assert "prompt     : - tokens, - tokens/s\n" in load(server, "llama3:8b").out
    facts = load(server, "llama3:8b", "--json").document["generation"]
    assert facts["prompt_tokens"] is facts["prompt_seconds"] is facts["prompt_tokens_per_second"] is None
    assert facts["generated_tokens_per_second"] == 40.0


def test_tokens_from_the_cache_do_not_count_as_speed(server: FakeOllama) -> None:
    server.generates(END | {"prompt_eval_cached_count": 12})
    assert "prompt     : 16 tokens, 16.0 tokens/s, 12 of them cached\n" in load(server, "llama3:8b").out
    server.generates(END | {"prompt_eval_cached_count": 16})
    assert "prompt     : 16 tokens, - tokens/s, 16 of them cached\n" in load(server, "llama3:8b").out


@pytest.mark.parametrize("value", [-5, 2**80, 10**400])
def test_a_duration_that_can_not_be(server: FakeOllama, value: int) -> None:
    server.generates(END | {"eval_duration": value, "total_duration": value, "prompt_eval_cached_count": "x"})
    facts = load(server, "llama3:8b", "--json").document["generation"]
    assert facts["generation_seconds"] is facts["generated_tokens_per_second"] is facts["total_seconds"] is None
    assert facts["generated_tokens"] == 50 and facts["prompt_tokens_per_second"] == 64.0


def test_a_model_that_thinks_first(server: FakeOllama) -> None:
    server.generates({"thinking": "Hm,"}, {"thinking": " blue."}, END)
    outcome = load(server, "llama3:8b")
    assert 'thinking   : "Hm, blue."\noutput     : ""\n' in outcome.out
    assert load(server, "llama3:8b", "--json").document["generation"]["thinking"] == "Hm, blue."


def test_a_server_without_models(server: FakeOllama) -> None:
    server.has()
    assert "it has no models; get one with `ollama pull llama3:8b`\n" in load(server).out
    assert load(server, "--json").document["models"] == []


def test_a_server_that_tells_little(server: FakeOllama) -> None:
    del server.routes["GET /api/version"]
    details = {"parameter_size": "", "quantization_level": ""}
    server.has({"model": "cloud", "details": details}, {"model": "m", "size": 0}, {"size": 10**9})
    lines = load(server).out.splitlines()
    assert lines[0] == f"server is running at {server.url}"
    assert [line.split() for line in lines[4:7]] == [
        ["cloud", "-", "-", "-"],
        ["m", "-", "-", "-"],
        ["-"] * 3 + ["1.0"],
    ]
    document = load(server, "--json").document
    assert document["server_version"] is None
    assert set(document["models"][1].values()) == {"m", None}


def test_a_long_name_widens_the_table(server: FakeOllama) -> None:
    name = "hf.co/someone/Some-Very-Long-Model-Name-GGUF:Q4_K_M"
    server.has(PHI, LLAMA | {"model": name})
    header, rule, *rows = load(server).out.splitlines()[2:6]
    assert len(header) == len(rule) == len(rows[0]) == len(rows[1])
    assert rows[1].split() == [name, "8.0B", "Q4_0", "4.7"]


def test_foreign_text_commands_no_terminal(server: FakeOllama) -> None:
    evil = "[bold]x[/]\x1b[31m\n\u202e\x85"
    server.routes["GET /api/version"] = json_reply({"version": evil})
    server.has(LLAMA | {"model": evil, "details": {"parameter_size": evil, "quantization_level": evil}})
    server.generates({"response": evil, "thinking": evil}, END)
    text = load(server, "llama3:8b").out
    assert all(c.isprintable() or c == "\n" for c in text)
    assert text.count("[bold]x[/]") == 6
    assert len(text.splitlines()) == 15
    document = load(server, "llama3:8b", "--json").document
    assert document["server_version"] == document["models"][0]["model"] == document["generation"]["text"] == evil
    server.refuses(500, evil)
    error, _ = refused("llama3:8b", "--host", server.url, code=RESOURCES)
    assert "[bold]x[/]" in error and error.isprintable()


# Who is asked


def test_where_the_server_is(server: FakeOllama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{server.server_port}/")
    assert ok("load", "--ollama", "--json").document["host"] == server.url
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1")
    assert load(server, "--json").document["host"] == server.url
    assert "http://127.0.0.1:1: " in refused(code=RESOURCES)[0]


@pytest.mark.parametrize(
    "host",
    [
        "1.2.3.4", ":56789", "1.2.3.4:56789", "http://1.2.3.4", "https://1.2.3.4", "https://1.2.3.4:56789",
        "example.com", "example.com:56789", "http://example.com", "https://example.com/", "example.com:56789/path/",
        "https://e.com/a/b", "[0001:002:003:0004::1]", "[::1]:56789/path", "https://[::1]", "gpu_box", "gpu-1.",
        "0.0.0.0",
    ],
)  # fmt: skip
def test_an_address_is_read_as_the_library_reads_it(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _parse_host(host).replace("0001:002:003:0004::1", "1:2:3:4::1")
    assert ollama.server_url(host) == (expected if host[0] != ":" else "http://localhost:56789")
    monkeypatch.setenv("OLLAMA_HOST", host)
    assert ollama.server_url(None) == ollama.server_url(host)
    # The library, given what was read, changes nothing about it.
    assert _parse_host(ollama.server_url(host)) == ollama.server_url(host)


def test_without_a_word_it_is_the_local_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ollama.server_url(None) == "http://localhost:11434"
    monkeypatch.setenv("OLLAMA_HOST", "")
    assert ollama.server_url(None) == "http://localhost:11434"


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("", "names no host"),
        ("ht!tp://", "scheme"),
        ("ftp://localhost", "scheme"),
        ("file:///etc/passwd", "scheme"),
        ("http://", "names no host"),
        ("http:///path", "names no host"),
        (":", "names no host"),
        ("a..b", "names no host"),
        ("a" * 64, "names no host"),
        ("münchen", "names no host"),
        ("localhost:0", "not a number from 1 to 65535"),
        ("localhost:65536", "not a number from 1 to 65535"),
        ("localhost:-1", "not a number from 1 to 65535"),
        ("localhost:http", "not a number from 1 to 65535"),
        ("[::1", "IPv6"),
        ("[g:u]", "g:u"),
        ("local host", "space"),
        ("local\nhost", "not printable"),
        ("\udcff", "not printable"),
        ("localhost?x=1", "more than host"),
        ("http://localhost/#x", "more than host"),
        ("http://me:secret@localhost", "user name"),
    ],
)
def test_a_malformed_address(host: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error, hint = refused("--host", host, code=USAGE)
    assert error.startswith("--host ") and "is no address of a server: " in error
    assert reason in error
    assert "http://localhost:11434" in hint and "secret" not in error
    if host:
        monkeypatch.setattr("os.environ", {"OLLAMA_HOST": host})
        with pytest.raises(UsageError, match="OLLAMA_HOST"):
            ollama.server_url(None)


def test_no_proxy_and_no_redirect(server: FakeOllama, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "socks5://127.0.0.1:1")
    assert "llama3:8b" in load(server, "llama3:8b").out
    server.asked.clear()
    elsewhere = FakeOllama()
    elsewhere.routes["GET /api/tags"] = reply(301, b"", "text/html", Location=f"{server.url}/api/tags")
    threading.Thread(target=elsewhere.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    error, _ = refused("--host", elsewhere.url, code=RESOURCES)
    elsewhere.shutdown()
    elsewhere.server_close()
    assert f"with HTTP 301, text/html from Fake/1, pointing to {server.url}/api/tags" in error
    assert server.asked == []


# No server, or another one


def test_no_server() -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        for arguments in ((), ("llama3:8b",)):
            error, hint = refused(*arguments, "--host", url, code=RESOURCES)
            assert error.startswith(f"no server answers at {url}: ") and "refused" in error
            assert "`ollama serve`" in hint


def test_no_such_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", unknown)
    error, hint = refused("--host", "http://nowhere.invalid:8080", code=RESOURCES)
    assert "no server answers at http://nowhere.invalid:8080" in error and "not known" in error
    assert "--host" in hint


@pytest.mark.skipif(sys.platform != "linux", reason="other systems answer when the queue of connections is full")
def test_a_host_that_does_not_take_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ollama, "CONNECT_SECONDS", 0.2)
    with closing(socket.socket()) as busy, closing(socket.socket()) as first:
        busy.bind(("127.0.0.1", 0))
        busy.listen(0)
        first.connect(busy.getsockname())
        error, hint = refused("--host", f"127.0.0.1:{busy.getsockname()[1]}", code=RESOURCES)
    assert "no server answers" in error and "timed out" in error
    assert "`ollama serve`" in hint


HTML = b"<!doctype html><title>It works!</title>"


@pytest.mark.parametrize(
    ("route", "answer"),
    [
        (reply(200, HTML, "text/html; charset=utf-8"), "HTTP 200, text/html from Fake/1"),
        (reply(404, HTML, "text/html"), "HTTP 404, text/html from Fake/1"),
        (reply(404, b'"not found"', "application/json"), "HTTP 404, application/json from Fake/1"),
        (reply(401, b'{"error": {"code": 7}}', "application/json"), "HTTP 401, application/json"),
        (reply(500, b"", "text/plain"), "HTTP 500, text/plain"),
        (reply(200, b"", "application/json"), "HTTP 200, application/json"),
        (reply(200, b"\xff\xfe{", "application/json"), "HTTP 200, application/json"),
        (reply(200, b"[" * 100_000, "application/json"), "HTTP 200, application/json"),
        (json_reply({"object": "list", "data": [{"id": "gpt-2"}]}), "HTTP 200, application/json"),
        (json_reply({"models": 7}), "HTTP 200, application/json"),
        (json_reply({"models": [{"model": 7}]}), "HTTP 200, application/json"),
        (json_reply(["llama3:8b"]), "HTTP 200, application/json"),
        (json_reply(None), "HTTP 200, application/json"),
    ],
)
def test_a_server_that_is_not_ollama(server: FakeOllama, route: Route, answer: str) -> None:
    server.routes["GET /api/tags"] = route
    error, hint = refused("llama3:8b", "--host", server.url, code=RESOURCES)
    assert f"{server.url} is not an Ollama server: it answered /api/tags with {answer}" in error
    assert "--host" in hint and ollama.DEFAULT_URL in hint
    assert "POST /api/generate" not in dict(server.asked)


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.6\r\n", b""])
def test_something_that_does_not_speak_http(greeting: bytes) -> None:
    def greet(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with closing(connection):
            connection.recv(1)
            connection.sendall(greeting)

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=greet, args=(listener,))
        thread.start()
        error, _ = refused("--host", f"127.0.0.1:{listener.getsockname()[1]}", code=RESOURCES)
        thread.join()
    assert "does not answer as a web server does" in error


@pytest.mark.parametrize("version", [json_reply({"v": 1}), json_reply({"version": 7}), reply(200, HTML, "text/html")])
def test_a_version_that_is_none(server: FakeOllama, version: Route) -> None:
    server.routes["GET /api/version"] = version
    assert load(server, "--json").document["server_version"] is None


# A server that fails


def test_a_model_it_does_not_have(server: FakeOllama) -> None:
    server.refuses(404, "model 'llama3' not found")
    error, hint = refused("llama3", "--host", server.url, code=UNAVAILABLE)
    assert error == f"the server at {server.url} has no model 'llama3'"
    assert hint == "`ollama pull llama3`, or take one it has: llama3:8b"
    assert refused("qwen", "--host", server.url, code=UNAVAILABLE)[1].endswith("llama3:8b, phi3:mini")
    server.has()
    assert refused("llama3", "--host", server.url, code=UNAVAILABLE)[1] == "`ollama pull llama3`"


def test_a_model_that_generates_no_text(server: FakeOllama) -> None:
    server.has(EMBEDDER)
    server.refuses(400, '"nomic-embed-text" does not support generate')
    error, hint = refused("nomic-embed-text", "--host", server.url, code=UNAVAILABLE)
    assert "generates no text" in error and "does not support generate" in error and "embedding" in hint


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (500, "model requires more system memory (9.2 GiB) than is available (4.1 GiB)"),
        (400, "invalid options"),
        (401, "unauthorized"),
        (503, "server busy, please try again.  maximum pending requests exceeded"),
    ],
)
def test_a_server_that_refuses_to_generate(server: FakeOllama, status: int, said: str) -> None:
    server.refuses(status, said)
    error, hint = refused("llama3:8b", "--host", server.url, code=RESOURCES)
    assert error == f"the server at {server.url} failed to generate: {' '.join(said.split())}"
    assert "log" in hint


def test_an_error_after_the_first_tokens(server: FakeOllama) -> None:
    server.generates({"response": "Light"}, {"error": "an error was encountered while running the model: EOF"})
    error, _ = refused("llama3:8b", "--host", server.url, code=RESOURCES)
    assert "failed to generate: an error was encountered while running the model: EOF" in error


TOKEN = b'{"response": "Light", "done": false}\n'


@pytest.mark.parametrize(
    "route",
    [
        chunks(TOKEN, whole=False),
        chunks(TOKEN),
        chunks(TOKEN, TOKEN[:20]),
        chunks(TOKEN, TOKEN[:20], whole=False),
        chunks(),
        chunks(whole=False),
        chunks(TOKEN, b"[1]\n"),
        chunks(TOKEN, b'{"done": "perhaps"}\n'),
        chunks(b'{"error": {"code": 7}}\n'),
        reply(200, HTML, "text/html"),
        reply(500, b"[]", "application/json"),
        lambda handler: handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{") and None,
    ],
)
def test_an_answer_that_breaks_off(server: FakeOllama, route: Route) -> None:
    def answer(handler: Handler) -> None:
        route(handler)
        handler.close_connection = True

    server.routes["POST /api/generate"] = answer
    error, hint = refused("llama3:8b", "--host", server.url, code=RESOURCES)
    assert error == f"the answer of the server at {server.url} broke off or makes no sense"
    assert "log" in hint


@pytest.mark.parametrize("path", ["GET /api/tags", "POST /api/generate"])
def test_a_silent_server(server: FakeOllama, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ollama, "STATUS_SECONDS", 0.3)
    monkeypatch.setattr(ollama, "GENERATE_SECONDS", 0.3)
    server.routes[path] = hang
    error, hint = refused("llama3:8b", "--host", server.url, code=RESOURCES)
    assert error == f"the server at {server.url} was silent for 0.3 s"
    assert "try again" in hint


def test_silence_after_the_first_token(server: FakeOllama, monkeypatch: pytest.MonkeyPatch) -> None:
    def stall(handler: Handler) -> None:
        chunks(TOKEN, whole=False)(handler)
        hang(handler)

    monkeypatch.setattr(ollama, "GENERATE_SECONDS", 0.3)
    server.routes["POST /api/generate"] = stall
    assert "was silent for 0.3 s" in refused("llama3:8b", "--host", server.url, code=RESOURCES)[0]


def test_a_slow_server_is_waited_for(server: FakeOllama, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than the limit in all, never for as long at once."""

    def slow(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/x-ndjson")
        handler.end_headers()
        for _ in range(6):
            handler.server.released.wait(0.1)
            handler.wfile.write(TOKEN)
        handler.wfile.write(json.dumps(END).encode())
        handler.close_connection = True

    monkeypatch.setattr(ollama, "GENERATE_SECONDS", 0.4)
    server.routes["POST /api/generate"] = slow
    assert load(server, "llama3:8b", "--json").document["generation"]["text"] == "Light" * 6


def test_control_c_while_it_generates(server: FakeOllama) -> None:
    generating = threading.Event()

    def generate(handler: Handler) -> None:
        generating.set()
        hang(handler)

    server.routes["POST /api/generate"] = generate
    child = process("load", "--ollama", "llama3:8b", "--host", server.url)
    assert generating.wait(20)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=20)
    assert child.returncode == 130
    assert out == "" and "Traceback" not in err


# Flags


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("m", "--max-tokens", "0"), "--max-tokens 0 is less than 1"),
        (("m", "--max-tokens", "-3"), "--max-tokens -3 is less than 1"),
        (("m", "--max-tokens", "many"), "--max-tokens"),
        (("m", "--prompt", " \n"), "nothing but white space"),
        (("m", "--prompt", "\udcff"), "half of a surrogate pair"),
        (("",), "the model name '' is blank"),
        (("a\x1bb",), "not printable"),
        (("a\udcff",), "not printable"),
        (("m", "--model", "m"), "MODEL and --model are the same"),
        (("--prompt", "Hi"), "--prompt needs a MODEL"),
        (("--max-tokens", "5"), "--max-tokens needs a MODEL"),
        (("--pair", "tiny_dev"), "--pair does not apply"),
        (("--draft", "a", "--target", "b"), "--draft, --target does not apply"),
        (("--random-weights",), "--random-weights does not apply"),
        (("--dtype", "int4"), "--dtype does not apply"),
        (("--device", "cpu"), "--device does not apply"),
        (("--revision", "main"), "--revision does not apply"),
        (("--offline",), "--offline does not apply"),
        (("--trust-remote-code",), "--trust-remote-code does not apply"),
        (("--n-tokens", "3"), "--n-tokens does not apply"),
        (("--list",), "--list does not apply"),
    ],
)
def test_flags_that_can_not_be_meant(server: FakeOllama, arguments: tuple[str, ...], error: str) -> None:
    assert error in refused(*arguments, "--host", server.url, code=USAGE)[0]
    assert server.asked == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("gpt2", "--prompt", "Hi"), "--prompt needs --ollama"),
        (("gpt2", "--max-tokens", "5"), "--max-tokens needs --ollama"),
        (("--list", "--host", "localhost"), "--host needs --ollama"),
        (("gpt2", "--model", "gpt2"), "MODEL and --model are the same"),
        (("gpt2", "--pair", "tiny_dev"), "one model and a pair exclude each other"),
        (("gpt2", "--draft", "a", "--target", "b"), "one model and a pair exclude each other"),
    ],
)
def test_flags_that_need_ollama_and_models_given_twice(arguments: tuple[str, ...], error: str) -> None:
    outcome = command("load", *arguments)
    assert outcome.code == USAGE and outcome.out == "" and error in outcome.told[0]


# The library


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ollama", None)
    error, hint = refused(code=RESOURCES)
    assert error == "--ollama needs the ollama library"
    assert hint == "pip install 'specprof[ollama]'"


def test_the_library_is_loaded_when_a_server_is_asked() -> None:
    program = "import specprof.models.ollama, specprof.commands, sys; print({'ollama', 'httpx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_as_a_library(server: FakeOllama) -> None:
    status = ollama.status(server.url)
    assert status.version == "0.33.2" and [served.model for served in status.models] == ["llama3:8b", "phi3:mini"]
    generation = ollama.generate(server.url, "llama3:8b", "Why?", 7)
    assert generation.text == "Light scatters." and generation.generated_tokens_per_second == 40.0
    server.refuses(404, "model 'x' not found")
    with pytest.raises(UnavailableError):
        ollama.generate(server.url, "x", "Why?", 7)
    del server.routes["GET /api/tags"]
    with pytest.raises(ResourceError):
        ollama.status(server.url)
