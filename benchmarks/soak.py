"""Hours of rounds on end: does memory stay flat, does the pace, do the clocks?

    python benchmarks/soak.py [--rounds 200000] [--prompts 36] [--forward auto] [--json] [--limit NAME=VALUE]

Decodes packaged prompts with the packaged pair, plainly and speculatively at several K, greedy and sampled, in turn,
and folds what happened as a run does. Ten lines say how it went, one tenth of the rounds each; the last line says
whether a limit is crossed (then the exit status is 1).

Pace is what rounds should have taken, by the mean of all rounds of their kind on their prompt, over what they took: 1
throughout, if nothing slows down, whatever a tenth is made of. It means something once every prompt has had its turn in
every tenth. Memory is what stays after the allocator has given back what nobody uses.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import json
import math
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import psutil
import torch

from specprof.data.prompts import builtin
from specprof.decoding.request import Request
from specprof.decoding.sampling import Sampling
from specprof.experiments.arms import compared_vocabularies, load_models, make_arms
from specprof.experiments.config import RunConfig
from specprof.experiments.engine import Decoder
from specprof.experiments.observer import Observer, text_of
from specprof.experiments.run import EncodedPrompt, encode_prompts, warm_up
from specprof.models.registry import get_pair
from specprof.profiling import machine
from specprof.profiling.metrics import GenerationResult, fold

LENGTHS = (1, 2, 4, 8)
TEMPERATURES = (0.0, 0.8)
LENGTH = 96
"""Tokens of an answer."""
SEED = 0
TENTHS = 10
SAMPLES = 300
"""Of memory."""
SETTLED = 0.1
"""Of the rounds: caches fill up and pools grow to their size before memory is judged."""

LIMITS = {
    "memory": 1024.0,  # KB per 100,000 rounds that memory grows by at least, two standard errors below the estimate
    "pace": 0.9,  # of the first tenth, in the last
    "files": 0.0,  # open files more than in the first tenth
    "threads": 0.0,
    "tensors": 0.0,
    "objects": 500.0,  # of Python's, per 100,000 rounds
    "covered": 2.0,  # percentage points that the share of the time that is in some phase changes by
    "drift": 1000.0,  # parts per million between the clock of the timers and the hardware's; NTP slews by 500
}
"""What is too much, or for the pace too little."""

ROUNDS = ("draft", "verify", "sample", "overhead")
PHASES = (*ROUNDS, "prefill")
_LIBC = ctypes.CDLL(None)
"""glibc can be asked for what its allocator keeps; others can't."""


