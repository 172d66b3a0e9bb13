#!/usr/bin/env bash
# The whole job on a simulated cortex: corpus, training, figures and pictures, all under demo/.
set -euo pipefail
cd "$(dirname "$0")/.."

. scripts/install.sh --editable .

visionflow simulate demo/corpus --overwrite
visionflow train demo/corpus demo/model --overwrite
visionflow evaluate demo/model demo/corpus demo/report --overwrite

echo "Figures, stimuli and their reconstructions: demo/report/report.html"
