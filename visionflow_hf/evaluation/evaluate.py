"""`visionflow evaluate`: a trained model on a split of a corpus, beside its baselines."""

import json
import os
from pathlib import Path

from visionflow_hf.corpus.schema import open_corpus
from visionflow_hf.errors import UserError
from visionflow_hf.evaluation.predictions import predict
from visionflow_hf.evaluation.report import MARKER, write_report
from visionflow_hf.folders import refuse_existing
from visionflow_hf.hub import load_model


def evaluate(
    run: str | os.PathLike,
    corpus: str | os.PathLike,
    out: str | os.PathLike,
    split: str = "test",
    overwrite: bool = False,
) -> dict:
    """Write the report of `run` on `split` of `corpus` to the folder `out`; returns what metrics.json holds.

    The baselines are fitted on the corpus's train split.
    """
    refuse_existing(out, overwrite, MARKER)
    opened = open_corpus(corpus)
    if split not in opened.splits:
        raise UserError(f"{corpus} has no split {split}: it has {', '.join(opened.splits)}")
    model, processor = load_model(run)
    predictions = predict(model, processor, opened, opened.splits["train"], opened.splits[split])
    state = Path(run) / "trainer_state.json"
    histories = [json.loads(state.read_text())["log_history"]] if state.is_file() else []
    return write_report(out, predictions, histories, {"split": split}, overwrite)
