#!/usr/bin/env bash
# Installs a wheel as its users do, with pipx and with uv, each into a home of its own, and uses it from there.
#
#   scripts/try_wheel.sh dist/specprof-0.1.0-py3-none-any.whl [pipx|uv]
#
# Needs pipx and uv, and a network or wheels at hand: FIND_LINKS=/a/folder names some, such as PyTorch's build for the CPU.
# PYTHON=python3.12 chooses the Python. What was installed is removed again.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
wheel=$(realpath -- "$1")
ways=${2:-pipx uv}
python=$(command -v "${PYTHON:-python3}")
constraints=$root/constraints.txt
work=$(mktemp -d "${TMPDIR:-/tmp}/specprof-try.XXXXXX")
trap 'rm -rf "$work"' EXIT

# Nothing of the checkout or of this user's settings may help.
unset PYTHONPATH VIRTUAL_ENV
for name in "${!SPECPROF_@}"; do unset "$name"; done

use() {
  mkdir "$HOME/elsewhere" && cd "$HOME/elsewhere"
  specprof --version
  specprof run -n 2 --max-new-tokens 16 --reps 1 --no-cost-curve --quiet --json --output run.json >/dev/null
  specprof report
  specprof explain | head -5
  specprof tui --help >/dev/null
  "$python" -c 'import json; run = json.load(open("run.json")); print(run["schema"], run["num_prompts"], "prompts")'
}

for way in $ways; do
  export HOME=$work/$way
  mkdir "$HOME"
  export XDG_CACHE_HOME=$HOME/cache XDG_CONFIG_HOME=$HOME/config XDG_DATA_HOME=$HOME/data PATH=$HOME/bin:$PATH
  echo "--- $way"
  case $way in
  pipx)
    PIPX_HOME=$HOME/pipx PIPX_BIN_DIR=$HOME/bin pipx install --quiet --python "$python" \
      --pip-args "-c $constraints ${FIND_LINKS:+--find-links $FIND_LINKS}" "$wheel"
    ;;
  uv)
    UV_TOOL_DIR=$HOME/uv UV_TOOL_BIN_DIR=$HOME/bin uv tool install --quiet --python "$python" \
      --constraints "$constraints" ${FIND_LINKS:+--find-links "$FIND_LINKS"} "$wheel"
    ;;
  *) echo "error: $way is neither pipx nor uv" >&2 && exit 2 ;;
  esac
  test "$(command -v specprof)" = "$HOME/bin/specprof"
  (use)
done
echo "installed and used: $ways"
