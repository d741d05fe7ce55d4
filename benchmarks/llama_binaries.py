"""llama.cpp through the programs of its build: llama-bench decodes plainly, llama-speculative-simple with a draft.

Each call is a process of its own; the seconds are those that the programs measure and print, of decoding alone:
loading, warm-up and the prompt are left out.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from gguf_of import read_back, written

from specprof.errors import UnavailableError

BENCH, SPECULATIVE = "llama-bench", "llama-speculative-simple"
RUNS_OF_BENCH = 3
ATTEMPTS = 10
"""At its end llama-speculative-simple doesn't wait for its own log: now and then the last lines are missing."""
_TIMEOUT_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Decoded:
    """One prompt's decoding: how many tokens in how many seconds, the prompt's pass left out."""

    num_tokens: int
    seconds: float
    num_drafted: int = 0
    num_accepted: int = 0
    tokens: tuple[int, ...] | None = None
    """The text; None where the program decodes tokens of its own choice."""


class Binaries:
    """The programs in a folder, with a target and a draft written by :func:`gguf_of.write_gguf`.

    Args:
        folder: of llama.cpp's programs, such as ``build/bin``.
        models: folder of ``target-<dtype>.gguf`` and ``draft-<dtype>.gguf``.
        threads: for both models.

    Raises:
        UnavailableError: a program isn't there, or doesn't run.
    """

    name = "llama.cpp's programs"

    def __init__(self, folder: Path, models: Path, threads: int) -> None:
        for program in (BENCH, SPECULATIVE):
            if not (folder / program).is_file():
                raise UnavailableError(
                    f"{folder} has no {program}",
                    f"build it: cmake --build build --target {BENCH} {SPECULATIVE}; --bin names the folder it lands in",
                )
        self.folder, self.models, self.threads = folder, models, threads
        self._speculative_help = self._run([SPECULATIVE, "--help"])
        self._bench_help = self._run([BENCH, "--help"])

    def decode(self, dtype: str, k: int, prompt: list[int], length: int) -> Decoded:
        """Decode ``length`` tokens greedily behind a prompt, plainly if ``k`` is 0.

        Raises:
            UnavailableError: the program failed, or prints what isn't understood.
        """
        return self._speculative(dtype, k, prompt, length) if k else self._plain(dtype, len(prompt), length)

    def describe(self) -> dict[str, str | None]:
        version = re.search(r"version:\s*(.+)", self._run([SPECULATIVE, "--version"], check=False))
        return {"kind": "binaries", "version": version[1].strip() if version else None}

    def _plain(self, dtype: str, depth: int, length: int) -> Decoded:
        # Its prompt and text are random tokens: the work is the same at the same depth, the text is nobody's.
        command = [BENCH, "-m", self._model("target", dtype), "-t", str(self.threads), "-ngl", "0", "-o", "json"]
        command += ["-p", "0", "-n", str(length), "-r", str(RUNS_OF_BENCH)]
        if "--n-depth" in self._bench_help:
            command += ["-d", str(depth)]
        return plain_decoding(self._run(command, merge=False))

    def _speculative(self, dtype: str, k: int, prompt: list[int], length: int) -> Decoded:
        command = [SPECULATIVE, "-m", self._model("target", dtype), "-md", self._model("draft", dtype)]
        command += ["-t", str(self.threads), "-ngl", "0", "-ngld", "0", "-n", str(length)]
        # One candidate is the cheapest of its greedy samplers.
        command += ["--temp", "0", "--samplers", "top_k", "--top-k", "1"]
        if "--spec-draft-n-max" in self._speculative_help:
            command += ["--spec-type", "draft-simple", "--spec-draft-n-max", str(k), "--spec-draft-p-min", "0"]
        else:
            command += ["--draft-max", str(k), "--draft-min", "0", "--draft-p-min", "0"]
        with NamedTemporaryFile("w", suffix=".txt") as file:
            file.write(written(prompt))
            file.flush()
            for _ in range(ATTEMPTS):
                decoded = speculative_decoding(self._run([*command, "-f", file.name]), prompt)
                if decoded is not None:
                    return decoded
        raise UnavailableError(f"{SPECULATIVE} printed no measurement", "its version may be too old or too new")

    def _model(self, role: str, dtype: str) -> str:
        return str(self.models / f"{role}-{dtype}.gguf")

    def _run(self, command: list[str], *, merge: bool = True, check: bool = True) -> str:
        program, *arguments = command
        try:
            finished = subprocess.run(
                [str((self.folder / program).resolve()), *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=_TIMEOUT_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UnavailableError(f"{program} does not run: {error}", "check that it runs by itself") from None
        if check and finished.returncode:
            last = (finished.stderr.strip().splitlines() or ["no message"])[-1]
            raise UnavailableError(
                f"{program} failed with exit status {finished.returncode}: {last}", f"run it by hand: {command}"
            )
        # Which of the two streams its messages go to has changed between versions.
        return finished.stdout + finished.stderr if merge else finished.stdout


def plain_decoding(output: str) -> Decoded:
    """What ``llama-bench -o json`` measured: the median run.

    Raises:
        UnavailableError: it isn't that.
    """
    try:
        [test] = json.loads(output)
        return Decoded(test["n_gen"], statistics.median(test["samples_ns"]) / 1e9)
    except (ValueError, KeyError, TypeError):
        raise UnavailableError(f"{BENCH} printed no measurement", "its version may be too old or too new") from None


def speculative_decoding(output: str, prompt: list[int]) -> Decoded | None:
    """What ``llama-speculative-simple`` printed: prompt and text, then its figures; None without all of these.

    Raises:
        UnavailableError: it read the prompt as other tokens.
    """
    decoded = re.search(r"decoded\s+(\d+) tokens in\s+([\d.]+) seconds, speed:\s+([\d.]+) t/s", output)
    drafted, accepted = (re.search(rf"\b{name}\s*=\s*(\d+)\s", output) for name in ("n_drafted", "n_accept"))
    if decoded is None or drafted is None or accepted is None:
        return None
    tokens = read_back(output)
    if tokens[: len(prompt)] != prompt:
        raise UnavailableError(f"{SPECULATIVE} read other tokens than the prompt's", "its version may be too old")
    count = int(decoded[1])
    # Of time it prints milliseconds, of speed six digits or more.
    return Decoded(count, count / float(decoded[3]), int(drafted[1]), int(accepted[1]), tuple(tokens[len(prompt) :]))
