"""Files of results, prompts and settings: whole ones, and what can become of them."""

from __future__ import annotations

import functools
import json
import random
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fuzz import values
from large_run import CURVE
from large_run import prompts as some_prompts
from large_run import run as made_run
from sample_feed import hostile_run, sample_run
from sample_store import AR, ELSEWHERE, SD, cell, config, failure, generation, machine, session, story
from sample_store import write as write_store
from specprof.experiments.records import Record
from specprof.profiling.events import Event, to_json_line

RUN_ID = "20261121-101500-7f3c"

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 0.0, -0.5, 0.5, 1.5, -0.0, 1e-300, 1e99, 1e100, 1e308, -1e308, 2**31, 2**53 + 1,
    2**63 - 1, 2**63, -(2**63), 10**30, 10**400, float("nan"), float("inf"), float("-inf"), "", " ", "0", "-", "AR",
    "SD-K4", "SD-K0", "SD-K", "auto", "eos", "length", "code", "é", "\ud800", "\x00", *values.PAYLOADS, "x" * 2000,
    [], [[]], [None], [1, 2, 3], [-1], [1.5], {}, {"": None}, {"x": {"y": [1]}}, ["x"] * 50, [True], {"model": 3},
    [0.1, 0.2], [0] * 300,
)  # fmt: skip


def _deep(depth: int) -> str:
    return "[" * depth + "]" * depth


@functools.cache
def run_lines(which: str) -> tuple[str, ...]:
    """Lines of a sound run."""
    makers: dict[str, Callable[[], Iterable[Event]]] = {
        "greedy": lambda: made_run(some_prompts(3), num_tokens=16, curve=CURVE),
        "sampled": lambda: sample_run(3, num_tokens=16),
        "auto": lambda: made_run(some_prompts(3), k="auto", num_tokens=16),
        "hostile": lambda: hostile_run(1),
        "alone": lambda: made_run(some_prompts(2), baseline=False, num_tokens=12),
        "one": lambda: made_run(some_prompts(1), k=1, num_tokens=6),
        "more": lambda: made_run(some_prompts(6), num_tokens=16, repetitions=2, joules=0.5),
    }
    return tuple(map(to_json_line, makers[which]()))


RUNS = ("greedy", "sampled", "auto", "hostile", "alone", "one", "more")


@functools.cache
def store_lines(which: str) -> tuple[str, ...]:
    """Lines of a sound results store."""
    other = config(8, "conversation")
    records: dict[str, list[Record]] = {
        "story": story(),
        "failed": [*story(), cell(other), failure(9, other)],
        "machines": [*story(), machine(ELSEWHERE), cell(SD, ELSEWHERE), generation(10, SD, machine_class=ELSEWHERE)],
        "baseline": [session(), machine(), cell(AR), generation(1, AR)],
        "empty": [session()],
    }
    with tempfile.TemporaryDirectory() as folder:
        path = write_store(Path(folder), records[which])
        return tuple(path.read_text("utf-8").splitlines(keepends=True))


STORES = ("story", "failed", "machines", "baseline", "empty")


# --- what can become of lines of JSON


def damaged_lines(draw: random.Random, lines: tuple[str, ...]) -> bytes:
    """Mutated in one to three ways; sometimes in none."""
    data = list(lines)
    for _ in range(draw.choice((0, 1, 1, 1, 1, 2, 3))):
        draw.choice(_LINE_MUTATIONS)(draw, data)
    text = "".join(data).encode("utf-8", "surrogatepass")
    return draw.choice(_BYTE_MUTATIONS)(draw, text) if draw.random() < 0.25 else text


def _change_value(draw: random.Random, lines: list[str]) -> None:
    _edit(draw, lines, lambda holder, key: holder.__setitem__(key, draw.choice(ODD)))


def _remove_key(draw: random.Random, lines: list[str]) -> None:
    _edit(draw, lines, lambda holder, key: holder.__delitem__(key))