@dataclass(slots=True)
class Tenth:
    """What happened in a tenth of the rounds."""

    rounds: int = 0
    generations: int = 0
    seconds: float = 0.0
    """Of decoding, prefill included, as seen from outside."""
    expected_seconds: float = 0.0
    phase_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    rss_bytes: int = 0
    files: int = 0
    threads: int = 0
    tensors: int = 0
    objects: int = 0
    by_kind: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Rounds of each kind on each prompt."""

    @property
    def covered(self) -> float:
        """The share of the time that is in some phase."""
        return sum(self.phase_seconds.values()) / self.seconds

    @property
    def pace(self) -> float:
        return self.expected_seconds / sum(self.phase_seconds[phase] for phase in ROUNDS)


@dataclass(frozen=True, slots=True)
class Soaked:
    """What a soak found."""

    rounds: int
    generations: int
    seconds: float
    tenths: tuple[Tenth, ...]
    memory_kb: float
    """KB that memory grows by per 100,000 rounds."""
    memory_kb_error: float
    """Its standard error, of blocks of samples: neighbours are no independent witnesses."""
    pace: float
    """Of the last tenth, over the first's."""
    covered: float
    """Percentage points from the first tenth to the last."""
    drift_ppm: float
    """What the timers' clock gained on the hardware's."""
    wall_drift_ppm: float
    """What it gained on the time of day, which may be set at any time."""
    objects: float
    """Python's, per 100,000 rounds."""
    crossed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to decode."""

    name: str
    temperature: float
    decoder: Decoder


def kinds_of(config: RunConfig) -> tuple[list[Kind], list[EncodedPrompt], Callable[[int], str]]:
    """Every way to decode, warm, and what is needed to ask for it."""
    models = load_models(config, compared_vocabularies(config))
    prompts = list(builtin())
    random.Random(SEED).shuffle(prompts)
    encoded = encode_prompts(config, make_arms(config, models), prompts)
    kinds = []
    for temperature in TEMPERATURES:
        for k in LENGTHS:
            asked = replace(config, k=k, temperature=temperature)
            arms = make_arms(asked, models)
            if k == LENGTHS[0]:
                kinds.append(Kind(f"AR t={temperature:g}", temperature, arms.baseline))
                warm_up(asked, arms, encoded[:1], decoders=[arms.baseline])
            kinds.append(Kind(f"K={k} t={temperature:g}", temperature, arms.speculative))
            warm_up(asked, arms, encoded[:1], decoders=[arms.speculative])
    return kinds, encoded, text_of(models.target.tokenizer)


def soak(
    num_rounds: int,
    *,
    num_prompts: int = 36,
    forward: str = "auto",
    each: Callable[[], object] = lambda: None,
    limits: dict[str, float] = LIMITS,
) -> Soaked:
    """Decode for so many rounds.

    Args:
        each: called after every generation, by who wants to plant something.
    """
    config = RunConfig(get_pair("tiny_dev"), ignore_eos=True, forward=forward, device="cpu", warmup=1)
    kinds, encoded, text = kinds_of(config)
    observer, process = Observer(text), psutil.Process()
    tenths: list[Tenth] = [Tenth()]
    memory: list[tuple[int, int]] = []
    kind_rounds: Counter[tuple[str, int]] = Counter()
    kind_seconds: defaultdict[tuple[str, int], float] = defaultdict(float)
    done = generations = 0
    gc.collect()
    clocks = _clocks()
    begin = time.perf_counter()
    for turn, (number, prompt, kind) in enumerate(_turns(encoded[:num_prompts], kinds)):
        # Another repetition every time, so that sampled texts differ.
        request = Request(prompt.ids, LENGTH, Sampling(kind.temperature), seed=SEED, repetition=turn)
        started = time.perf_counter()
        (result,) = fold(observer.events(kind.decoder, request))
        seconds = time.perf_counter() - started
        sort = (kind.name, number)
        kind_seconds[sort] += _add(tenths[-1], sort, result, seconds)
        kind_rounds[sort] += len(result.rounds)
        done, generations = done + len(result.rounds), generations + 1
        del result
        each()
        if done >= (len(memory) + 1) * num_rounds / SAMPLES:
            memory.append((done, _held(process)))
        if done >= len(tenths) * num_rounds / TENTHS:
            _close(tenths[-1], process)
            if done >= num_rounds:
                break
            tenths.append(Tenth())
    total = time.perf_counter() - begin
    true = _clocks()
    for tenth in tenths:
        tenth.expected_seconds = sum(
            rounds * kind_seconds[sort] / kind_rounds[sort] for sort, rounds in tenth.by_kind.items()
        )
    elapsed = [after - before for before, after in zip(clocks, true, strict=True)]
    slope, error = _slope([sample for sample in memory if sample[0] > SETTLED * done])
    first, last = tenths[0], tenths[-1]
    found = Soaked(
        rounds=done,
        generations=generations,
        seconds=total,
        tenths=tuple(tenths),
        memory_kb=slope / 1024 * 1e5,
        memory_kb_error=error / 1024 * 1e5,
        pace=last.pace / first.pace,
        covered=100 * (last.covered - first.covered),
        drift_ppm=1e6 * (elapsed[0] / elapsed[1] - 1),
        wall_drift_ppm=1e6 * (elapsed[0] / elapsed[2] - 1),
        objects=(last.objects - first.objects) * 1e5 / done,
        crossed=(),
    )
    return replace(found, crossed=tuple(_crossed(found, limits)))


def _turns(prompts: Sequence[EncodedPrompt], kinds: Sequence[Kind]) -> Iterator[tuple[int, EncodedPrompt, Kind]]:
    """All kinds of every prompt before the next one, in another order each time, for ever."""
    draw = random.Random(SEED)
    for number, prompt in itertools.cycle(enumerate(prompts)):
        for kind in draw.sample(kinds, len(kinds)):
            yield number, prompt, kind


def _add(tenth: Tenth, sort: tuple[str, int], result: GenerationResult, seconds: float) -> float:
    """Take in a generation; seconds of its rounds."""
    tenth.rounds += len(result.rounds)
    tenth.generations += 1
    tenth.seconds += seconds
    tenth.by_kind[sort] += len(result.rounds)
    spent = tenth.phase_seconds
    for round in result.rounds:
        spent["draft"] += round.draft_seconds
        spent["verify"] += round.verify_seconds
        spent["sample"] += round.sample_seconds
        spent["overhead"] += round.overhead_seconds
    spent["prefill"] += result.time_to_first_token
    return sum(result.per_token_latencies)


def _close(tenth: Tenth, process: psutil.Process) -> None:
    gc.collect()
    alive = gc.get_objects()
    tenth.rss_bytes, tenth.objects = _held(process), len(alive)
    tenth.tensors = sum(issubclass(type(each), torch.Tensor) for each in alive)
    tenth.files, tenth.threads = len(process.open_files()), process.num_threads()


def _held(process: psutil.Process) -> int:
    """Bytes of memory, after the allocator has given back what nobody uses."""
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)
    return int(process.memory_info().rss)


def _clocks() -> tuple[float, float, float]:
    """The timers', the hardware's, and the time of day."""
    raw = getattr(time, "CLOCK_MONOTONIC_RAW", None)
    return time.perf_counter(), time.perf_counter() if raw is None else time.clock_gettime(raw), time.time()


def _slope(samples: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Bytes a round, by least squares, and the standard error by ten blocks that are left out in turn."""
    if len(samples) < 2 * TENTHS:
        return math.nan, math.nan
    rounds, memory = np.array(samples, dtype=float).T
    slope = float(np.polyfit(rounds, memory, 1)[0])
    blocks = np.array_split(np.arange(len(samples)), TENTHS)
    left_out = [float(np.polyfit(np.delete(rounds, b), np.delete(memory, b), 1)[0]) for b in blocks]
    error = math.sqrt((TENTHS - 1) / TENTHS * sum((each - np.mean(left_out)) ** 2 for each in left_out))
    return slope, error


