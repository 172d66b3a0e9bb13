"""`visionflow crossvalidate`: every stimulus held out once, by a model that was trained without it."""

import os
import tempfile

import numpy as np
from datasets import DatasetDict, concatenate_datasets

from visionflow_hf.corpus.schema import open_corpus
from visionflow_hf.corpus.splits import stimulus_folds
from visionflow_hf.evaluation.predictions import concatenate, predict
from visionflow_hf.evaluation.report import MARKER, write_report
from visionflow_hf.folders import refuse_existing
from visionflow_hf.training.arguments import ModelArguments, VisionFlowTrainingArguments
from visionflow_hf.training.train import train_on


def crossvalidate(
    corpus: str | os.PathLike,
    out: str | os.PathLike,
    model_args: ModelArguments,
    training_args: VisionFlowTrainingArguments,
    folds: int = 10,
    overwrite: bool = False,
) -> dict:
    """Train once a fold on all other stimuli of all splits, and write one report over all stimuli to the folder `out`.

    Responses and predictions are expressed in the mean and standard deviation of their fold's train rows before they
    are pooled: in raw units the folds' means alone would push voxel r below zero.
    """
    refuse_existing(out, overwrite, MARKER)
    opened = open_corpus(corpus)
    rows = concatenate_datasets(list(opened.splits.values()))
    seed = training_args.seed
    parts, histories = [], []
    splits = list(stimulus_folds(rows["stimulus_id"], folds, seed))
    for fold, (train_rows, held_out) in enumerate(splits):
        print(f"fold {fold + 1} of {folds}: {len(train_rows)} rows to train on, {len(held_out)} held out", flush=True)
        train, test = rows.select(train_rows), rows.select(held_out)
        with tempfile.TemporaryDirectory(prefix="visionflow-fold-") as run:
            trained = train_on(DatasetDict(train=train), run, model_args, training_args)
            part = predict(trained.model, trained.processor, opened, train, test)
        histories.append(trained.history)
        parts.append(standardised(part, trained.processor) | {"fold": np.full(len(part["stimulus_id"]), fold)})
    header = {"split": f"{folds} folds by stimulus", "n_folds": folds, "seed": seed}
    return write_report(out, concatenate(parts), histories, header, overwrite)


def standardised(part: dict[str, np.ndarray], processor) -> dict[str, np.ndarray]:
    """Responses and predictions in standard deviations from the mean of the fold's train rows."""
    result = dict(part)
    for name, values in part.items():
        kind, _, subject = name.rpartition("/")
        if kind.removeprefix("single_trial/").removeprefix("ridge/") in ("fmri", "fmri_predicted"):
            result[name] = (values - processor.fmri_mean[subject]) / processor.fmri_std[subject]
    return result
