# /// script
# requires-python = ">=3.10"
# dependencies = ["visionflow-hf"]
#
# [tool.hf-jobs]
# flavor = "l4x1"
# timeout = "6h"
# secrets = ["HF_TOKEN"]
# ///
"""Train on a corpus of the Hub, evaluate on its test split, and push the model with its card, as a job of the Hub.

hf jobs uv run scripts/train_on_hub.py ORG/CORPUS ORG/MODEL [flags of `visionflow train`]
"""

import sys

from visionflow_hf.cli import main

if len(sys.argv) < 3:
    sys.exit(f"usage: train_on_hub.py ORG/CORPUS ORG/MODEL [flags of `visionflow train`]\n{__doc__}")
corpus, name, *flags = sys.argv[1:]
for command in (
    ["train", corpus, "model", *flags],
    ["evaluate", "model", corpus, "report"],
    ["push", "model", name],
):
    status = main(command)
    if status:
        sys.exit(status)