def _add_key(draw: random.Random, lines: list[str]) -> None:
    def add(holder: Any, key: Any) -> None:
        if isinstance(holder, dict):
            holder[draw.choice((values.word(draw), "new", "event", "kind", "schema"))] = draw.choice(ODD)
        else:
            holder.insert(key, draw.choice(ODD))

    _edit(draw, lines, add)


def _swap_values(draw: random.Random, lines: list[str]) -> None:
    """Of two keys of one object: right values in wrong places."""

    def swap(holder: Any, key: Any) -> None:
        other = draw.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        holder[key], holder[other] = holder[other], holder[key]

    _edit(draw, lines, swap)


def _edit(draw: random.Random, lines: list[str], change: Callable[[Any, Any], None]) -> None:
    if not lines:
        return
    # The first lines say what everything else means, the last how it ended.
    number = draw.choice((0, 0, len(lines) - 1, draw.randrange(len(lines)), draw.randrange(len(lines))))
    try:
        document = json.loads(lines[number])
    except ValueError:
        return
    places = list(_places(document))
    if places:
        change(*draw.choice(places))
        lines[number] = json.dumps(document) + "\n"


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every holder and key of a document; of long lists only some."""
    if isinstance(value, dict):
        return [(value, key) for key in value] + [place for part in value.values() for place in _places(part)]
    if isinstance(value, list):
        some = list(range(len(value)))[:3]
        return [(value, index) for index in some] + [place for index in some for place in _places(value[index])]
    return []


def _remove_line(draw: random.Random, lines: list[str]) -> None:
    if lines:
        del lines[draw.randrange(len(lines))]


def _repeat_line(draw: random.Random, lines: list[str]) -> None:
    if lines:
        lines.insert(draw.randrange(len(lines) + 1), draw.choice(lines))


def _move_line(draw: random.Random, lines: list[str]) -> None:
    if lines:
        lines.insert(draw.randrange(len(lines)), lines.pop(draw.randrange(len(lines))))


def _shuffle(draw: random.Random, lines: list[str]) -> None:
    rest = lines[1:]
    draw.shuffle(rest)
    lines[1:] = rest


def _insert_other(draw: random.Random, lines: list[str]) -> None:
    """Another run's lines in between, as of two programs that wrote to one file."""
    other = run_lines(draw.choice(RUNS)) if draw.random() < 0.6 else store_lines(draw.choice(STORES))
    begin = draw.randrange(len(other))
    some = other[begin : begin + draw.choice((1, 3, 30))]
    for line in some:
        lines.insert(draw.randrange(len(lines) + 1), line)


def _insert_rubbish(draw: random.Random, lines: list[str]) -> None:
    rubbish = draw.choice(
        ("\n", "\n\n", "{}\n", "[]\n", "null\n", "3\n", '"x"\n', "{\n", "not JSON\n", _deep(5000) + "\n",
         '{"event":' + _deep(2000) + "}\n", '{"kind":' + "[" * 200_000 + "\n", '{"event":"Later","x":1}\n',
         '{"kind":"later","x":1}\n', "\ufeff\n", "\x00\n", "9" * 5000 + "\n", '{"event":"Round"}\n')
    )  # fmt: skip
    lines.insert(draw.randrange(len(lines) + 1), rubbish)


def _keep_beginning(draw: random.Random, lines: list[str]) -> None:
    del lines[draw.randrange(len(lines) + 1) :]


_LINE_MUTATIONS = (
    *(_change_value,) * 8,
    *(_remove_key,) * 3,
    *(_swap_values,) * 2,
    _add_key,
    _remove_line,
    _repeat_line,
    _move_line,
    _shuffle,
    _insert_other,
    _insert_rubbish,
    _keep_beginning,
)


def _cut(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _cut_in_front(draw: random.Random, data: bytes) -> bytes:
    return data[draw.randrange(len(data) + 1) :]


def _flip(draw: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 3, 20))):
        if changed:
            changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def _insert(draw: random.Random, data: bytes) -> bytes:
    place = draw.randrange(len(data) + 1)
    odd = draw.choice((b"\x00", b"\xff", b"\xef\xbb\xbf", b"\r", b"\n", b"\xed\xa0\x80", b'"', b"}", b"\x1b[31m"))
    return data[:place] + odd + data[place:]


