"""A case from a seed and a number: what somebody, or nobody, would type."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from fuzz import values
from fuzz.case import FOLDER, Case, File
from fuzz.documents import (
    RUN_ID,
    RUNS,
    STORES,
    damaged_lines,
    prompt_file,
    run_lines,
    store_lines,
    toml_file,
    yaml_file,
)
from fuzz.model_folders import model_folder

QUICK = (
    "-n", "1", "--max-new-tokens", "6", "--reps", "1", "--warmup", "0", "--deterministic", "--no-cost-curve",
)  # fmt: skip
"""Of run: a fraction of a second."""

Flag = tuple[str, Sequence[str] | Callable[[random.Random], str] | None]
"""A name, and what stands behind it: nothing, one of these, or what a function draws."""

_K = (*"01234568", "auto", "16", "64", "1023", "1024", "100000", "-1", "1.5", "four", "")
_MODELS: tuple[Flag, ...] = (
    ("--pair", ("tiny_dev", "tiny_dev", "tiny_cross", "gpt2_dev", "nope", "")),
    ("--draft", ("tiny_dev/draft", "tiny_cross/draft", "gpt2", "nope", "./nope", "")),
    ("--target", ("tiny_dev/target", "tiny_dev/target", "gpt2", "/", "")),
    ("--dtype", ("float32", "float16", "bfloat16", "fp32", "nf4x", "float64", "")),
    ("--device", ("cpu", "cpu", "cuda", "cuda:0", "cuda:" + "9" * 30, "cpu:1", "cpu:-1", "CPU", "mps", "meta", "xpu",
                  "hpu:3", "privateuseone", "cpu cpu", "")),
    ("--device-map", ("auto", "balanced", "")),
    ("--forward", ("auto", "native", "own", "hf", "x", "")),
    ("--engine", ("auto", "eager", "static", "graph", "x")),
    ("--compile", None),
    ("--scale-layers", ("1", "2", "0", "-1", "99")),
    ("--offline", None),
    ("--revision", ("main", "", "../..")),
)  # fmt: skip
_DRAFTING: tuple[Flag, ...] = (
    ("--k", _K),
    ("-k", _K),
    ("--k-max", ("1", "4", "0", "-3", "2048", "x")),
    ("--drafter", ("model", "ngram", "self", "random", "layerskip", "oracle", "")),
    ("--draft-layers", ("1", "3", "0", "-1", "99", "x")),
    ("--draft-threshold", ("0.4", "0", "1", "1e-300", "-0.0", "1.01", "nan", "x")),
    ("--vocab-method", ("auto", "tli", "slem", "x")),
    ("--synthetic-acceptance", ("0", "0.5", "1", "-1", "nan", "1e400")),
)
_SAMPLING: tuple[Flag, ...] = (
    ("--temperature", ("0", "0.8", "1", "1e-9", "1e-45", "1e-320", "1e30", "1e308", "-0", "nan", "-1", "inf", "x")),
    ("--top-k", ("0", "1", "5", "4096", "5000", str(2**31), str(2**63), str(10**30), "-1", "1.5")),
    ("--top-p", ("1", "0.9", "1e-9", "1e-320", "0", "-1", "1.0000001", "nan")),
    ("--seed", ("0", "1", "-1", "4294967296", str(2**63 - 1), str(2**63), str(2**64), str(-(2**63)), str(10**30), "x")),
    ("--max-new-tokens", ("1", "2", "7", "0", "-1", "1.5", str(2**31), str(2**63), str(10**30))),
    ("--prompt", values.word),
    ("--prompt", ("Once", "a", "word " * 2000, "\u00e9", "<|end|>")),
    ("--domain", ("code", "conversation", "summarization", "poetry", "")),
    ("-n", ("1", "2", "0", "-1", "x", str(10**30))),
    ("--chat-template", ("auto", "off", "on", "")),
    ("--ignore-eos", None),
)
_PRINTED: tuple[Flag, ...] = (
    ("--json", None),
    ("--json", None),
    ("-q", None),
    ("--log-json", None),
    ("-v", None),
    ("--debug", None),
    ("--color", ("auto", "always", "never", "blue", "")),
)
_OUTPUT: Flag = (
    "-o",
    ("out.json", "results", "no/such/out.json", "/dev/full", "/dev/null", "", ".", "a/\x00", "é o.json"),
)
_RESULTS: Flag = (
    "--results-dir",
    ("results", "new/deep/er", "file", "file/below", "/dev/null", "/proc/nope", "", "-", "."),
)
_FAIL_IF = ("speedup<0.97", "speedup_after<9", "acceptance_rate>=0%", "nope<1", "speedup<", "<1", "speedup<nan",
            "speedup<1e400", "speedup==1", "acceptance_length<=1e-320", "speedup<-1", "speedup < 97 %", "",
            "ar_tokens_per_second>0", "sd_tokens_per_second_after<1_0", "speedup<" + "9" * 400)  # fmt: skip

_FLAGS: dict[str, tuple[Flag, ...]] = {
    "run": (
        *_MODELS, *_DRAFTING, *_SAMPLING, *_PRINTED, _OUTPUT, _RESULTS,
        ("--warmup", ("0", "1", "-1", "x")), ("--reps", ("1", "2", "0", "-1", "x")), ("--no-baseline", None),
        ("--detail", None), ("--cost-only", None), ("--trace", ("t.json", "t.json.gz", "no/t", "/dev/full", "", ".")),
        ("--host-profile", ("p.txt", "no/p.json", "", ".json/x")), ("--threads", ("1", "2", "0", "-1", "x", str(2**40))),  # noqa: E501
        ("--random-weights", None), ("--jsonl", None), ("--no-save", None), ("--trust-remote-code", None),
    ),
    "verify": (*_MODELS, *_DRAFTING, *_SAMPLING, *_PRINTED, _OUTPUT, ("--reps", ("1", "0", "x"))),
    "load": (
        *_MODELS, *_PRINTED, ("--list", None), ("--n-tokens", ("0", "2", "-1", "x", str(2**31), str(10**30))),
        ("--model", ("tiny_dev/draft", "tiny_dev/target", "nope", "", "\x00", "~nobody/x", "/dev/null", "." * 300)),
        ("--ollama", None), ("--prompt", values.word), ("--max-tokens", ("1", "0", "-1", str(10**30))),
        ("--host", ("http://127.0.0.1:9", "127.0.0.1:99999", "http://[::1", "ftp://x", "", "\n", "http://\x00", "é")),
        ("--random-weights", None), ("--trust-remote-code", None),
    ),
    "sweep": (
        *_MODELS, *_DRAFTING, *_SAMPLING[:5], *_PRINTED, _OUTPUT, _RESULTS,
        ("--k", ("1,2", "1-8", "1-16*2", "auto,1", "1-100000", "8-1", "1,,2", "1-8+0", "1-8*1", ",", "٣", "1e3")),
        ("--temperature", ("0,0.8", "0-1+0.25", "0-1+1e-9", "1-0", "0-1", "-1", "1e99", "nan", "inf", "0-1+0")),
        ("--domain", ("code", "code,code", "nope", ",", "")), ("--drafter", ("model,ngram", "self,random", "x,y")),
        ("--order-seed", ("0", "-1", str(10**30))), ("--cell-timeout", ("1", "0", "-1", "nan", "inf", "1e-300")),
        ("--executor", ("local", "ray", "x")), ("--gpus", ("0", "0,1", "x", "", "-1", "9" * 30)),
        ("--workers", ("1", "0", "-1")), ("--retry-failed", None), ("--fail-fast", None), ("-n", ("1", "0")),
        ("--prompts", ("p.json", "nope")), ("--pair", ("tiny_dev,tiny_cross", ",", "tiny_dev,nope")),
        ("--random-weights", None),
    ),
    "prompts": (
        *_PRINTED[:4], ("--tokenizer", ("tiny_dev", "tiny_cross/draft", "nope", "gpt2", "", "/dev", "\x00")),
        ("-o", ("out.json", "no/out.json", "/dev/full", "/dev/null", "", ".", "x" * 300)), ("--tiny", None),
        ("--seed", values.number), ("--list", None), ("--show", ("code_000", "nope", "", "[bold]", values.TITLE)),
        ("--max-tokens", values.number), ("--chat-template", ("auto", "off", "x")), ("--offline", None),
        ("--check", ("p.json", "nope", "-", ".", "/dev/null")),
    ),
    "report": (
        ("--html", ("r.html", "-", "no/r.html", "/dev/full", "/dev/null", "", ".", "results")),
        ("--md", ("r.md", "-", "no/r.md", "/dev/full", "", "results", "é r.md")), ("--json", None), ("-q", None),
        ("--compare", (RUN_ID, "results", "before.jsonl", "nope", "")), ("--fail-if", _FAIL_IF), ("--certain", None),
        ("--each-domain", None), ("--allow-machine-mismatch", None), ("--title", values.word), ("--redact-text", None),
        ("--max-size", ("5MB", "1KB", "0", "1", "-1", "1e3", "9" * 400, "5 MB", "nan", "", "١MB", "60KB", "300kb")),  # noqa: RUF001
        ("--results-dir", ("results", "nope", "file", "", "/dev/null")), ("--log-json", None),
    ),
    "compare": (
        *_PRINTED, _OUTPUT, ("--fail-if", _FAIL_IF), ("--certain", None), ("--each-domain", None),
        ("--allow-machine-mismatch", None),
    ),
    "explain": (*_PRINTED, ("--results-dir", ("results", "nope", "file", ""))),
    "results list": (*_PRINTED, ("--pair", values.word), ("--domain", ("code", "nope", "")), ("--pair", ("tiny_dev",))),
    "results show": _PRINTED,
    "results rm": (("--failed", None), ("--all", None), ("-y", None), ("-q", None), ("--log-json", None)),
    "results export": (
        ("--csv", ("-", "o.csv", "no/o.csv", "/dev/full", "", ".", "results/records.jsonl")),
        ("--parquet", ("o.parquet", "no/o.parquet", "/dev/full", "", "-")), ("-q", None),
    ),
    "tui": (
        *_MODELS, *_DRAFTING, *_SAMPLING, ("--replay", (RUN_ID, "nope", "results", "", "x.jsonl", "/dev/null")),
        ("--speed", ("1", "0.25", "16", "17", "0", "nan", "-1", "x")), ("--fps", ("1", "30", "0", "nan", "1e400")),
        ("--theme", ("nord", "nope", "", values.RED)), ("--json", None), ("--no-save", None), ("--debug", None),
        ("--threads", ("1", "0", "-1", "x")), ("--prompts", ("code", "-", "nope", "p.json")), _RESULTS,
    ),
}  # fmt: skip
COMMANDS = tuple(_FLAGS)


def draw_case(seed: int, number: int) -> Case:
    """The same for the same arguments."""
    draw = random.Random(f"specprof {seed} {number}")
    if draw.random() < 0.02:
        return _environment(draw)
    (kind,) = draw.choices(list(_KINDS), [weight for weight, _ in _KINDS.values()])
    case = _KINDS[kind][1](draw)
    return case


def _case(
    draw: random.Random,
    kind: str,
    arguments: Sequence[str],
    files: Sequence[File],
    writes: Sequence[str] = ("results",),
) -> Case:
    """With a terminal, a width and an encoding of its own now and then."""
    odd = draw.random() < 0.2
    environment: dict[str, str | None] = {}
    if odd:
        environment["COLUMNS"] = draw.choice(("1", "2", "5", "10", "20", "0", "-3", "x", "100000", ""))
        environment["TERM"] = draw.choice(("dumb", "xterm-256color", "", "nope"))
    if draw.random() < 0.05:
        environment |= {draw.choice(("NO_COLOR", "FORCE_COLOR", "CI")): draw.choice(("1", "", "0"))}
    return Case(
        kind,
        tuple(arguments),
        tuple(files),
        tuple(writes),
        stdin=draw.choice((b"", b"", b"", b"Once upon a time", b'["a", {"text": "b"}]', b"\xff", b"y\n")),
        environment=environment,
        encoding=draw.choice(("utf-8",) * 8 + ("ascii", "latin-1", "cp437")),
        terminal=odd and draw.random() < 0.5,
    )


def _drawn(draw: random.Random, flags: Sequence[Flag], least: int, most: int) -> list[str]:
    words: list[str] = []
    for name, behind in draw.choices(flags, k=draw.randint(least, most)):
        if behind is None:
            words.append(name)
            continue
        value = behind(draw) if callable(behind) else draw.choice(behind)
        if draw.random() < 0.06:
            value = values.anything(draw)
        words += [f"{name}={value}"] if name.startswith("--") and draw.random() < 0.2 else [name, value]
    if draw.random() < 0.04:
        words.insert(draw.randrange(len(words) + 1), values.word(draw))
    return words


def _written(arguments: Sequence[str]) -> list[str]:
    """The files and folders that a command line names to be written."""
    named = {"-o", "--output", "--trace", "--host-profile", "--html", "--md", "--csv", "--parquet", "--results-dir"}
    found = ["results"]
    for position, word in enumerate(arguments):
        flag, equals, value = word.partition("=")
        if flag in named:
            name = value if equals else (arguments[position + 1] if position + 1 < len(arguments) else "")
            stem = name.rpartition(".")[0]
            found += [
                name,
                name.split("/")[0],
                f"{stem}_figures",
                f"{stem}_tiny.json",
                f"{name}_tiny",
                f"{name}_figures",
            ]
    return [name for name in found if name and not name.startswith(("/", "."))]


# --- flags


def _flags(draw: random.Random) -> Case:
    command = draw.choices(COMMANDS, [6 if name in ("run", "sweep", "load") else 3 for name in COMMANDS])[0]
    arguments = [*command.split()]
    if command == "run":
        arguments += QUICK
        if draw.random() < 0.7:
            arguments += ["--no-save"]
    if command == "verify":
        arguments += ["-n", "1", "--max-new-tokens", "6", "--reps", "1"]
    if command == "sweep":
        arguments += ["--dry-run"]
    arguments += _drawn(draw, _FLAGS[command], 0, 6)
    if command in ("compare", "explain", "results show", "results rm", "report") and draw.random() < 0.8:
        names = (
            RUN_ID,
            "2026",
            "results",
            f"results/{RUN_ID}.jsonl",
            "nope",
            "",
            ".",
            "results/nope.jsonl",
            "@",
            "file",
        )
        arguments += draw.choices(names, k=2 if command == "compare" else 1)
    if draw.random() < 0.02:
        arguments = draw.choice(
            ([], ["results"], ["-h"], ["--version"], ["nope"], [""], ["--"], [values.anything(draw)])
        )
    files = [File("file", b"a file"), File("p.json", b'["one", "two"]')]
    if draw.random() < 0.7:
        files += [
            File(f"results/{RUN_ID}.jsonl", "".join(run_lines(draw.choice(RUNS))).encode("utf-8", "surrogatepass")),
            File("before.jsonl", "".join(run_lines(draw.choice(RUNS))).encode("utf-8", "surrogatepass")),
        ]
    if draw.random() < 0.3:
        files.append(File("results/records.jsonl", "".join(store_lines(draw.choice(STORES))).encode()))
    return _case(draw, "flags", arguments, files, _written(arguments))


# --- files


def _prompts(draw: random.Random) -> Case:
    name, content = prompt_file(draw)
    files = [File(name, content)]
    named = name if not name.startswith("-") or draw.random() < 0.3 else f"./{name}"
    if draw.random() < 0.3:
        arguments = ["run", *QUICK, "--no-save", "-k", "2", "--prompts", named, *_drawn(draw, _PRINTED, 0, 2)]
        if draw.random() < 0.3:
            arguments += ["--ignore-eos", "--temperature", "0.9"]
    elif draw.random() < 0.15:
        arguments = ["sweep", "--dry-run", "--prompts", named]
    else:
        arguments = ["prompts", "--check", named, *_drawn(draw, _PRINTED[:4], 0, 2)]
        if draw.random() < 0.3:
            arguments += ["--max-tokens", draw.choice(("1", "5", "100"))]
    return _case(draw, "prompts", arguments, files)


def _yaml(draw: random.Random) -> Case:
    files = [File("s.yaml", yaml_file(draw)), File("p.json", b'["one", {"text": "two", "domain": "code"}]')]
    flags = _drawn(draw, _FLAGS["sweep"], 0, 2) if draw.random() < 0.3 else []
    arguments = ["sweep", "--config", "s.yaml", "--dry-run", *flags]
    return _case(draw, "yaml", arguments, files, _written(arguments))


def _toml(draw: random.Random) -> Case:
    files = [File("specprof.toml", toml_file(draw))]
    if draw.random() < 0.3:
        files.append(File("config/specprof/config.toml", toml_file(draw)))
    arguments = draw.choice(
        (["load", "--list"], ["load", "--list", "--json"], ["run", *QUICK, "--no-save", "--pair", "mine"],
         ["sweep", "--dry-run", "--pair", "mine"], ["load", "--pair", "mine"], ["run", *QUICK, "--no-save"], ["tui"],
         ["run", *QUICK, "--no-save", "--pair", "tiny_dev"], ["run", *QUICK, "--no-save", "--pair", "a b"])
    )  # fmt: skip
    return _case(draw, "toml", arguments, files)


def _results(draw: random.Random) -> Case:
    files = [
        File(f"results/{RUN_ID}.jsonl", damaged_lines(draw, run_lines(draw.choice(RUNS)))),
        File("before.jsonl", "".join(run_lines(draw.choice(RUNS))).encode("utf-8", "surrogatepass")),
    ]
    if draw.random() < 0.4:
        del files[0]
    if len(files) == 1 or draw.random() < 0.3:
        files.append(File("results/records.jsonl", damaged_lines(draw, store_lines(draw.choice(STORES)))))
    if draw.random() < 0.05:
        odd = draw.choice(("results/folder.jsonl", "results/x.jsonl"))
        files.append(File(odd) if "folder" in odd else File(odd, link_to=draw.choice(("x.jsonl", "/dev/null", "nope"))))
    command = draw.choice(
        ("report", "report", "report", "compare", "compare", "explain", "results list", "results show", "results show",
         "results export", "results rm", "tui")
    )  # fmt: skip
    arguments = command.split()
    which = draw.choice((RUN_ID, RUN_ID, f"results/{RUN_ID}.jsonl", "results", "results/records.jsonl", _cell(draw)))
    match command:
        case "compare":
            pair = [which, "before.jsonl"]
            draw.shuffle(pair)
            arguments += [*pair, *draw.choice(((), ("--allow-machine-mismatch",)))]
            arguments += [*draw.choice(((), ("--fail-if", "speedup<0.97"))), *_drawn(draw, _PRINTED, 0, 2)]
        case "report":
            arguments += [which] * (draw.random() < 0.8)
            arguments += draw.choice(
                (["--json"], ["--md", "-"], ["--html", "r.html", "--md", "r.md"], [], ["--html", "-", "--redact-text"],
                 ["--md", "r.md", "--compare", "before.jsonl", "--allow-machine-mismatch"], ["--html", "-", "--max-size", "60KB"])  # noqa: E501
            )  # fmt: skip
        case "explain":
            arguments += [which] * (draw.random() < 0.8) + _drawn(draw, _PRINTED, 0, 2)
        case "results show":
            arguments += [which, *draw.choice((["--json"], [], ["--color", "always"]))]
        case "results list":
            arguments += _drawn(draw, _FLAGS[command], 0, 2)
        case "results export":
            arguments += draw.choice((["--csv", "-"], ["--csv", "o.csv"], ["--parquet", "o.parquet"]))
        case "results rm":
            arguments += draw.choice((["--all", "-y"], ["--failed", "-y"], [which, "-y"], [which]))
        case "tui":
            arguments += ["--replay", which]
    return _case(draw, "results", arguments, files, _written(arguments))


def _cell(draw: random.Random) -> str:
    from sample_store import AR, ELSEWHERE, SD

    whole = draw.choice((AR, SD)).config_hash()
    return draw.choice((whole, whole[:4], f"{whole}@{ELSEWHERE}", f"{whole[:6]}@", whole[:1]))


def _models(draw: random.Random) -> Case:
    files = model_folder(draw, "model")
    decoded = ("run", *QUICK, "--no-save", "-k", "2")
    match draw.randrange(8):
        case 0 | 1 | 2:
            arguments = ["load", "./model", "--n-tokens", draw.choice("0013")]
        case 3:
            arguments = ["load", "--draft", "./model", "--target", draw.choice(("tiny_dev/target", "./model"))]
        case 4:
            arguments = [*decoded, "--target", "model", "--drafter", draw.choice(("self", "ngram"))]
        case 5:
            arguments = [*decoded, "--draft", "model", "--target", "tiny_dev/target"]
        case 6:
            arguments = [*decoded, "--draft", "tiny_dev/draft", "--target", "model", "--prompt", "a"]
        case _:
            arguments = [*decoded, "--target", "model", "--draft", "model", "--random-weights"]
            arguments += draw.choice(([], ["--scale-layers", "1"]))
    arguments += ["--dtype", "float32"] * (draw.random() < 0.3) + ["--json"] * (draw.random() < 0.4)
    arguments += draw.choice(([], [], [], ["--forward", "hf"], ["--forward", "own"]))
    if draw.random() < 0.05:
        arguments = ["prompts", "--tokenizer", "./model", "--list"]
    if "--forward" in arguments and arguments[0] == "load":
        del arguments[arguments.index("--forward") :][:2]
    return _case(draw, "models", arguments, files)


# --- real processes


def _environment(draw: random.Random) -> Case:
    folder = draw.choice(("", "", "a b/", "d\u00e9j\u00e0/", "\u65e5\u672c/", "'q\"/"))
    results = f"{folder}results"
    light = draw.random() < 0.75
    command: list[str] = (
        draw.choice(
            (["--help"], ["--version"], ["load", "--list"], ["prompts", "--show", "code_000"], ["results", "list"],
             ["report", "--md", "-"], ["results", "show", RUN_ID], ["tui"], ["sweep", "--dry-run"], ["explain", "--json"],  # noqa: E501
             ["results", "export", "--csv", "-"], ["prompts", "--list", "--json"], ["nope"], ["run", "--k", "-1"])
        )
        if light
        else draw.choice((["run", *QUICK, "-k", "2"], ["run", *QUICK, "--jsonl"], ["load", "tiny_dev/draft"]))
    )  # fmt: skip
    if "results" in command or command[0] in ("report", "explain", "run"):
        command = [*command, "--results-dir", results]
    if not light and draw.random() < 0.2:
        command = ["run", *QUICK, "--threads", draw.choice(("64", str(2**31 - 1), str(2**31), str(2**63)))]
    environment: dict[str, str | None] = {}
    for _ in range(draw.choice((0, 1, 1, 2, 3))):
        environment |= draw.choice(_SURROUNDINGS)
    redirect = draw.choice(
        ("", "", "", "", ">/dev/full", ">&-", "<&-", "2>&-", "2>/dev/full", "| head -c 1", ">&- 2>&-")
    )
    return Case(
        "environment",
        tuple(command),
        (
            File(f"{results}/{RUN_ID}.jsonl", "".join(run_lines("greedy")).encode()),
            File("file", b""),
            File("locked"),
        ),
        (results, "home/.cache"),
        environment=environment,
        process=True,
        redirect=redirect,
        seconds=120,
    )


_SURROUNDINGS: tuple[dict[str, str | None], ...] = (
    {"HOME": None, "XDG_CACHE_HOME": None, "XDG_CONFIG_HOME": None},
    {"HOME": "/nowhere", "XDG_CACHE_HOME": None, "XDG_CONFIG_HOME": None},
    {"HOME": f"{FOLDER}/file", "XDG_CACHE_HOME": None, "XDG_CONFIG_HOME": None},
    {"HOME": "/proc", "XDG_CACHE_HOME": None, "XDG_CONFIG_HOME": None, "XDG_STATE_HOME": None},
    {"HOME": ""},
    {"HOME": "relative", "XDG_CONFIG_HOME": "relative"},
    {"TMPDIR": "/nowhere"},
    {"TMPDIR": f"{FOLDER}/file"},
    {"TMPDIR": None},
    {"XDG_CACHE_HOME": "/proc/nope"},
    {"XDG_CONFIG_HOME": f"{FOLDER}/file"},
    {"LC_ALL": "C"},
    {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "xx_YY.UTF-99"},
    {"LANG": "tr_TR.UTF-8", "LC_ALL": None},
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "utf-16"},
    {"PYTHONIOENCODING": "latin-1:strict"},
    {"COLUMNS": "1"},
    {"COLUMNS": "0", "LINES": "-1"},
    {"TERM": "dumb"},
    {"TERM": None},
    {"PATH": "/nowhere"},
    {"CC": "false"},
    {"CC": "'"},
    {"OMP_NUM_THREADS": "x"},
    {"SPECPROF_RESULTS": ""},
    {"PYTHONWARNINGS": "error"},
    {"PYTHONDEVMODE": "1"},
    {"PYTHONHASHSEED": "0", "PYTHONOPTIMIZE": "2"},
    {"HF_HOME": "/proc/nope"},
    {"TZ": "Nowhere/Nothing"},
    {"CUDA_VISIBLE_DEVICES": "nope"},
    {"RAY_ADDRESS": "nope"},
    {"OLLAMA_HOST": "://"},
)

_KINDS: dict[str, tuple[int, Callable[[random.Random], Case]]] = {
    "flags": (34, _flags),
    "prompts": (12, _prompts),
    "yaml": (10, _yaml),
    "toml": (4, _toml),
    "results": (30, _results),
    "models": (10, _models),
}
