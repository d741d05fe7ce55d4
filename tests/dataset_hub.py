"""A small server that answers as the hub does, and the three data sets that prompts come from."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

HUMANEVAL, ALPACA, CNN = "openai/openai_humaneval", "tatsu-lab/alpaca", "abisee/cnn_dailymail"
COMMIT = "0123456789abcdef0123456789abcdef01234567"

Rows = list[dict[str, Any]]


def humaneval_rows(n: int = 164) -> Rows:
    return [
        {
            "task_id": f"HumanEval/{i}",
            "prompt": f'\n\ndef task_{i}(x: int) -> int:\n    """Add {i}.\n    >>> task_{i}(1)\n    {i + 1}\n    """\n',
            "canonical_solution": f"    return x + {i}\n",
            "test": f"def check(candidate):\n    assert candidate(1) == {i + 1}\n",
            "entry_point": f"task_{i}",
        }
        for i in range(n)
    ]


def alpaca_rows(n: int = 200) -> Rows:
    """Every other instruction comes with an input."""
    rows = []
    for i in range(n):
        given = f"The number is {i}.\nIt is a number." if i % 2 else ""
        rows.append(
            {"instruction": f"Write about number {i}.", "input": given, "output": "Yes.", "text": f"all of {i}"}
        )
    return rows


def cnn_rows(n: int = 120) -> Rows:
    """Articles of 5 to about 1000 words, with a character of several bytes here and there."""
    rows = []
    for i in range(n):
        words = [f"word{(i * 7 + j) % 101}" if j % 9 else "café—naïve" for j in range(5 + (i * 83) % 1000)]
        rows.append(
            {"article": f"(CNN) -- Story {i}. " + " ".join(words), "highlights": f"Story {i}.", "id": f"{i:040x}"}
        )
    return rows


def parquet(rows: Rows) -> bytes:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=40)
    return file.getvalue()


def repository(config: str, split: str, rows: Rows) -> dict[str, bytes]:
    """Files of a data set as the hub keeps them: a card that names the files of each split, and Parquet."""
    card = f"configs:\n- config_name: {config}\n  data_files:\n  - split: {split}\n    path: {config}/{split}-*\n"
    return {"README.md": f"---\n{card}---\n".encode(), f"{config}/{split}-00000-of-00001.parquet": parquet(rows)}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as streaming and a download use."""

    protocol_version = "HTTP/1.1"
    repositories: ClassVar[dict[str, dict[str, bytes] | int | None]] = {}
    """By name: files, an error status, or silence."""
    requests: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.requests.append(self.path)
        path = unquote(urlsplit(self.path).path).strip("/").removeprefix("api/")
        path = path.removeprefix("datasets/").removeprefix("models/")
        name = "/".join(path.split("/")[:2])
        rest = path.removeprefix(name).strip("/")
        files = self.repositories.get(name, 404)
        if files is None:
            time.sleep(30)
        elif isinstance(files, int):
            self.reply(files, b"{}", {"X-Error-Code": "RepoNotFound"} if files == 404 else {})
        elif rest.startswith("resolve/"):
            self.file(files, rest.split("/", 2)[2])
        elif rest.startswith("tree/"):
            self.tree(files, "".join(rest.split("/", 2)[2:]))
        else:
            siblings = [{"rfilename": file} for file in files]
            self.reply(200, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings, "tags": []}).encode(), {})

    do_HEAD = do_GET

    def tree(self, files: dict[str, bytes], folder: str) -> None:
        prefix = f"{folder}/" if folder else ""
        inside = {name.removeprefix(prefix): data for name, data in files.items() if name.startswith(prefix)}
        entries = [
            {"type": "file", "path": prefix + name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in inside.items()
            if "/" not in name
        ]
        folders = {name.split("/")[0] for name in inside if "/" in name}
        entries += [{"type": "directory", "path": prefix + name, "oid": COMMIT} for name in folders]
        self.reply(200, json.dumps(entries).encode(), {})

    def file(self, files: dict[str, bytes], name: str) -> None:
        if name not in files:
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        data = files[name]
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        asked = self.headers.get("Range")
        if asked is None:
            self.reply(200, data, headers)
            return
        first, last = asked.removeprefix("bytes=").split("-")
        part = data[int(first) : int(last) + 1 if last else len(data)]
        headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
        self.reply(206, part, headers)

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def served() -> Iterator[tuple[str, type[Hub]]]:
    """The address of a running server, and the server, which has the three data sets."""

    class Served(Hub):
        repositories: ClassVar[dict[str, dict[str, bytes] | int | None]] = {
            HUMANEVAL: repository("openai_humaneval", "test", humaneval_rows()),
            ALPACA: repository("data", "train", alpaca_rows()),
            CNN: repository("3.0.0", "test", cnn_rows()),
        }
        requests: ClassVar[list[str]] = []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Served)
    server.daemon_threads = True
    # Asked often whether to stop: shutting down is half a second of every test otherwise.
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", Served
    finally:
        server.shutdown()
        server.server_close()