_BYTE_MUTATIONS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _cut,
    _cut,
    _cut_in_front,
    _flip,
    _insert,
    lambda draw, data: b"\xef\xbb\xbf" + data,
    lambda draw, data: data.decode("utf-8", "replace").encode("utf-16"),
    lambda draw, data: data.replace(b"\n", b"\r\n"),
    lambda draw, data: b"",
)


# --- prompts


def prompt_file(draw: random.Random) -> tuple[str, bytes]:
    """A name and what it holds."""
    name = draw.choice(("p.json", "p.jsonl", "p.txt", "p.ndjson", "P.JSON", "p", "p q \u00e9.json", "p.md", "-p.txt"))
    match draw.randrange(6):
        case 0:
            return name, draw.choice(_PROMPT_BYTES)
        case 1:
            return name, draw.randbytes(draw.choice((1, 10, 300)))
        case _:
            items = [_prompt(draw) for _ in range(draw.choice((0, 1, 1, 2, 3, 5)))]
            data = _written(draw, items, lines=not name.lower().endswith(".json"))
            return name, draw.choice(_BYTE_MUTATIONS)(draw, data) if draw.random() < 0.2 else data


def _prompt(draw: random.Random) -> Any:
    if draw.random() < 0.25:
        return draw.choice(ODD)
    text = draw.choice(("Once upon a time", "def add(a, b):", "word " * 40, values.anything(draw), values.word(draw)))
    if draw.random() < 0.3:
        return text
    item: dict[str, Any] = {draw.choice(("text", "prompt", "raw_text", "raw_text", "Text")): text}
    if draw.random() < 0.5:
        item["prompt_id"] = draw.choice(("a", "b", "a", values.anything(draw), draw.choice(ODD)))
    if draw.random() < 0.5:
        item["domain"] = draw.choice(("code", "conversation", "summarization", "mine", values.anything(draw)))
    if draw.random() < 0.3:
        item[draw.choice(("token_count", "text", "domain", "prompt_id", "new"))] = draw.choice(ODD)
    return item


def _written(draw: random.Random, items: list[Any], *, lines: bool) -> bytes:
    plain = draw.random() < 0.5
    if lines:
        text = "".join(json.dumps(item, ensure_ascii=plain) + "\n" for item in items)
    else:
        text = json.dumps(items, ensure_ascii=plain, indent=draw.choice((None, 1)))
    return text.encode("utf-8", "surrogatepass")


_PROMPT_BYTES = (
    b"", b" ", b"\n\n", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"{}", b"[]", b"null", b"3", b'"one"', b"[[[]]]", b"{",
    b'["a"', b'["a", ]', b'{"text": "a"}{"text": "b"}', b'{"text": "a", "text": "b"}', b'[{"text": 3}]',
    b'["\\ud83d"]', b'["\\u0000"]', b'["a\\u202eb"]', ("[" * 100_000).encode(), _deep(900).encode(),
    b"[" + b"9" * 6000 + b"]", b"[1e999]", b"[NaN]", "é".encode("latin1"), "é".encode("utf-16"), "x\u2028y".encode(),
    b'{"text": "' + b"a " * 3000 + b'"}', b"a\r\nb\r\n", b'[{"text": "x", "domain": "' + b"d" * 3000 + b'"}]',
    b'[{"text": "x", "token_count": 99999999999999999999999999}]', "\U0001f468\u200d\U0001f469".encode() * 50,
    b'[{"text": "<|endoftext|><|end|></s>"}]', b"\x1b]0;pwned\x07", b'[{"prompt_id": "[bold]", "text": "a"}]',
)  # fmt: skip


# --- YAML and TOML

