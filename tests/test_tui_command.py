"""``specprof tui`` around its screen: what flags mean, what is refused, printed in the end, and remembered."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

import large_run
from command_line import Outcome, command, isolate, ok
from specprof.commands import remembered
from specprof.commands.choosing import Settings, flags_of, offer
from specprof.errors import SpecprofError, UnavailableError, UsageError
from specprof.experiments.live import Session
from specprof.models import hub
from specprof.profiling.events import RunEnded, RunStarted
from specprof.profiling.feed import AUTO_K, Control, Failed, Feed, Kept, Texts
from specprof.tui.choices import Choice, Offer, parse_k
from test_import_hygiene import HEAVY, loaded_after

TARGET, DRAFT = (str(hub.local_directory(f"tiny_dev/{role}")) for role in ("target", "draft"))


class Screen:
    """Stands in for the app: what it was made with, and what a session with it leaves behind."""

    available_themes: ClassVar[dict[str, object]] = {"textual-dark": None, "textual-light": None}
    last: ClassVar[Screen]
    leaves: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, open_feed: Callable[[Choice], Feed], offer: Offer, choice: Choice, *, start: bool, **options: Any
    ) -> None:
        Screen.last = self
        self.open_feed, self.offer, self.choice, self.start, self.options = open_feed, offer, choice, start, options
        self.failure: Failed | None = None
        self.kept: list[str] = []
        self.return_code: int | None = 0
        self.during: Callable[[], None] = lambda: None
        self.went: list[str] = []

    def run(self) -> None:
        self.went.append("run")
        for name, value in self.leaves.items():
            setattr(self, name, value)
        self.during()

    def end(self) -> None:
        self.went.append("end")


@dataclass
class Engine:
    """Stands in for an engine: what it was started with."""

    session: Session
    control: Control


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("specprof.tui.app.SpecprofApp", Screen)
    monkeypatch.setattr("specprof.experiments.live.LiveFeed", Engine)
    monkeypatch.setattr(Screen, "leaves", {})


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody is there, so to say."""
    monkeypatch.setattr(sys.modules["specprof.commands.tui"], "_check_terminal", lambda: None)


def started(*arguments: str) -> Session:
    """What the engine of ``specprof tui ARGUMENTS`` is started with, where it starts at once."""
    ok("tui", *arguments)
    assert Screen.last.start
    return engine().session


def engine(choice: Choice | None = None) -> Engine:
    feed: Any = Screen.last.open_feed(choice or Screen.last.choice)
    assert isinstance(feed, Engine)
    return feed


# Flags


@pytest.mark.usefixtures("terminal")
def test_flags_become_a_run() -> None:
    session = started(
        *("--pair", "tiny_cross", "--k", "6", "--temperature", "0.8", "--draft-threshold", "0.25"),
        *("--vocab-method", "tli", "--prompts", "code", "-n", "3", "--max-new-tokens", "17", "--reps", "2"),
        *("--top-k", "40", "--top-p", "0.9", "--seed", "7", "--dtype", "float32", "--device", "cpu"),
        *("--forward", "hf", "--synthetic-acceptance", "0.5", "--offline", "--trust-remote-code"),
        *("--ignore-eos", "--chat-template", "off", "--deterministic", "--threads", "1"),
    )
    config = session.config
    assert (config.pair.name, config.k, config.temperature, config.draft_threshold) == ("tiny_cross", 6, 0.8, 0.25)
    assert (config.vocab_method, config.max_new_tokens, config.repetitions) == ("tli", 17, 2)
    assert (config.top_k, config.top_p, config.seed, config.device, config.forward) == (40, 0.9, 7, "cpu", "hf")
    assert config.pair.target_dtype == config.pair.draft_dtype == "float32"
    assert (config.synthetic_acceptance, config.chat_template) == (0.5, "off")
    assert config.offline and config.trust_remote_code and config.ignore_eos and config.deterministic
    assert config.detail and config.baseline, "a screen shows probabilities, and both arms"
    assert {prompt.domain for prompt in session.prompts} == {"code"} and len(session.prompts) == 3
    assert session.threads == 1 and session.results_dir == Path("results")
    assert session.command is not None and session.command.startswith("specprof tui --pair tiny_cross --k 6 ")
    assert engine().control == Control(k=6, temperature=0.8)


