"""What watching costs: the terminal interface against ``specprof run`` on the same prompts.

    python benchmarks/observer.py [--repetitions 6] [--json]

1. Tokens per second of both arms with the interface open (default settings, a real pseudo-terminal of 120 x 40) over
   those of ``specprof run`` with as many threads, in processes that take turns (ABBA). On few cores the engine leaves
   one to the screen; what that costs beside PyTorch's own choice of threads is measured as well.
2. The share of one core that the interface's own process takes meanwhile.
3. Time from the start of the process to its first picture, and from a key to what it changes, while text is generated.
4. Memory of the interface over the replay of a long run.

Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import pty
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from specprof.experiments.saved_runs import read_run, saved_runs
from specprof.profiling import machine
from specprof.profiling.metrics import BASELINE

SPECPROF = (sys.executable, "-m", "specprof")
WORK = ("--pair", "tiny_dev", "--k", "4", "-n", "12", "--max-new-tokens", "96")
COLUMNS, ROWS = 120, 40
LONG_RUN_TOKENS = 100_000
ARMS = ("AR", "SD")
ON_THE_MAIN_SCREEN, ON_THE_HELP_PAGE = "Acceptance", "Going on and stopping"


class Terminal:
    """A command in a pseudo-terminal of its own, whose output is read as it comes; nothing is left of it afterwards."""

    def __init__(self, *arguments: str) -> None:
        self.started = time.perf_counter()
        self.pid, self._master = pty.fork()
        if self.pid == 0:
            os.environ |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
            os.execv(sys.executable, [*SPECPROF, *arguments])
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.process = psutil.Process(self.pid)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *raised: object) -> None:
        started = [self.process, *self.process.children(recursive=True)]
        try:
            if raised[0] is None:
                self._quit()
        finally:
            for process in started:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            with contextlib.suppress(ChildProcessError):  # it has been waited for
                os.waitpid(self.pid, 0)
            os.close(self._master)

    def send(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def read(self, seconds: float) -> bytes:
        """What comes within so many seconds; returns as soon as something has come."""
        if not select.select([self._master], [], [], seconds)[0]:
            return b""
        try:
            return os.read(self._master, 1 << 16)
        except OSError:  # its other end is closed
            return b""

    def wait_for(self, text: str, seconds: float) -> float:
        """Seconds until a text is drawn, from now on."""
        start, seen = time.perf_counter(), b""
        while time.perf_counter() - start < seconds:
            seen = (seen + self.read(0.2))[-(1 << 17) :]
            if text.encode() in seen:
                return time.perf_counter() - start
        raise SystemExit(f"{text!r} was not drawn within {seconds:g} s; last: {seen[-2000:]!r}")

    def wait_until(self, done: Callable[[], bool], seconds: float) -> None:
        start = time.perf_counter()
        while not done():
            self.read(0.1)
            if time.perf_counter() - start > seconds:
                raise SystemExit(f"not done within {seconds:g} s")

    def _quit(self) -> None:
        self.send("q")
        ended = time.perf_counter() + 10
        while time.perf_counter() < ended and not os.waitpid(self.pid, os.WNOHANG)[0]:
            self.read(0.05)


def speeds(file: Path) -> dict[str, float]:
    """Tokens per second of decoding, by arm, of all generations in a run's file."""
    results = read_run(file).results
    arms = {"AR": [r for r in results if r.decoder == BASELINE], "SD": [r for r in results if r.decoder != BASELINE]}
    return {
        name: sum(r.num_decode_tokens for r in arm) / sum(r.decode_seconds for r in arm) for name, arm in arms.items()
    }


