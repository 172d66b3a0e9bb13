# /// script
# requires-python = ">=3.10"
# dependencies = ["visionflow-hf"]
#
# [tool.hf-jobs]
# flavor = "l4x1"
# timeout = "6h"
# secrets = ["HF_TOKEN"]
# ///
"""Train on a corpus of the Hub, push the model, evaluate it on the test split, and push its card, as a job of the Hub.

hf jobs uv run scripts/train_on_hub.py ORG/CORPUS ORG/MODEL [--private] [--allow-leakage] [flags of `visionflow train`]
"""

import argparse
import sys

from visionflow_hf.cli import main
from visionflow_hf.errors import UserError
from visionflow_hf.hub import prepare_push

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("corpus", metavar="ORG/CORPUS")
parser.add_argument("model", metavar="ORG/MODEL")
parser.add_argument("--private", action="store_true", help="make a new repository private")
parser.add_argument("--allow-leakage", action="store_true", help="as of `visionflow train` and `evaluate`")
given, flags = parser.parse_known_args()
corpus, name = given.corpus, given.model
try:
    prepare_push(name, given.private)
except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
allowed = ["--allow-leakage"] if given.allow_leakage else []
push = ["push", "model", name, *(["--private"] if given.private else [])]
status = main(["train", corpus, "model", *allowed, *flags])
if not status:  # the model is pushed before its evaluation, too, which may fail
    ended = [main(command) for command in (push, ["evaluate", "model", corpus, "report", *allowed], push)]
    status = next(filter(None, ended), 0)
sys.exit(status)
