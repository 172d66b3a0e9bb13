"""`visionflow inspect`: what a corpus holds, what is wrong with it, and what is odd about it."""

import os
from collections import Counter

import numpy as np
import pandas as pd
from datasets import Dataset
from rich.console import Console
from rich.table import Table

from visionflow_hf.corpus.checks import check_rows, check_trainable, check_voxels
from visionflow_hf.corpus.leakage import Picture, in_words, leakage, look, refusal, second_names
from visionflow_hf.corpus.responses import pairs_of, presence
from visionflow_hf.corpus.schema import corpus_folder, read_splits, read_voxels, voxel_table
from visionflow_hf.errors import UserError, count

FEW_STIMULI = 50
BATCH = 256  # rows whose responses are in memory at once


class VoxelFigures:
    """Sums over the responses of one subject, voxel by voxel; NaN and infinite values are counted and left out."""

    def __init__(self, first: np.ndarray):
        self.shift = np.where(np.isfinite(first), first, 0).astype(np.float64)  # keeps the squares small
        self.count, self.sum, self.squares = np.zeros((3, len(first)))
        self.low, self.high = np.full(len(first), np.inf), np.full(len(first), -np.inf)
        self.trials = self.missing = 0

    def add(self, fmri: np.ndarray) -> None:
        """Count responses (trials, voxels) in."""
        there = np.isfinite(fmri)
        values = np.where(there, fmri - self.shift, 0)
        self.trials += len(fmri)
        self.missing += int((~there).sum())
        self.count += there.sum(0)
        self.sum += values.sum(0)
        self.squares += np.square(values).sum(0)
        self.low = np.minimum(self.low, np.where(there, fmri, np.inf).min(0))
        self.high = np.maximum(self.high, np.where(there, fmri, -np.inf).max(0))

    @property
    def mean(self) -> float:
        """Over voxels and trials."""
        return float((self.shift + self.sum / self.count.clip(min=1)).mean())

    @property
    def std(self) -> float:
        """Over trials, the mean of the voxels'."""
        variance = self.squares / self.count.clip(min=1) - np.square(self.sum / self.count.clip(min=1))
        return float(np.sqrt(variance.clip(min=0)).mean())

    @property
    def constant(self) -> int:
        return int((self.low == self.high).sum())


def summarise(path: str | os.PathLike, allow_leakage: bool = False) -> dict:
    """What the page shows, ready for JSON.

    The page of a corpus that breaks a rule is made all the same: `problems` says what `train` refuses, `warnings` what
    it does not, each with its remedy.

    Args:
        path: folder, or ORG/NAME on the Hub.
        allow_leakage: a stimulus in two splits is a warning and no problem.

    Raises:
        UserError: no corpus, or one that cannot be read at all.
    """
    folder = corpus_folder(path)
    splits = read_splits(folder)
    voxels, problems = check_rows(splits)
    table, pictures = voxel_table("", 0), {name: {} for name in splits}
    try:
        read = read_voxels(folder)
        wrong = check_voxels(read, voxels)
        problems += wrong
        table = table if wrong else read
    except UserError as error:
        problems.append(str(error))
    try:
        pictures = look(splits)
    except UserError as error:
        problems.append(str(error))
    shared = leakage(splits, pictures)
    warnings = [refusal(shared)] if shared and allow_leakage else []
    problems += [refusal(shared)] if shared and not allow_leakage else []
    duplicates = {name: in_words(second_names(shown)) for name, shown in pictures.items()}

    paired = Counter(pairs_of(splits["train"])["subject"]) if "train" in splits else {}
    figures = {name: response_figures(split, voxels) for name, split in splits.items()}
    summary = {
        "corpus": str(path),
        "unit": next(iter(splits.values())).info.description,
        "disk_mib": round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20, 2),
        "splits": {name: split_summary(split, pictures[name]) for name, split in splits.items()},
        "subjects": {
            subject: {"voxels": number, "train_pairs": paired.get(subject, 0)}
            | subject_summary(table, subject, {name: one[subject] for name, one in figures.items()})
            for subject, number in voxels.items()
        },
        "duplicate_images": {name: words for name, words in duplicates.items() if words},
        "leakage": shared or None,
    }
    warnings += [] if problems else check_trainable(splits)
    return summary | {"problems": problems, "warnings": warnings + oddities(summary)}


def response_figures(split: Dataset, voxels: dict[str, int]) -> dict[str, VoxelFigures]:
    """The figures of each subject's responses in a split; of a length that is not the subject's, none."""
    figures = {subject: VoxelFigures(np.zeros(number)) for subject, number in voxels.items()}
    for batch in split.select_columns(["subject", "fmri"]).with_format("arrow").iter(BATCH):
        batch = batch.filter(batch["fmri"].is_valid())
        subjects = np.array(batch["subject"].to_pylist(), dtype=object)
        lengths = batch["fmri"].combine_chunks().value_lengths().to_numpy()
        for subject in set(subjects) & voxels.keys():
            rows = np.flatnonzero((subjects == subject) & (lengths == voxels[subject]))
            if len(rows):
                values = batch["fmri"].take(rows).combine_chunks().flatten().to_numpy(zero_copy_only=False)
                values = values.reshape(len(rows), -1)
                if not figures[subject].trials:
                    figures[subject] = VoxelFigures(values[0])
                figures[subject].add(values)
    return figures