_SETTINGS: dict[str, tuple[str, ...]] = {
    "pairs": ("tiny_dev", "[tiny_dev]", "[tiny_dev, tiny_cross]", "nope", "[]", "[1]", "tiny_dev,tiny_dev"),
    "draft": ("tiny_dev/draft", "./x", "''", "3"),
    "target": ("tiny_dev/target", "./x", "''", "[a]"),
    "k": ("4", "[1, 2]", "1-8", "'1-16*2'", "auto", "[auto, 2]", "-1", "1.5", "1-1000", "[[1]]", "0", "1e3", "09"),
    "k_max": ("4", "0", "auto", "1.0", "99999999999999999999"),
    "domains": ("code", "[code, conversation]", "nope", "[]", "null", "[null]"),
    "temperatures": ("0", "[0, 0.8]", "0-1+0.5", ".inf", ".nan", "-1", "1e-9", "[x]", "0-1+1e-9", "1e99"),
    "drafters": ("model", "[model, ngram]", "layerskip", "self", "random", "oracle", "[]"),
    "draft_layers": ("1", "0", "99", "x"),
    "draft_threshold": ("0.4", "1.1", "-0", ".nan"),
    "vocab_method": ("auto", "tli", "slem", "bogus"),
    "prompts": ("p.json", "nope.json", "''", ".", "/dev/null"),
    "num_prompts": ("1", "0", "null", "1e3", "9999999999999999999999"),
    "repetitions": ("1", "0", "-1", "true", "99999999999999999999999999999"),
    "max_new_tokens": ("8", "0", "1.0", "'8'"),
    "top_k": ("0", "5", "-1"),
    "top_p": ("1", "0.9", "0", "2"),
    "seed": ("0", "-1", "9223372036854775808", "0x10", "0o17", "1_000"),
    "warmup": ("0", "-1"),
    "dtype": ("float32", "int4", "float12", "null"),
    "device": ("cpu", "cuda", "abacus", "3"),
    "device_map": ("auto", "x"),
    "forward": ("auto", "native", "own", "hf", "x"),
    "engine": ("auto", "eager", "static", "graph", "x"),
    "compile": ("true", "no", "maybe"),
    "ignore_eos": ("true", "on", "1"),
    "detail": ("yes", "y"),
    "deterministic": ("true", "'true'"),
    "chat_template": ("auto", "off", "false", "on"),
    "random_weights": ("true", "false"),
    "scale_layers": ("1", "0"),
    "synthetic_acceptance": ("0.5", "2"),
    "trust_remote_code": ("true",),
    "K": ("4",),
    "<<": ("{k: 4}", "*x"),
    "unknown": ("1",),
    "\x1b[31mpwned": ("1",),
    values.SCRIPT: ("1",),
}

_YAML = (
    "", "\n", "---\n", "---\nk: 1\n---\nk: 2\n", "- 1\n", "k\n", "k: &x [1]\ntemperatures: *x\n", "k: *nope\n",
    "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b]\nk: [*c,*c,*c]\n",
    "k: &x [*x]\n", "!!python/object/apply:os.system ['touch pwned']\n",
    "k: !!python/object/apply:os.system ['touch pwned']\n",
    "k: !!python/name:os.system\n", "k: !!binary aGk=\n", "k: !!set {1, 2}\n", "k: !<tag:yaml.org,2002:int> 4\n",
    "k: !!int x\n", "k: !!float [1]\n", "!!omap\n- k: 1\n", "? [k]\n: 1\n", "? {k: 1}\n: 1\n", "k: 1\nk: 2\n", "k: [1\n",  # noqa: E501
    "k: {a: {b: {c: {d: {e: {f: {g: {h: {i: 1}}}}}}}}}\n", "k: " + "[" * 3000, "k: '" + "x" * 3000 + "'\n", "\tk: 1\n",
    "k: |\n  1\n  2\n", "k: >-\n  1\n", "k: 2001-01-01\n", "k: 1:30\n", "k: =\n", "k: ~\n", "~: 1\n", "k: \x00\n",
    "k: \ud800\n", "k: \u2028 1\n", "%YAML 9.9\n---\nk: 1\n", "%TAG ! tag:x,2000:\n---\n!y k: 1\n", "k: 1 # \x1b[31m\n",
    "k: 0x7fffffffffffffff\n", "k: " + "9" * 5000 + "\n", "k: 1" + ",1" * 4000 + "\n", "#" * 300_000,
)  # fmt: skip