def _crossed(found: Soaked, limits: dict[str, float]) -> Iterator[str]:
    first, last = found.tenths[0], found.tenths[-1]
    measured = {
        "memory": found.memory_kb - 2 * found.memory_kb_error,
        "files": last.files - first.files,
        "threads": last.threads - first.threads,
        "tensors": last.tensors - first.tensors,
        "objects": found.objects,
        "covered": abs(found.covered),
        "drift": abs(found.drift_ppm),
    }
    yield from (name for name, value in measured.items() if value > limits[name])
    if found.pace < limits["pace"]:
        yield "pace"


def table(found: Soaked) -> str:
    """Ten lines, and the verdict."""
    head = ("rounds", "rounds/s", "pace", *(f"{phase} ms" for phase in PHASES), "covered", "RSS MB")
    counts = ("files", "threads", "tensors", "objects")
    lines = [" ".join(f"{word:>11}" for word in (*head, *counts))]
    rounds = 0
    for tenth in found.tenths:
        rounds += tenth.rounds
        cells = [
            f"{rounds}", f"{tenth.rounds / tenth.seconds:.0f}", f"{tenth.pace:.3f}",
            *(f"{1e3 * tenth.phase_seconds[phase] / tenth.rounds:.4f}" for phase in PHASES),
            f"{100 * tenth.covered:.2f} %", f"{tenth.rss_bytes / 2**20:.1f}",
            *(f"{getattr(tenth, name)}" for name in counts),
        ]  # fmt: skip
        lines.append(" ".join(f"{cell:>11}" for cell in cells))
    verdict = "within all limits" if not found.crossed else f"crossed: {', '.join(found.crossed)}"
    lines += [
        "",
        f"{found.rounds} rounds, {found.generations} generations, {found.seconds:.0f} s: memory "
        f"{found.memory_kb:+.0f} +- {2 * found.memory_kb_error:.0f} KB per 100,000 rounds (95 %), pace of the last "
        f"tenth {found.pace:.3f} of the first's, timers {found.drift_ppm:+.1f} ppm against the hardware's clock "
        f"({found.wall_drift_ppm:+.1f} against the time of day), time in phases {found.covered:+.2f} points, "
        f"objects {found.objects:+.0f} per 100,000 rounds: {verdict}",
    ]
    return "\n".join(lines)


def _described(tenth: Tenth) -> dict[str, object]:
    described = asdict(tenth) | {"pace": tenth.pace, "covered": tenth.covered}
    del described["by_kind"]
    return described


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200_000)
    parser.add_argument("--prompts", type=int, default=36)
    parser.add_argument("--forward", default="auto", help="auto, native, own, hf")
    parser.add_argument("--json", action="store_true", help="one document on stdout, the table on stderr")
    parser.add_argument("--limit", action="append", default=[], metavar="NAME=VALUE", help=", ".join(LIMITS))
    asked = parser.parse_args(arguments)
    limits = dict(LIMITS)
    for limit in asked.limit:
        name, _, value = limit.partition("=")
        if name not in limits:
            parser.error(f"there is no limit {name!r}: {', '.join(limits)}")
        limits[name] = float(value)
    found = soak(asked.rounds, num_prompts=asked.prompts, forward=asked.forward, limits=limits)
    print(table(found), file=sys.stderr if asked.json else sys.stdout)
    if asked.json:
        tenths = [_described(tenth) for tenth in found.tenths]
        document = asdict(replace(found, tenths=())) | {
            "tenths": tenths,
            "limits": limits,
            "machine": machine.describe(),
        }
        print(json.dumps(document, indent=2))
    return 1 if found.crossed else 0


if __name__ == "__main__":
    sys.exit(main())
