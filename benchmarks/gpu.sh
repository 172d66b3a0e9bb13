#!/usr/bin/env bash
# Tests on a GPU, then the table of benchmarks/gpu.md: `bash benchmarks/gpu.sh WORK`, 8 minutes at most.
set -uo pipefail
cd "$(dirname "$0")/.."
work="${1:?usage: bash benchmarks/gpu.sh WORK}"
timeout 160 python -m pytest -q -n 4 --durations 12 -m gpu tests/test_gpu.py
tests=$?
timeout 320 python benchmarks/gpu.py "$work" --seconds 300
exit $((tests + $?))