@pytest.mark.usefixtures("terminal")
def test_without_flags_it_asks_and_proposes_the_packaged_pair() -> None:
    ok("tui")
    screen = Screen.last
    assert not screen.start and screen.choice == Choice("tiny_dev") and screen.went == ["run", "end"]
    session = engine().session
    config = session.config
    assert (config.pair.name, config.k, config.temperature, config.repetitions) == ("tiny_dev", 4, 0.0, 1)
    assert len(session.prompts) == 12 and len({prompt.domain for prompt in session.prompts}) == 3
    assert session.threads is None
    assert screen.options["fps"] == 10.0 and screen.options["theme"] is None


@pytest.mark.usefixtures("terminal")
def test_two_models_and_other_drafters() -> None:
    session = started("--draft", DRAFT, "--target", TARGET, "--prompt", "Once upon a time", "--no-save")
    assert (session.config.pair.draft_model_id, session.config.pair.target_model_id) == (DRAFT, TARGET)
    assert [prompt.raw_text for prompt in session.prompts] == ["Once upon a time"]
    assert session.results_dir is None and Screen.last.options["save_report"] is None
    session = started("--target", TARGET, "--drafter", "layerskip", "--draft-layers", "2", "--k", "auto")
    assert (session.config.drafter, session.config.draft_layers, session.config.k) == ("layerskip", 2, "auto")
    assert engine().control.k == AUTO_K
    session = started("--pair", "gpt2_dev", "--random-weights", "--scale-layers", "2")
    assert session.config.random_weights and session.config.scale_layers == 2


@pytest.mark.usefixtures("terminal")
def test_a_file_of_prompts() -> None:
    Path("code").write_text("a story", encoding="utf-8")
    assert [p.raw_text for p in started("--pair", "tiny_dev", "--prompts", "./code").prompts] == ["a story"]
    assert {p.domain for p in started("--pair", "tiny_dev", "--prompts", "code").prompts} == {"code"}


@pytest.mark.usefixtures("terminal")
def test_flags_beside_the_start_screen() -> None:
    """They are proposed there, and what it does not ask for holds in any case."""
    ok("tui", "--k", "2", "--max-new-tokens", "9", "--theme", "textual-light", "--fps", "5", "--results-dir", "there")
    screen = Screen.last
    assert not screen.start and screen.choice == Choice("tiny_dev", k=2)
    assert (screen.options["fps"], screen.options["theme"]) == (5.0, "textual-light")
    session = engine(Choice("tiny_dev", k=7, temperature=0.5, prompts="code")).session
    assert (session.config.k, session.config.max_new_tokens, session.results_dir) == (7, 9, Path("there"))
    assert session.command == (
        "specprof tui --pair tiny_dev --k 7 --temperature 0.5 --drafter model --prompts code "
        "--max-new-tokens 9 --fps 5.0 --theme textual-light --results-dir there"
    )


@pytest.mark.parametrize(
    "choice",
    [
        Choice("tiny_dev"),
        Choice(None, DRAFT, TARGET, k=AUTO_K, temperature=0.25, prompts="summarization"),
        Choice(None, None, TARGET, drafter="layerskip", draft_layers=2, prompt="it's a $HOME"),
    ],
)
@pytest.mark.usefixtures("terminal")
def test_a_choice_can_be_said_in_flags(choice: Choice) -> None:
    ok("tui", *flags_of(choice))
    assert Screen.last.start and Screen.last.choice == choice


