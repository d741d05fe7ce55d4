#!/usr/bin/env bash
# The pictures of this folder: a run of the packaged pair, its report, and headless Chromium.
# Usage: docs/images/make.sh          (from the root of the checkout, after `make install`; 2 minutes, nothing else running)
set -euo pipefail
images=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$images"/../../.venv/bin/specprof run --k 4 -n 36 --reps 2 --results-dir "$work" >/dev/null
"$images"/../../.venv/bin/specprof report --results-dir "$work" --html "$work/report.html"

picture() { # NAME HEIGHT [FLAG...]
  chromium --headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --hide-scrollbars \
    --user-data-dir="$work/browser" --window-size="1000,$2" --screenshot="$images/$1.png" "${@:3}" \
    "file://$work/report.html" 2>/dev/null
}
picture report 1560
picture report-dark 1560 --blink-settings=preferredColorScheme=0
"$images"/../../.venv/bin/python "$images/tui.py" "$images"
