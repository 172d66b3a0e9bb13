#!/usr/bin/env bash
# Style and all tests. Flags go to pytest: `bash scripts/test.sh -k processor`.
set -euo pipefail
cd "$(dirname "$0")/.."

. scripts/install.sh --editable '.[dev]'

ruff check .
ruff format --check .
python -m pytest --numprocesses 2 "$@"