def yaml_file(draw: random.Random) -> bytes:
    if draw.random() < 0.35:
        data = draw.choice(_YAML).encode("utf-8", "surrogatepass")
    else:
        names = draw.sample(list(_SETTINGS), draw.randint(1, 5))
        lines = [f"{_quoted(name)}: {draw.choice(_SETTINGS[name])}\n" for name in names]
        if draw.random() < 0.3:
            lines.append(f"{draw.choice(list(_SETTINGS)[:30])}: {json.dumps(values.anything(draw))}\n")
        data = "".join(lines).encode("utf-8", "surrogatepass")
    return draw.choice(_BYTE_MUTATIONS)(draw, data) if draw.random() < 0.15 else data


def _quoted(name: str) -> str:
    return name if name.isidentifier() or name == "<<" else json.dumps(name)


_TOML = (
    "", "\n", "pairs = 3\n", "pairs = []\n", "[pairs]\n", "[pairs]\nmine = 3\n", "[[pairs.mine]]\ndraft = 'a'\n",
    "[pairs.mine]\n", "[pairs.mine]\ndraft = 'a'\n", "[pairs.mine]\ndraft = ''\ntarget = ''\n",
    "[pairs.mine]\ndraft = 'a'\ntarget = 'b'\n", "[pairs.mine]\ndraft = 'a'\ntarget = 'b'\n[pairs.mine]\n",
    "[pairs.mine]\ndraft = 'a'\ntarget = 'b'\ndraft_dtype = 'float12'\n",
    "[pairs.mine]\ndraft = 'a'\ntarget = 'b'\nnotes = 3\n", "[pairs.mine]\ndraft = 1979-05-27\ntarget = 'b'\n",
    "[pairs.mine]\ndraft = {a = 1}\ntarget = 'b'\n", "[pairs.mine]\ndraft = nan\ntarget = inf\n",
    "[pairs.tiny_dev]\ndraft = 'a'\ntarget = 'b'\n", "[pairs.gpt2_dev]\ndraft = 'a'\ntarget = 'b'\n",
    "[pairs.'']\ndraft = 'a'\ntarget = 'b'\n", "[pairs.'a b']\ndraft = './a'\ntarget = '~/b'\n",
    "[pairs.\"\\u001b[31mpwned\"]\ndraft = \"\\u001b]0;pwned\\u0007\"\ntarget = '<script>'\n",
    "[pairs.mine]\ndraft = 'tiny_dev/draft'\ntarget = 'tiny_dev/target'\nnotes = \"\\u202epwned\"\n",
    "[pairs.mine]\ndraft = '~nobody/x'\ntarget = '\\u0000'\n", "[pairs.mine]\ndraft = \"a\\u0000b\"\ntarget = 'b'\n",
    "[pairs.mine]\ndraft = '" + "d" * 5000 + "'\ntarget = '../../../../../etc'\n", "[other]\nx = 1\n", "x = " + "[" * 5000,  # noqa: E501
    "x = " + "9" * 6000 + "\n", "x = 1" + ".x" * 3000, "[" + "a." * 3000 + "a]\n", "pairs.mine.draft = 'a'\n",
    "[pairs.mine]\ndraft = 'tiny_dev/draft'\ntarget = 'tiny_dev/target'\n", "[pairs.'tiny_dev/draft']\ndraft='a'\ntarget='b'",  # noqa: E501
)  # fmt: skip


def toml_file(draw: random.Random) -> bytes:
    data = draw.choice(_TOML).encode("utf-8", "surrogatepass")
    return draw.choice(_BYTE_MUTATIONS)(draw, data) if draw.random() < 0.15 else data
