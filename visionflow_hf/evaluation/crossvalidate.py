"""`visionflow crossvalidate`: every stimulus held out once, by a model that was trained without it."""

import os
import tempfile

import numpy as np
from datasets import DatasetDict, concatenate_datasets

from visionflow_hf.corpus.leakage import renamed, second_names, together
from visionflow_hf.corpus.responses import pairs_of, unpaired_of, without
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

    The splits of the corpus do not matter, so that a stimulus may be in two of them. Rows without an image or without
    fMRI are trained on in every fold that does not hold their stimulus out.

    Responses and predictions are expressed in the mean and standard deviation of their fold's train rows before they
    are pooled: in raw units the folds' means alone would push voxel r below zero.
    """
    refuse_existing(out, overwrite, MARKER)
    opened = open_corpus(corpus, allow_leakage=True)
    names = second_names(together(list(opened.pictures.values())))
    everything = concatenate_datasets(list(opened.splits.values()))
    if names:
        everything = renamed(everything, names)
    rows, unpaired = pairs_of(everything), unpaired_of(everything)
    seed = training_args.seed
    parts, histories = [], []
    for fold, (train_rows, held_out) in enumerate(stimulus_folds(rows["stimulus_id"], folds, seed)):
        print(f"fold {fold + 1} of {folds}: {len(train_rows)} rows to train on, {len(held_out)} held out", flush=True)
        train, test = rows.select(train_rows), rows.select(held_out)
        with tempfile.TemporaryDirectory(prefix="visionflow-fold-") as run:
            more = [without(unpaired, test)] if len(unpaired) else []
            splits = DatasetDict(train=concatenate_datasets([train, *more]))
            trained = train_on(splits, run, model_args, training_args)
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