# Refusals


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--pair", "tiny_def"], 2, "tiny_def"),
        (["--pair", ""], 2, "no pair"),
        (["--pair", "tiny_dev", "--draft", "x"], 2, "exclude each other"),
        (["--draft", "x"], 2, "--draft needs --target"),
        (["--target", "x"], 2, "--target needs --draft"),
        (["--target", "./nowhere", "--draft", "./nowhere"], 3, "no directory ./nowhere"),
        (["--target", "not a name", "--draft", "x"], 3, "neither an existing directory nor a hub id"),
        (["--pair", "gpt2_dev", "--offline"], 3, "offline"),
        (["--k", "many"], 2, "neither a number nor auto"),
        (["--k", "-1"], 2, "negative"),
        (["--k", "auto", "--deterministic"], 2, "exclude each other"),
        (["--temperature", "-1"], 2, "temperature"),
        (["--temperature", "warm"], 2, "--temperature"),
        (["--drafter", "oracle"], 2, "oracle"),
        (["--draft-layers", "2"], 2, "--draft-layers"),
        (["--reps", "0"], 2, "--reps 0"),
        (["--top-p", "0"], 2, "top-p"),
        (["--dtype", "float3"], 2, "float3"),
        (["--prompts", "-"], 2, "keyboard"),
        (["--prompts", "nowhere.jsonl"], 2, "nowhere.jsonl"),
        (["--prompt", "x", "--prompts", "code"], 2, "exclude each other"),
        (["--prompt", " "], 2, "white space"),
        (["--prompt", "x", "-n", "0"], 2, "--num-prompts 0"),
        (["--threads", "0"], 2, "--threads 0"),
        (["--fps", "0"], 2, "--fps 0 is not in 1 to 30"),
        (["--fps", "nan"], 2, "--fps nan"),
        (["--speed", "2"], 2, "--speed needs --replay"),
        (["--replay", "x", "--speed", "20"], 2, "--speed 20 is not in 0.25 to 16"),
        (["--replay", "nowhere"], 2, "nowhere"),
        (["--replay", "x", "--k", "4"], 2, "--k does not apply to --replay"),
        (["--replay", "x", "--no-save"], 2, "--no-save does not apply to --replay"),
        (["--theme", "mauve"], 2, "no theme 'mauve'"),
        (["--nonsense"], 2, "--nonsense"),
    ],
)
def test_what_can_not_be_meant_needs_no_terminal_to_be_refused(arguments: Sequence[str], code: int, words: str) -> None:
    outcome = command("tui", *arguments)
    error, _ = outcome.told
    assert outcome.code == code and words in error and outcome.out == ""
    assert len(outcome.err.splitlines()) == 2


def test_results_that_have_no_place_to_go() -> None:
    Path("results").write_text("a file", encoding="utf-8")
    assert command("tui", "--pair", "tiny_dev").code == 4
    assert command("tui", "--pair", "tiny_dev", "--no-save").told[0].startswith("this needs a terminal")


def test_a_k_that_nobody_means_is_refused_where_it_is_typed() -> None:
    assert parse_k("1000") == 1000
    for text in ("1001", "9" * 20):
        with pytest.raises(ValueError, match="1000 at most"):
            parse_k(text)


def test_no_terminal() -> None:
    outcome = command("tui", "--pair", "tiny_dev")
    error, hint = outcome.told
    assert outcome.code == 2 and "standard input" in error and "specprof run" in hint
    assert not Screen.last.went


