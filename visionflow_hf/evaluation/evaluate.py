"""`visionflow evaluate`: a trained model on a split of a corpus, beside its baselines."""

import json
import os
from pathlib import Path

from visionflow_hf.corpus.responses import pairs_of
from visionflow_hf.corpus.schema import open_corpus
from visionflow_hf.errors import UserError
from visionflow_hf.evaluation.forerunner import baseline_encoder, forerunner_predictions
from visionflow_hf.evaluation.perceptual import require_networks
from visionflow_hf.evaluation.predictions import predict
from visionflow_hf.evaluation.report import MARKER, write_report
from visionflow_hf.folders import refuse_existing
from visionflow_hf.hub import add_result, load_model
from visionflow_hf.results import result_of


def evaluate(
    run: str | os.PathLike,
    corpus: str | os.PathLike,
    out: str | os.PathLike,
    split: str = "test",
    overwrite: bool = False,
    allow_leakage: bool = False,
    perceptual: bool = False,
    baseline: str | None = None,
    encoder: str | None = None,
) -> dict:
    """Write the report of `run` on `split` of `corpus` to the folder `out`; returns what metrics.json holds.

    The baselines are fitted on the pairs of the corpus's train split. The card of a `run` that is a folder here takes
    the figures up.

    Args:
        corpus: folder, or ORG/NAME on the Hub.
        allow_leakage: evaluate even where a stimulus is in two splits; metrics.json then says so.
        perceptual: add the figures of `visionflow_hf.evaluation.perceptual`, whose networks are downloaded.
        baseline: `forerunner` for that baseline beside the others, see `visionflow_hf.evaluation.forerunner`.
        encoder: the forerunner's, see `baseline_encoder` there.
    """
    refuse_existing(out, overwrite, MARKER)
    opened = open_corpus(corpus, allow_leakage)
    if split not in opened.splits:
        raise UserError(f"{corpus} has no split {split}: it has {', '.join(opened.splits)}")
    model, processor = load_model(run)
    if perceptual:
        require_networks()
    begin = baseline_encoder(encoder, model.config.vision_config) if baseline else None
    train, asked = (pairs_of(opened.splits[name]) for name in ("train", split))
    predictions = predict(model, processor, opened, train, asked)
    if begin is not None:
        predictions |= forerunner_predictions(begin, processor, train, predictions)
    state = Path(run) / "trainer_state.json"
    histories = [json.loads(state.read_text())["log_history"]] if state.is_file() else []
    header = {"split": split} | ({"leakage": opened.leakage} if opened.leakage else {})
    metrics = write_report(out, predictions, histories, header, overwrite, perceptual)
    add_result(run, result_of(metrics, corpus, opened.license))
    return metrics