def without(options: Sequence[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as directory:
        command = [*SPECPROF, "run", *WORK, *options, "--reps", "1", "--no-cost-curve", "--results-dir", directory]
        subprocess.run([*command, "-q"], check=True, stdout=subprocess.DEVNULL)
        return speeds(saved_runs(Path(directory))[-1].path)


def watched(options: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
    """The speeds, and what the interface itself took and how fast it was."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        with Terminal("tui", *WORK, *options, "--reps", "1", "--results-dir", directory) as terminal:
            terminal.wait_for("tiny_dev", 30)
            first_paint = time.perf_counter() - terminal.started
            terminal.wait_for(ON_THE_MAIN_SCREEN, 120)
            before, since = cpu_seconds(terminal.process), time.perf_counter()
            terminal.wait_until(lambda: any(run.complete for run in saved_runs(place)), 300)
            cpu = (cpu_seconds(terminal.process) - before) / (time.perf_counter() - since)
            found = speeds(saved_runs(place)[-1].path)
    return found, {"first_paint_seconds": first_paint, "cpu_share": cpu}


def reactions(options: Sequence[str]) -> list[float]:
    """Seconds from a key to what it changes, while text is generated."""
    arguments = ("tui", *WORK, *options, "--reps", "20")
    found = []
    with tempfile.TemporaryDirectory() as directory, Terminal(*arguments, "--results-dir", directory) as terminal:
        terminal.wait_for(ON_THE_MAIN_SCREEN, 120)
        for _ in range(12):
            terminal.send("?")
            found.append(terminal.wait_for(ON_THE_HELP_PAGE, 10))
            drain(terminal, 0.7)
            terminal.send("\x1b")
            drain(terminal, 0.7)
    return found


def drain(terminal: Terminal, seconds: float) -> None:
    end = time.perf_counter() + seconds
    while (left := end - time.perf_counter()) > 0:
        terminal.read(left)


def replayed_memory() -> list[int]:
    """Resident bytes of the interface, once a second, while it replays a run of 100,000 tokens."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from large_run import prompts, run, write

    with tempfile.TemporaryDirectory() as directory:
        file = write(Path(directory), run(prompts(LONG_RUN_TOKENS // 1000), num_tokens=500))
        found: list[int] = []
        with Terminal("tui", "--replay", str(file), "--speed", "16") as terminal:
            terminal.wait_for("replay", 60)
            ended = time.perf_counter() + 240
            while time.perf_counter() < ended and (not found or len(found) < 12 or not _still(terminal)):
                drain(terminal, 1)
                found.append(terminal.process.memory_info().rss)
    return found


def _still(terminal: Terminal) -> bool:
    return not terminal.read(1.5)


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def measure(repetitions: int, engine_threads: int | None) -> dict[str, Any]:
    """The document."""
    cores = len(os.sched_getaffinity(0))
    threads = engine_threads or max(1, cores - 1)
    options = [] if engine_threads is None else ["--threads", str(engine_threads)]
    bare: dict[str, list[dict[str, float]]] = {"as many threads": [], "PyTorch's threads": []}
    seen: list[tuple[dict[str, float], dict[str, float]]] = []
    turns: list[Callable[[], None]] = [
        lambda: bare["as many threads"].append(without(["--threads", str(threads)])),
        lambda: seen.append(watched(options)),
        lambda: bare["PyTorch's threads"].append(without([])),
    ]
    for repetition in range(repetitions):
        for turn in turns if repetition % 2 == 0 else reversed(turns):
            turn()
            print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    keys = reactions(options)
    return {
        "machine": machine.describe(),
        "cores": cores,
        "threads": threads,
        "tokens_per_second_watched": {arm: statistics.median(each[arm] for each, _ in seen) for arm in ARMS},
        "tokens_per_second_alone": {
            name: {arm: statistics.median(each[arm] for each in alone) for arm in ARMS} for name, alone in bare.items()
        },
        "watched_over_alone": {
            name: {arm: [shown[arm] / each[arm] for each, (shown, _) in zip(alone, seen, strict=True)] for arm in ARMS}
            for name, alone in bare.items()
        },
        "cpu_share": statistics.median(cost["cpu_share"] for _, cost in seen),
        "first_paint_seconds": statistics.median(cost["first_paint_seconds"] for _, cost in seen),
        "reaction_seconds_median": statistics.median(keys),
        "reaction_seconds_worst": max(keys),
        "replay_memory_bytes": replayed_memory(),
    }


def table(document: dict[str, Any]) -> str:
    threads, memory = document["threads"], document["replay_memory_bytes"]
    beside = "1 thread" if threads == 1 else f"{threads} threads"
    lines = [
        f"{document['cores']} cores, {beside} beside the interface; tokens/s, and watched over alone: median (each)"
    ]
    for name, alone in document["tokens_per_second_alone"].items():
        lines.append(f"specprof run, {name}:")
        for arm, ratios in document["watched_over_alone"][name].items():
            lines.append(
                f"  {arm}  {alone[arm]:.0f} alone, {document['tokens_per_second_watched'][arm]:.0f} watched: "
                f"{statistics.median(ratios):.3f} ({', '.join(f'{ratio:.3f}' for ratio in sorted(ratios))})"
            )
    early, late = (memory[place] / 2**20 for place in (len(memory) // 4, -1))
    median, worst = (document[f"reaction_seconds_{which}"] * 1e3 for which in ("median", "worst"))
    lines += [
        f"interface: {document['cpu_share'] * 100:.0f} % of one core",
        f"first picture after {document['first_paint_seconds']:.2f} s",
        f"key to reaction: median {median:.0f} ms, worst {worst:.0f} ms",
        f"memory of a long replay: {early:.0f} MiB after a quarter, {late:.0f} at the end",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=6)
    parser.add_argument("--threads", type=int, help="of the engine; default: its own choice")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    document = measure(arguments.repetitions, arguments.threads)
    print(json.dumps(document, indent=2) if arguments.json else table(document))


if __name__ == "__main__":
    main()
