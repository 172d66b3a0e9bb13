#!/usr/bin/env bash
# Tests on a GPU, then the table of benchmarks/gpu.md: `bash benchmarks/gpu.sh WORK`, 8 minutes at most.
set -uo pipefail
cd "$(dirname "$0")/.."
work="${1:?usage: bash benchmarks/gpu.sh WORK}"
timeout 200 python -m pytest -q -m gpu tests/test_gpu.py
tests=$?
timeout 280 python benchmarks/gpu.py "$work" --seconds 260
exit $((tests + $?))
