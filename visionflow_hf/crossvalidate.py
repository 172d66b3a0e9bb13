"""`visionflow crossvalidate`: every stimulus is held out once and predicted by a model trained without it.

Stimuli are held out by themselves, or with their whole category or session.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Collection
from contextlib import nullcontext, redirect_stdout
from functools import partial
from multiprocessing import parent_process
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, concatenate_datasets
from tqdm import tqdm

from visionflow_hf.corpus.categories import SIDE, clusters, small_copies
from visionflow_hf.corpus.leakage import renamed, second_names, seen_in_training, together
from visionflow_hf.corpus.merge import joined
from visionflow_hf.corpus.responses import chosen, each_image_of, images_of, pairs_of, unpaired_of, without
from visionflow_hf.corpus.schema import SPLIT_BY, Corpus, open_corpus
from visionflow_hf.corpus.splits import category_folds, session_folds, stimulus_folds
from visionflow_hf.errors import UserError
from visionflow_hf.evaluation.perceptual import require_networks
from visionflow_hf.evaluation.predictions import (
    OF_VOXELS,
    common_size,
    concatenate,
    embeddings_of,
    owner,
    predict,
    subjects_with_repeats,
)
from visionflow_hf.evaluation.report import MARKER, print_table, write_report
from visionflow_hf.evaluation.rows import Rows, write_rows
from visionflow_hf.folders import new_folder, refuse_existing
from visionflow_hf.processes import cores, run
from visionflow_hf.stimuli import Stimuli
from visionflow_hf.training.arguments import SCRATCH, ModelArguments, VisionFlowTrainingArguments
from visionflow_hf.training.build import build_model, build_processor, encoder_name
from visionflow_hf.training.train import train_on

logger = logging.getLogger(__name__)

FOLDS = 10
BLOCK = 256  # rows that are standardised at once


def crossvalidate(
    corpus: str | os.PathLike,
    out: str | os.PathLike,
    model_args: ModelArguments,
    training_args: VisionFlowTrainingArguments,
    folds: int | None = None,
    num_proc: int | None = 1,
    overwrite: bool = False,
    perceptual: bool = False,
    split_by: str = SPLIT_BY[0],
) -> dict:
    """Train one model per fold on all other stimuli, and write one report over all stimuli to the folder `out`.

    Folds are drawn over the rows of all splits, so that a stimulus may be in two splits of the corpus. Rows
    without an image or without fMRI are used for training in every fold that does not hold out their stimulus.

    Before they are pooled, responses and predictions are expressed in the mean and standard deviation of their fold's
    train rows: in raw units the differences between the folds' means alone would push voxel r below zero.

    Args:
        folds: number of folds, 2 to the number of stimuli, categories or sessions. None: 10, or as many as there are
            categories or sessions.
        num_proc: folds trained side by side, each in a new process. None: one per core where only CPUs are used and
            the encoder is trained from scratch, and therefore small; else one.
        perceptual: as in `evaluate`.
        split_by: `category` holds out whole categories: those of the corpus's column `category`, or clusters of the
            embeddings of a pretrained encoder, or else of images that look alike. `session` holds out the sessions of
            the column `session`, see `session_folds`.

    Returns:
        What metrics.json holds.

    Raises:
        UserError: the corpus cannot be used, `out` exists, or a number is out of range.
    """
    refuse_existing(out, overwrite, MARKER)
    if perceptual:
        require_networks()
    opened = open_corpus(corpus, allow_leakage=True)
    names = second_names(together(list(opened.pictures.values())))
    everything = joined(opened.splits.values())
    if names:
        everything = renamed(everything, names)
    rows, unpaired = pairs_of(everything), unpaired_of(everything)
    unpaired = unpaired if len(unpaired) else None  # a table without rows cannot be sent to another process
    if num_proc is None:
        side = model_args.image_size or max(rows[0]["image"].size)
        small = encoder_name([side, side], model_args) == SCRATCH
        num_proc = cores() if small and training_args.device.type == "cpu" else 1
    seed = training_args.seed
    size = common_size(each_image_of(rows, list(dict.fromkeys(rows["stimulus_id"]))))  # the same in all folds
    size = size or tuple(build_processor(rows, model_args.image_size).image_size[::-1])
    parted, told = split_folds(rows, split_by, folds, seed, model_args, training_args)
    check_folds(rows, parted, split_by)
    repeated = subjects_with_repeats(rows)
    names = [f"fold {fold + 1} of {len(parted)}" for fold in range(len(parted))]
    with new_folder(out, overwrite, marker=MARKER) as folder:
        scratch = folder / "scratch"
        scratch.mkdir()
        given = opened, rows, unpaired
        tasks = [
            partial(run_fold, *given, *parts, size, repeated, split_by, name, scratch, model_args, training_args)
            for parts, name in zip(parted, names, strict=True)
        ]
        parts, histories = [], []
        bar = tqdm(run(tasks, num_proc), total=len(parted), desc="folds", disable=num_proc == 1 or None)
        for part, history in bar:
            parts.append(part | {"fold": np.full(len(part["stimulus_id"]), len(parts))})
            histories.append(history)
        header = {"split": f"{len(parted)} folds by {split_by}", "n_folds": len(parted), "split_by": told}
        if model_args.from_model is not None:
            leaked = seen_in_training(model_args.from_model, together(list(opened.pictures.values())), "the folds")
            if leaked:
                logger.warning(f"{leaked}: the figures say how well it fits them, not how well it predicts new ones")
                header["leakage"] = leaked
        header |= {"seed": seed, "unit": opened.unit, "about": {"corpus": Path(corpus).resolve().name}}
        device = training_args.device if perceptual else None
        metrics = write_report(folder, concatenate(in_colour(parts)), histories, header, device)
        shutil.rmtree(scratch)
    print_table(metrics)
    return metrics


def check_folds(rows: Dataset, folds: list[tuple[np.ndarray, np.ndarray]], split_by: str) -> None:
    """Raise `UserError`, before any fold is trained, if a subject is held out in no fold, or has fewer than two stimuli
    to train on in one."""
    subjects, stimuli = np.array(rows["subject"][:]), np.array(rows["stimulus_id"][:])
    tested = np.zeros(len(rows), dtype=bool)
    for _, held_out in folds:
        tested[held_out] = True
    never = sorted(set(subjects) - set(subjects[tested]))
    if never:
        raise UserError(
            f"no fold by {split_by} holds out rows of {', '.join(never)}: a stimulus belongs to the {split_by} of "
            "its first row, which is another subject's; make a corpus of each subject"
        )
    if not tested.all():
        logger.warning(
            f"{np.sum(~tested)} of {len(rows)} rows are held out in no fold: a stimulus belongs to the {split_by} "
            "of its first row"
        )
    for number, (train, held_out) in enumerate(folds, start=1):
        for subject in np.unique(subjects[held_out]):
            left = len(set(stimuli[train][subjects[train] == subject]))
            if left < 2:
                raise UserError(
                    f"fold {number} of {len(folds)} leaves {left} of the stimuli of {subject} to train on, and 2 are "
                    "needed: take more folds, another --split-by, or leave this subject out"
                )


def in_colour(parts: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """The parts with all pictures in RGB, if those of a fold are: one whose train images are all grey has grey ones."""
    for name in {name for part in parts for name in part}:
        axes = max(part[name].ndim for part in parts if name in part)
        for part in parts:
            if axes == 4 and name in part and part[name].ndim == 3:
                part[name] = np.repeat(np.asarray(part[name])[..., None], 3, axis=-1)
    return parts


def split_folds(
    rows: Dataset,
    split_by: str,
    folds: int | None,
    seed: int,
    model_args: ModelArguments,
    training_args: VisionFlowTrainingArguments,
) -> tuple[list[tuple[np.ndarray, np.ndarray]], str]:
    """Train rows and held-out rows of each fold, and what is held out, in words."""
    stimulus_ids = rows["stimulus_id"][:]
    if split_by == "stimulus":
        return list(stimulus_folds(stimulus_ids, FOLDS if folds is None else folds, seed)), split_by
    if split_by == "session":
        sessions = column_of(rows, "session")
        if sessions is None:
            raise UserError(
                "the rows have no session, which --split-by session needs: import them with `prepare table`, `nsd`, "
                "`laion-fmri` or `things`, which write the column session"
            )
        several = next((one for one in sessions if ", " in one), None)
        if several is not None:
            raise UserError(
                f"a row is the mean of trials of sessions {several}: import the corpus without --average-repeats for "
                "--split-by session"
            )
        folds = min(FOLDS, len(set(sessions))) if folds is None else folds
        return list(session_folds(sessions, stimulus_ids, folds, seed)), f"session, {len(set(sessions))} in all"
    categories, what = column_of(rows, "category"), "categories of the corpus"
    if categories is None:
        names = list(dict.fromkeys(stimulus_ids))
        features, what = features_of(rows, names, model_args, training_args)
        of_stimulus = dict(zip(names, clusters(features, seed), strict=True))
    else:
        of_stimulus = dict(zip(reversed(stimulus_ids), reversed(categories), strict=True))  # its first row counts
    categories = [of_stimulus[name] for name in stimulus_ids]
    number = len(set(categories))
    folds = min(FOLDS, number) if folds is None else folds
    return list(category_folds(categories, folds, seed)), f"category, {number} {what}"


def column_of(rows: Dataset, name: str) -> list[str] | None:
    """A column that a corpus may have; None where it, or a value of it, is absent."""
    values = rows[name][:] if name in rows.column_names else [None]
    return None if None in values else [str(value) for value in values]


def features_of(
    rows: Dataset, names: list[str], model_args: ModelArguments, training_args: VisionFlowTrainingArguments
) -> tuple[np.ndarray, str]:
    """The features (stimuli, features) by which stimuli are alike, and their name."""
    processor = build_processor(rows, model_args.image_size)
    encoder = encoder_name(processor.image_size, model_args)
    if encoder == SCRATCH or model_args.from_model is not None:
        return small_copies(images_of(rows, names)), f"clusters of images that look alike ({SIDE} x {SIDE} px)"
    model = build_model(processor, model_args, rows).to(training_args.device)
    stimuli = Stimuli(processor, [rows], model, training_args.stimulus_cache)
    embedded = embeddings_of(stimuli, model, names).cpu().numpy()
    return embedded / np.linalg.norm(embedded, axis=1, keepdims=True), f"clusters of embeddings by {encoder}"


def run_fold(
    opened: Corpus,
    rows: Dataset,
    unpaired: Dataset | None,
    train_rows: np.ndarray,
    held_out: np.ndarray,
    size: tuple[int, int],
    repeated: Collection[str],
    split_by: str,
    name: str,
    scratch: str | os.PathLike,
    model_args: ModelArguments,
    training_args: VisionFlowTrainingArguments,
) -> tuple[dict[str, np.ndarray | Rows], list[dict]]:
    """Train on `train_rows`, predict `held_out`; returns the predictions and the Trainer's log history.

    Args:
        repeated: subjects whose single trials are predicted.
        scratch: folder for the training, and for images and responses, which the predictions read from there.
    """
    print(f"{name}: {len(train_rows)} rows to train on, {len(held_out)} held out", flush=True)
    train, test = rows.select(train_rows), rows.select(held_out)
    more = [] if unpaired is None else [without_groups(without(unpaired, test), test, split_by)]
    quiet = redirect_stdout(None) if parent_process() else nullcontext()  # the logs of parallel folds would mix
    with quiet, tempfile.TemporaryDirectory(dir=scratch) as run_folder:
        splits = DatasetDict(train=concatenate_datasets([train, *more]))
        trained = train_on(splits, run_folder, model_args, training_args)
        cache, own = training_args.stimulus_cache, Path(scratch, name.replace(" ", "-"))
        if not trained.encoder_is_frozen and trained.model.config.linear_layers:  # no other run can use its features
            cache = run_folder
        part = predict(trained.model, trained.processor, opened, train, test, own, cache, size, repeated)
    return standardised(part, trained.processor, own), trained.history


def without_groups(unpaired: Dataset, held_out: Dataset, split_by: str) -> Dataset:
    """The rows of no category or session that is held out, as far as the rows know theirs."""
    if split_by not in unpaired.column_names:
        return unpaired
    groups = set(held_out[split_by]) - {None}
    return chosen(unpaired, np.array([group not in groups for group in unpaired[split_by]], dtype=bool))


def standardised(part: dict[str, np.ndarray | Rows], processor, folder: Path) -> dict[str, np.ndarray | Rows]:
    """Responses and predictions in standard deviations from the mean of the fold's train rows, written to a folder."""
    result = {name: values for name, values in part.items() if not name.startswith(("fmri_mean/", "fmri_std/"))}
    for name, values in result.items():
        kind, subject = owner(name)
        if subject is not None and kind not in OF_VOXELS and not kind.endswith("log_likelihood"):
            mean, std = processor.fmri_mean[subject], processor.fmri_std[subject]
            blocks = ((values[start : start + BLOCK] - mean) / std for start in range(0, max(len(values), 1), BLOCK))
            result[name] = write_rows(folder / f"standardised-{len(os.listdir(folder))}.npy", blocks, len(values))
    return result