def in_a_terminal(program: str, *, out: int, err: int | None = None, **variables: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a Python program whose standard input, and standard error if
    ``err`` is None, are a terminal of 101 x 37."""
    master, slave = pty.openpty()
    subprocess.run(["stty", "cols", "101", "rows", "37"], stdin=slave, check=True)
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")} | variables
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=slave,
        stdout=out,
        stderr=slave if err is None else err,
        env=environment,
        text=True,
    )
    os.close(slave)
    printed, said = child.communicate(timeout=60)
    if err is None:
        said = os.read(master, 1 << 16).decode().replace("\r\n", "\n")
    os.close(master)
    return child.returncode, printed or "", said


RUN_TUI = "from specprof.commands import main; main(['tui', '--pair', 'tiny_dev'])"


def test_a_terminal_that_can_not_be_drawn_on() -> None:
    code, out, err = in_a_terminal(RUN_TUI, out=subprocess.PIPE, TERM="dumb")
    assert code == 2 and out == "" and "TERM is dumb" in err and len(err.splitlines()) == 2, err
    code, out, err = in_a_terminal(RUN_TUI, out=subprocess.PIPE, err=subprocess.PIPE)
    assert code == 2 and out == "" and "standard error" in err and len(err.splitlines()) == 2, err


def test_while_the_screen_is_drawn_nothing_else_is_written() -> None:
    program = """
import logging, shutil, sys
from specprof.commands import narration
from specprof.commands.tui import _terminal_to_itself
narration.set_up(detailed=False, quiet=False, as_json=False)
with _terminal_to_itself():
    narration.LOG.warning("%s", "said meanwhile")
    print(*shutil.get_terminal_size(), file=sys.stderr)
print("the document")
"""
    code, out, err = in_a_terminal(program, out=subprocess.PIPE)
    assert (code, out) == (0, "the document\n")
    assert err.splitlines() == ["101 37", "warning: said meanwhile"], "the size is the terminal's, not the pipe's"


# Replays


def saved(name: str = large_run.RUN, **options: Any) -> Path:
    return large_run.write(Path("results"), large_run.run(run_id=name, **options), name)


@pytest.mark.parametrize("name", [large_run.RUN, large_run.RUN[:12], f"results/{large_run.RUN}.jsonl"])
@pytest.mark.usefixtures("terminal")
def test_a_replay(name: str) -> None:
    path = saved()
    ok("tui", "--replay", name, "--speed", "16")
    screen = Screen.last
    assert screen.start and screen.offer.replay and screen.choice.pace == 16
    feed = screen.open_feed(screen.choice)
    texts, kept, run, *_ = feed.read()
    assert isinstance(kept, Kept) and kept.path is not None and Path(kept.path).samefile(path)
    assert isinstance(texts, Texts) and len(texts.tokens) > 20
    assert isinstance(run, RunStarted) and run.run_id == path.stem
    assert not feed.live
    feed.close()
    assert not remembered.remembered_in().exists()


def test_what_can_not_be_replayed() -> None:
    Path("notes.txt").write_text("not a run\n", encoding="utf-8")
    assert command("tui", "--replay", "notes.txt").code == 2
    saved("20261121-101500-7f3c")
    saved("20261121-101500-8a2b")
    error, hint = command("tui", "--replay", "20261121").told
    assert "fits 2" in error and "8a2b" in hint


# What is printed in the end


@pytest.mark.usefixtures("terminal")
def test_json_has_a_document_of_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = saved("20261121-101500-7f3c"), saved("20261121-102000-8a2b", baseline=False)
    monkeypatch.setattr(Screen, "leaves", {"kept": [str(first), "results/never-finished.jsonl", str(second)]})
    outcome = ok("tui", "--json")
    document = outcome.document
    assert document["schema"] == "specprof.tui/1"
    assert document["runs"] == [ok("results", "show", path.stem, "--json").document for path in (first, second)]
    whole, alone = document["runs"]
    assert whole["schema"] == "specprof.run/1" and whole["speedup_decode"]["value"] is not None
    assert alone["speedup_decode"] is None or alone["speedup_decode"]["value"] is None
    assert outcome.err.splitlines() == [f"events: {first}", f"events: {second}"]


@pytest.mark.usefixtures("terminal")
def test_json_where_nothing_was_finished() -> None:
    assert ok("tui", "--json").document["runs"] == []
    assert ok("tui").out == ""


@pytest.mark.usefixtures("terminal")
def test_json_of_a_run_that_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [event for event in large_run.run() if not isinstance(event, RunEnded)]
    path = large_run.write(Path("results"), events[: len(events) // 2])
    monkeypatch.setattr(Screen, "leaves", {"kept": [str(path)]})
    (run,) = ok("tui", "--json").document["runs"]
    assert run["run_id"] == path.stem and 0 < run["speculative"]["num_prompts"] < 6


@pytest.mark.usefixtures("terminal")
def test_json_keeps_nothing_where_nothing_is_to_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def during(screen: Screen) -> None:
        directory = engine().session.results_dir
        assert directory is not None and directory.is_dir() and directory != Path("results")
        screen.kept = [str(large_run.write(directory, large_run.run()))]

    monkeypatch.setattr(Screen, "run", during)
    outcome = ok("tui", "--pair", "tiny_dev", "--json", "--no-save")
    (run,) = outcome.document["runs"]
    assert run["events_file"] is None and run["run_id"] == large_run.RUN
    assert not Path(Screen.last.kept[0]).exists() and not Path("results").exists() and outcome.err == ""


@pytest.mark.usefixtures("terminal")
def test_json_of_a_replay() -> None:
    path = saved()
    (run,) = ok("tui", "--replay", path.stem, "--json").document["runs"]
    assert run == ok("results", "show", path.stem, "--json").document


@pytest.mark.parametrize(("code", "error"), [(3, UnavailableError), (4, None), (1, None)])
@pytest.mark.usefixtures("terminal")
def test_a_failure_is_said_once_more(
    monkeypatch: pytest.MonkeyPatch, code: int, error: type[SpecprofError] | None
) -> None:
    failure = Failed("the engine\nis gone", "start it again", code, ("its last words",))
    monkeypatch.setattr(Screen, "leaves", {"failure": failure})
    outcome = command("tui", "--json")
    assert outcome.code == code == (error.exit_code if error else code)
    assert outcome.told == ("the engine is gone", "start it again")
    assert outcome.document["runs"] == []
    assert "engine: its last words" in command("tui", "--debug").err


@pytest.mark.usefixtures("terminal")
def test_how_the_screen_was_left_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Screen, "leaves", {"return_code": 130})
    assert command("tui") == Outcome(130, "", "")


@pytest.mark.usefixtures("terminal")
def test_the_engine_is_ended_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(screen: Screen) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Screen, "run", fail)
    assert command("tui", "--pair", "tiny_dev").code == 1
    assert Screen.last.went == ["end"]


@pytest.mark.usefixtures("terminal")
def test_a_report_is_written_by_another_process() -> None:
    path = saved()
    ok("tui")
    save: Callable[[Path], Sequence[Path]] = Screen.last.options["save_report"]
    written = save(path)
    assert written == [Path(f"results/{path.stem}.html"), Path(f"results/{path.stem}.md")]
    assert all(each.stat().st_size > 1000 for each in written)
    Path("notes.txt").write_text("not a run\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"not a run|damaged") as refused:
        save(Path("notes.txt"))
    assert refused.value.hint


# What there is to choose from


def test_what_is_offered() -> None:
    Path("specprof.toml").write_text(f'[pairs.mine]\ndraft = "{DRAFT}"\ntarget = "{TARGET}"\n', encoding="utf-8")
    offered = offer()
    here = {pair.name: pair.here for pair in offered.pairs}
    assert next(iter(here)) == "tiny_dev"
    assert here["tiny_dev"] and here["tiny_cross"] and here["mine"]
    found = [bool(each) for each in here.values()]
    assert found == sorted(found, reverse=True), "what is here stands first"
    assert "layerskip" in offered.drafters and "code" in offered.domains and not offered.replay


def test_models_in_the_cache_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def here() -> bool | None:
        return next(pair.here for pair in offer().pairs if pair.name == "gpt2_dev")

    assert here() is False
    for name in ("gpt2", "gpt2-xl"):
        snapshot = tmp_path / f"models--{name}" / "snapshots" / "1"
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}", encoding="utf-8")
        assert here() is False
        (snapshot / "model.safetensors").touch()
    assert here() is True


def test_a_broken_file_of_pairs_is_said_before_the_screen_is_drawn() -> None:
    Path("specprof.toml").write_text("[pairs", encoding="utf-8")
    outcome = command("tui")
    assert outcome.code == 2 and "specprof.toml" in outcome.told[0]


def test_models_to_be_fetched_are_left_to_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which can be stopped on its way; what is on this machine is looked at before."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setattr(hub, "ask", lambda *_: pytest.fail("the network was asked"))
    settings = Settings({})
    assert settings.session(Choice("gpt2_dev"), None).config.pair.name == "gpt2_dev"
    with pytest.raises(UnavailableError):
        settings.session(Choice(None, "./nowhere", "gpt2"), None)
    with pytest.raises(UnavailableError):
        Settings({"offline": True}).session(Choice("gpt2_dev"), None)


# What is remembered


@pytest.mark.usefixtures("terminal")
def test_the_last_choice_is_proposed_again() -> None:
    chosen = Choice(None, DRAFT, TARGET, k=AUTO_K, temperature=0.7, prompts="code")
    ok("tui")
    Screen.last.options["remember"](chosen)
    ok("tui")
    assert Screen.last.choice == chosen
    ok("tui", "--k", "3", "--prompts", "summarization")
    assert (Screen.last.choice.k, Screen.last.choice.prompts, Screen.last.choice.draft) == (3, "summarization", DRAFT)
    ok("tui", "--pair", "tiny_dev")
    assert Screen.last.choice == Choice("tiny_dev"), "a command line means the same every day"


def test_a_typed_text_is_not_remembered() -> None:
    remembered.remember(Choice("gpt2_dev", prompt="a secret"))
    assert "secret" not in remembered.remembered_in().read_text(encoding="utf-8")
    assert remembered.last_choice(Choice()) == Choice("gpt2_dev")


@pytest.mark.parametrize(
    "kept",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"k": "4"}',
        b'{"k": -2}',
        b'{"k": true}',
        b'{"temperature": NaN}',
        b'{"temperature": -1}',
        b'{"pair": 3}',
        b'{"prompts": ""}',
        b'{"draft_layers": 0}',
        b"[" * 100_000,
    ],
)
def test_what_is_damaged_is_as_if_it_were_not_there(kept: bytes) -> None:
    path = remembered.remembered_in()
    path.parent.mkdir(parents=True)
    path.write_bytes(kept)
    assert remembered.last_choice(Choice("tiny_dev")) == Choice("tiny_dev")


def test_keys_of_another_version_are_passed_over() -> None:
    path = remembered.remembered_in()
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"k": 2, "mood": "good", "prompt": "x"}), encoding="utf-8")
    assert remembered.last_choice(Choice("tiny_dev")) == Choice("tiny_dev", k=2)


@pytest.mark.usefixtures("terminal")
def test_where_nothing_can_be_remembered(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file", encoding="utf-8")
    remembered.remember(Choice("gpt2_dev"))
    ok("tui")
    assert Screen.last.choice == Choice("tiny_dev")


@pytest.mark.usefixtures("terminal")
def test_a_remembered_pair_that_is_gone_stops_nobody() -> None:
    remembered.remember(Choice("a_pair_of_another_directory", prompts="./gone.jsonl"))
    ok("tui")
    with pytest.raises(UsageError, match="a_pair_of_another_directory"):
        engine()


# What is loaded


def test_its_help_loads_no_screen() -> None:
    program = """
import runpy, sys
sys.argv = ["specprof", "tui", "--help"]
try:
    runpy.run_module("specprof", run_name="__main__", alter_sys=True)
except SystemExit as ended:
    assert ended.code in (0, None), ended.code
"""
    assert loaded_after(program).isdisjoint(HEAVY)


def test_the_screen_loads_no_torch() -> None:
    heavy = set(HEAVY) - {"textual", "huggingface_hub"}
    loaded = loaded_after("import specprof.tui.start, specprof.commands.choosing as c; c.offer()")
    assert "textual" in loaded and loaded.isdisjoint(heavy)
