#!/usr/bin/env bash
# Tests and benchmarks on a machine with a CUDA GPU, with what is there: PyTorch and transformers are enough, and no
# network is needed.
#
#     scripts/gpu.sh [FOLDER]          FOLDER is gpu-results by default; it gets the logs, the table and the JSON
#
#     PYTHON=...                       which Python (python3); 3.11 or newer
#     BENCHMARK="--shapes gpt2_dev"    flags for benchmarks/gpu.py;  BENCHMARK=no leaves it out
#     TESTS=no                         leaves the tests out
#
# Exits with 0 if all went well, 1 if a test failed or the benchmark broke off, 3 if something that is needed is missing,
# 4 without a CUDA GPU.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
results="${1:-gpu-results}"
python="${PYTHON:-python3}"

say() { printf '%s\n' "$*" >&2; }

if ! command -v "$python" >/dev/null; then
    say "error: there is no '$python'"
    say "hint:  name one, for instance: PYTHON=/usr/bin/python3.12 $0"
    exit 3
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    say "error: $("$python" --version) is too old"
    say "hint:  specprof needs Python 3.11 or newer: PYTHON=/usr/bin/python3.12 $0"
    exit 3
fi
for module in torch transformers; do
    if ! "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$module') is None)"; then
        say "error: $python has no $module"
        say "hint:  PyTorch with CUDA and transformers have to be there; name another Python with PYTHON=..."
        exit 3
    fi
done
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    say "error: PyTorch finds no CUDA GPU"
    say "hint:  what needs none: python benchmarks/gpu.py --device cpu --quick"
    exit 4
fi

mkdir -p "$results"
results="$(cd "$results" && pwd)"
cd "$root"
# The checkout itself is imported: the links in specprof/ make it a whole package, installed or not.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

"$python" - <<'PYTHON' | tee "$results/machine.txt" >&2 || say "the machine could not be described"
import importlib.util
import re
import sys
import tomllib

import torch
import transformers

print(f"{torch.cuda.get_device_name()}; PyTorch {torch.__version__}, transformers {transformers.__version__}, "
      f"Python {sys.version.split()[0]}")
NAMES = {"huggingface_hub": "huggingface_hub", "pyyaml": "yaml", "py-spy": None}
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
missing = []
for requirement in (*project["dependencies"], *project["optional-dependencies"]["energy"], "pytest", "hypothesis"):
    name = re.match(r"[A-Za-z0-9_.-]+", requirement)[0]
    module = {"nvidia-ml-py": "pynvml"}.get(name, NAMES.get(name, name.replace("-", "_")))
    if module is not None and importlib.util.find_spec(module) is None:
        missing.append(name)
print("missing, and done without:", ", ".join(missing) if missing else "nothing")
PYTHON

status=0

# --- tests: those marked gpu, of the files that can be imported with what is there
has() { "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)"; }
if [ "${TESTS:-yes}" = no ]; then
    say "tests: left out"
elif ! has pytest; then
    say "tests: left out, there is no pytest"
else
    # tests/conftest.py needs hypothesis; all it does for these tests is to skip them where there is no GPU.
    conftest=()
    has hypothesis || conftest=(--noconftest)
    : >"$results/tests.txt"
    while IFS= read -r file; do
        say "tests: $file"
        code=0
        "$python" -m pytest -q -m gpu -p no:cacheprovider "${conftest[@]+"${conftest[@]}"}" "$file" \
            >"$results/test.log" 2>&1 || code=$?
        cat "$results/test.log" >>"$results/tests.txt"
        if [ "$code" -eq 2 ] && grep -q 'ModuleNotFoundError' "$results/test.log"; then
            say "  not run: $(grep -m 1 -o "No module named '[^']*'" "$results/test.log")"
        elif [ "$code" -eq 0 ] || [ "$code" -eq 5 ]; then
            say "  $(tail -n 1 "$results/test.log")"
        else
            tail -n 30 "$results/test.log" >&2
            status=1
        fi
    done < <(grep -l 'mark\.gpu' tests/test_*.py)
    rm -f "$results/test.log"
fi

# --- benchmarks
if [ "${BENCHMARK:-}" = no ]; then
    say "benchmark: left out"
else
    say "benchmark: benchmarks/gpu.py, under 8 minutes"
    # Several flags in one variable: they are meant to be split.
    # shellcheck disable=SC2086
    "$python" benchmarks/gpu.py --output "$results/gpu.json" ${BENCHMARK:-} | tee "$results/gpu.txt" || status=1
fi
say "results: $results"
exit "$status"
