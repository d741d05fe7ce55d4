"""``python -m fuzz``: as many cases as asked for, on several cores, with a table at the end."""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

for _name, _value in (("OMP_NUM_THREADS", "1"), ("HF_HUB_OFFLINE", "1"), ("TOKENIZERS_PARALLELISM", "false")):
    os.environ.setdefault(_name, _value)  # before torch and huggingface_hub are imported, which read them once

from fuzz.chunk import Chunk, again, run_chunk, table  # noqa: E402
from fuzz.draw import draw_case  # noqa: E402
from fuzz.invariants import problems  # noqa: E402
from fuzz.run_case import run_case  # noqa: E402

CHUNK = 25


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--seed", type=int, help="of all of them (default: another each time)")
    parser.add_argument("--only", type=int, metavar="N", help="this one alone; its folder stays")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first (default: 0)")
    parser.add_argument(
        "--jobs", type=int, default=min(4, os.cpu_count() or 1), help="processes (default: %(default)s)"
    )
    asked = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if asked.seed is None else asked.seed
    if asked.only is not None:
        return _one(seed, asked.only)
    began = time.monotonic()
    total = Chunk()
    numbers = range(asked.first, asked.first + asked.cases)
    for chunk in _chunks(seed, numbers, max(1, asked.jobs)):
        for failure in chunk.failures:
            print(failure, "\n", flush=True)
        total.add(chunk)
        print(f"{total.number} of {asked.cases} cases, {len(total.failures)} failed", file=sys.stderr, flush=True)
    print("\n".join(table(total)))
    print(f"seed {seed}, {time.monotonic() - began:.0f} s")
    return 1 if total.failures else 0


def _chunks(seed: int, numbers: range, jobs: int) -> Iterator[Chunk]:
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    parts = [numbers[begin : begin + CHUNK] for begin in range(0, len(numbers), CHUNK)]
    if jobs == 1:
        yield from (run_chunk(seed, part) for part in parts)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(run_chunk, seed, part) for part in parts]):
            yield done.result()


def _one(seed: int, number: int) -> int:
    case = draw_case(seed, number)
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{seed}-{number}-"))
    print(f"folder: {folder}\nfiles: {', '.join(file.path for file in case.files)}\n{case}\nkind: {case.kind}")
    print(f"stdin {case.stdin!r}, terminal {case.terminal}, encoding {case.encoding}", flush=True)
    result = run_case(case, folder)
    print(f"exit code: {result.code}\nwritten: {', '.join(result.changed) or '-'}")
    print(f"--- standard output\n{result.out!r}\n--- standard error\n{result.err}", flush=True)
    found = problems(case, result)
    print("\n".join(f"PROBLEM: {problem}" for problem in found) or "all is well")
    print(again(seed, number))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