def split_summary(split: Dataset, pictures: dict[str, Picture]) -> dict:
    has_image, has_fmri = presence(split)
    trials = pd.DataFrame({"subject": split["subject"], "stimulus": split["stimulus_id"]})[has_fmri]
    repeats = trials.groupby(["subject", "stimulus"]).size()
    return {
        "trials": int(has_fmri.sum()),
        "pairs": int((has_image & has_fmri).sum()),
        "images_alone": int((has_image & ~has_fmri).sum()),
        "fmri_alone": int((~has_image & has_fmri).sum()),
        "stimuli": len(set(split["stimulus_id"]) - {None}),
        "trials_per_stimulus": [int(repeats.min()), int(repeats.max())] if len(repeats) else None,
        "image_sizes": sorted({f"{shown.size[1]} x {shown.size[0]}" for shown in pictures.values()}),
    }


def subject_summary(table: pd.DataFrame, subject: str, figures: dict[str, VoxelFigures]) -> dict:
    """Mean, standard deviation and constant voxels are those of train; missing values those of all splits."""
    seen = figures.get("train")
    known = seen is not None and seen.trials > 0
    rows = table[table["subject"] == subject]
    ceiling = rows["noise_ceiling"].dropna()
    return {
        "train_trials": seen.trials if known else 0,
        "trials": {name: one.trials for name, one in figures.items()},
        "mean": seen.mean if known else None,
        "std": seen.std if known else None,
        "constant_voxels": seen.constant if known else 0,
        "missing_values": sum(one.missing for one in figures.values()),
        "rois": rows["roi"].explode().dropna().value_counts().sort_index().to_dict(),
        "noise_ceiling_median": float(ceiling.median()) if len(ceiling) else None,
        "noise_ceiling_known": len(ceiling),
    }


def oddities(summary: dict) -> list[str]:
    """What a model can be trained with, but its user should know."""
    warnings = []
    for name, words in summary["duplicate_images"].items():
        warnings.append(
            f"{count(words, 'image')} of {name} with two names: each is one stimulus; rename it if it is not"
        )
    for name, split in summary["splits"].items():
        if len(split["image_sizes"]) > 1:
            warnings.append(
                f"{name} has images of {len(split['image_sizes'])} sizes: train brings them to the most common one; "
                "crop them first where their shapes differ"
            )
    if not summary["unit"]:
        warnings.append("the unit of the fMRI is not stated: say it in `unit` where the corpus is written")
    for subject, figures in summary["subjects"].items():
        if not figures["train_pairs"]:
            warnings.append(f"{subject} has no pair in train: a model leaves it out; add pairs, or remove its rows")
        if figures["constant_voxels"]:
            warnings.append(
                f"{subject} has {figures['constant_voxels']} constant voxels in train: they are standardised to 0; "
                "or drop them"
            )
        if figures["noise_ceiling_median"] is None:
            warnings.append(
                f"{subject} has no noise ceiling, so that figures are not normalised by it: "
                "import the trials of repeated stimuli, or fill noise_ceiling of voxels.parquet"
            )
    train = summary["splits"].get("train")
    if train and len(summary["subjects"]) == 1 and train["stimuli"] < FEW_STIMULI:
        warnings.append(f"train has {train['stimuli']} distinct stimuli: `crossvalidate` tests on all of them")
    return warnings


def print_summary(summary: dict) -> None:
    console = Console(width=100, markup=False, highlight=False)
    console.print(f"{summary['corpus']}: {summary['disk_mib']} MiB on disk")
    console.print(f"unit of the fMRI: {summary['unit'] or 'not stated'}", soft_wrap=True)
    splits = Table(
        "split", "trials", "pairs", "images alone", "fMRI alone", "stimuli", "trials a stimulus", "height x width"
    )
    for name, split in summary["splits"].items():
        low, high = split["trials_per_stimulus"] or ("-", "-")
        sizes = split["image_sizes"]
        more = f", {len(sizes) - 3} more" if len(sizes) > 3 else ""
        splits.add_row(
            name,
            *(str(split[column]) for column in ("trials", "pairs", "images_alone", "fmri_alone", "stimuli")),
            str(low) if low == high else f"{low} to {high}",
            ", ".join(sizes[:3]) + more,
        )
    console.print(splits)
    if summary["subjects"]:
        console.print(subject_table(summary["subjects"]))
    twice = sum(map(len, summary["duplicate_images"].values()))
    console.print(f"images with two names: {twice}; in two splits: {summary['leakage'] or 'none'}", soft_wrap=True)
    for kind in ("problems", "warnings"):
        for line in summary[kind]:
            console.print(f"{kind.removesuffix('s')}: {line}", soft_wrap=True)


def subject_table(subjects: dict[str, dict]) -> Table:
    table = Table("subject", "voxels", "trials", "mean", "std", "constant", "missing", "noise ceiling", "ROI sizes")
    for name, subject in subjects.items():
        figures = [subject[figure] for figure in ("mean", "std", "noise_ceiling_median")]
        mean, std, ceiling = ("-" if value is None else f"{value:.3g}" for value in figures)
        table.add_row(
            name,
            str(subject["voxels"]),
            ", ".join(f"{trials} {split}" for split, trials in subject["trials"].items()),
            mean,
            std,
            str(subject["constant_voxels"]),
            str(subject["missing_values"]),
            ceiling if subject["noise_ceiling_known"] in (0, subject["voxels"]) else f"{ceiling} (some)",
            ", ".join(f"{roi} {number}" for roi, number in subject["rois"].items()) or "-",
        )
    return table
