#!/usr/bin/env bash
# Style and tests, but for the nightly ones. Flags go to pytest: `bash scripts/test.sh -k processor`, `-m nightly`.
set -euo pipefail
cd "$(dirname "$0")/.."

. scripts/install.sh --editable '.[dev]'

# Tests open reports in a browser, which root gets here. Without one they are skipped, or fail where VISIONFLOW_BROWSER=required.
if ! command -v chromium chromium-browser google-chrome google-chrome-stable >/dev/null \
    && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium; } \
        >/dev/null || echo "no browser: apt-get could not install chromium" >&2
fi

ruff check .
ruff format --check .
python -m pytest --numprocesses 2 --dist loadgroup "$@"
