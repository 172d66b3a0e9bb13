#!/usr/bin/env bash
# The whole job on a simulated cortex: corpus, training, figures and pictures, all under demo/.
set -euo pipefail
cd "$(dirname "$0")/.."

echo "Installing into .venv (minutes the first time, seconds later)."
. scripts/install.sh --editable .

python scripts/demo.py
