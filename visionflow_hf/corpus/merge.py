"""`visionflow merge`: two corpora as one, split by split."""

import os
from collections.abc import Callable

import pandas as pd
import pyarrow as pa
from datasets import Dataset, DatasetDict, concatenate_datasets

from visionflow_hf.corpus.leakage import leakage, replaced, together
from visionflow_hf.corpus.schema import FEATURES, MARKER, SPLITS, Corpus, read_corpus, save_corpus
from visionflow_hf.errors import UserError
from visionflow_hf.folders import new_folder, refuse_existing


def merge(
    one: str | os.PathLike,
    other: str | os.PathLike,
    out: str | os.PathLike,
    overwrite: bool = False,
    report: Callable[[str], None] = print,
) -> None:
    """Write the corpus `out` with the rows of both.

    A subject may be in both; its voxel table is then that of `one`, and the repeats of a stimulus count on in `other`.

    Args:
        report: told, a line each, what a reader of the corpus should know.

    Raises:
        UserError: a subject with two numbers of voxels, a name with two images, or a stimulus that would then be in
            two splits; nothing is written then.
    """
    refuse_existing(out, overwrite, MARKER)
    first, second = read_corpus(one), read_corpus(other)
    for subject in sorted(first.subjects.keys() & second.subjects.keys()):
        here, there = first.subjects[subject], second.subjects[subject]
        if here != there:
            raise UserError(
                f"{subject} has {here} voxels in {one} and {there} in {other}: "
                "the same name is the same voxels, so import one of them under another name"
            )
    splits = DatasetDict()
    for name in SPLITS:
        parts = [
            corpus.splits[name].select_columns(list(FEATURES)) for corpus in (first, second) if name in corpus.splits
        ]
        if len(parts) == 2:
            parts[1] = replaced(parts[1], "repeat", pa.array(repeats_after(*parts), pa.int32()))
        if parts:
            splits[name] = concatenate_datasets(parts)
    pictures = {
        name: together([corpus.pictures[name] for corpus in (first, second) if name in corpus.pictures])
        for name in splits
    }
    together(list(pictures.values()))  # a name that has one image in one split and another in the next is refused
    shared = leakage(splits, pictures)
    if shared:
        raise UserError(
            f"merged there would be {shared}: a stimulus belongs to one split only, remove it from one corpus"
        )
    voxels = second.voxels[~second.voxels["subject"].isin(list(first.subjects))]
    voxels = pd.concat([table for table in (first.voxels, voxels) if len(table)] or [first.voxels], ignore_index=True)
    unit = one_unit(first, second, report)
    with new_folder(out, overwrite, marker=MARKER) as folder:
        save_corpus(folder, splits, voxels, unit)
    report(", ".join(f"{name}: {len(rows)} rows" for name, rows in splits.items()))


def repeats_after(first: Dataset, second: Dataset) -> list[int]:
    """The repeats of the second, counted on where the first has trials of the same subject and stimulus."""
    columns = ("subject", "stimulus_id", "repeat")
    count: dict[tuple, int] = {}
    for subject, stimulus, repeat in zip(*(first[column] for column in columns), strict=True):
        count[subject, stimulus] = max(count.get((subject, stimulus), 0), repeat + 1)
    return [
        repeat + count.get((subject, stimulus), 0)
        for subject, stimulus, repeat in zip(*(second[column] for column in columns), strict=True)
    ]


def one_unit(first: Corpus, second: Corpus, report: Callable[[str], None]) -> str:
    """What the merged corpus says of its unit, and a word where the two differ."""
    units = {corpus.unit: list(corpus.subjects) for corpus in (second, first) if corpus.subjects}
    if len(units) < 2:
        return next(iter(units), first.unit)
    unit = "; ".join(f"{unit} ({', '.join(subjects)})" for unit, subjects in reversed(units.items()))
    report(f"the units differ: {unit}. Voxels are standardised subject by subject: mind those who are in both")
    return unit
