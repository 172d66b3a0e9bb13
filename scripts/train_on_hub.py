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

hf jobs uv run scripts/train_on_hub.py ORG/CORPUS ORG/MODEL [--private] [flags of `visionflow train`]
"""

import argparse
import sys

from visionflow_hf.cli import main

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("corpus", metavar="ORG/CORPUS")
parser.add_argument("model", metavar="ORG/MODEL")
parser.add_argument("--private", action="store_true", help="make a new repository private")
given, flags = parser.parse_known_args()
corpus, name = given.corpus, given.model
for command in (
    ["train", corpus, "model", *flags],
    ["evaluate", "model", corpus, "report"],
    ["push", "model", name, *(["--private"] if given.private else [])],
):
    status = main(command)
    if status:
        sys.exit(status)
