"""What a corpus is: its columns, the voxel table beside them, and the checks that every reader relies on."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import DatasetDict, Features, Image, List, Value, load_from_disk

from visionflow_hf.corpus.shards import write_split
from visionflow_hf.errors import UserError, count
from visionflow_hf.folders import new_folder

FEATURES = Features(
    {
        "image": Image(),
        "fmri": List(Value("float32")),
        "subject": Value("string"),
        "stimulus_id": Value("string"),
        "repeat": Value("int32"),
    }
)
SPLITS = ("train", "validation", "test")
MARKER = "dataset_dict.json"  # what `datasets` leaves in the folder of a DatasetDict


@dataclass
class Corpus:
    """An opened and checked corpus.

    Attributes:
        splits: `train`, `test` and maybe `validation`, each with the columns of `FEATURES`.
        voxels: one row a voxel, see `voxel_table`.
        subjects: number of voxels of each subject, sorted by name.
    """

    splits: DatasetDict
    voxels: pd.DataFrame
    subjects: dict[str, int]

    @property
    def unit(self) -> str:
        """The unit of `fmri`, as the importer stated it."""
        return self.splits["train"].info.description

    def noise_ceiling(self, subject: str) -> np.ndarray:
        """Array of shape (voxels,), NaN where unknown."""
        table = self.voxels[self.voxels["subject"] == subject].sort_values("voxel")
        return table["noise_ceiling"].to_numpy(dtype=np.float64)


def pixel_hash(image: np.ndarray) -> str:
    """The name of a stimulus that has none: a hash of its uint8 pixels, array of shape (height, width[, channels])."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()[:16]


def voxel_table(subject: str, num_voxels: int, **columns) -> pd.DataFrame:
    """The part of `voxels.parquet` that belongs to one subject.

    Args:
        columns: what is known of `roi` (list of names a voxel), `noise_ceiling` (share of the variance of one corpus
            row, be it a trial or an average, that the stimulus explains) and the coordinates `x`, `y`, `z`, each of
            shape (voxels,). What is not given is empty, or null.
    """
    table = pd.DataFrame({"subject": subject, "voxel": np.arange(num_voxels, dtype=np.int32)})
    table["roi"] = columns.get("roi", [[] for _ in range(num_voxels)])
    for name in ("noise_ceiling", "x", "y", "z"):
        table[name] = np.asarray(columns.get(name, np.full(num_voxels, np.nan)), dtype=np.float64)
    return table


def write_corpus(
    path: str | os.PathLike,
    rows: dict[str, Callable[[], Iterator[dict]]],
    voxels: pd.DataFrame,
    *,
    unit: str,
    overwrite: bool = False,
) -> None:
    """Write a corpus folder, whole or not at all.

    Args:
        rows: for each split a function that yields its rows, dicts with the keys of `FEATURES`.
        voxels: the voxel tables of all subjects, one above the other.
        unit: what one unit of `fmri` means, in a phrase.
    """
    with new_folder(path, overwrite, marker=MARKER) as folder:
        write_splits(folder, rows, voxels, unit)


def write_splits(folder: Path, rows: dict[str, Callable[[], Iterator[dict]]], voxels: pd.DataFrame, unit: str) -> None:
    """What `write_corpus` writes, into a folder that is there already."""
    names = [name for name in SPLITS if name in rows]
    for name in names:
        write_split(folder / name, name, rows[name](), FEATURES, unit)
    voxels.to_parquet(folder / "voxels.parquet", index=False)
    (folder / MARKER).write_text(json.dumps({"splits": names}))


def open_corpus(path: str | os.PathLike) -> Corpus:
    """Open a corpus folder and check it: columns, voxel counts, finite responses, no stimulus in two splits.

    Raises:
        UserError: with the first thing that is wrong and its remedy.
    """
    path = Path(path)
    if not (path / MARKER).is_file():
        raise UserError(f"{path} is no corpus (no {MARKER} in it): make one with `visionflow prepare` or `simulate`")
    try:
        splits = load_from_disk(str(path))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"corpus {path} cannot be read ({error}): is it whole? Make it again") from error
    for name in ("train", "test"):
        if name not in splits:
            raise UserError(f"{path} has the splits {', '.join(splits)}: train and test are needed")
    for name, split in splits.items():
        missing = [column for column in FEATURES if column not in split.column_names]
        if missing:
            raise UserError(
                f"split {name} of {path} lacks {', '.join(missing)} (it has {', '.join(split.column_names)}): "
                f"the columns of a corpus are {', '.join(FEATURES)}"
            )
        if not len(split):
            raise UserError(f"split {name} of {path} has no rows")
    subjects = _voxel_counts(splits)
    _refuse_leakage(splits)
    return Corpus(splits, _read_voxels(path, subjects), dict(sorted(subjects.items())))


def _voxel_counts(splits: DatasetDict) -> dict[str, int]:
    """Number of voxels of each subject, after a look at every response."""
    counts: dict[str, int] = {}
    for name, split in splits.items():
        row = 0
        for batch in split.select_columns(["subject", "fmri"]).with_format("arrow").iter(1000):
            fmri = batch["fmri"].combine_chunks()
            if fmri.null_count:
                raise UserError(f"split {name} has {fmri.null_count} rows without fMRI: remove them")
            for subject, length in zip(batch["subject"].to_pylist(), fmri.value_lengths().to_pylist(), strict=True):
                if counts.setdefault(subject, length) != length:
                    raise UserError(
                        f"row {row} of split {name} has {length} voxels, {subject} has {counts[subject]} elsewhere: "
                        "a subject's responses share one length"
                    )
                row += 1
            bad = ~np.isfinite(fmri.flatten().to_numpy(zero_copy_only=False))
            if bad.any():
                place = np.concatenate([np.arange(length) for length in fmri.value_lengths().to_numpy()])
                raise UserError(
                    f"split {name} has {bad.sum()} NaN or infinite values in {count(np.unique(place[bad]), 'voxel')}: "
                    "remove these voxels or mend the values first"
                )
    return counts


def _refuse_leakage(splits: DatasetDict) -> None:
    seen: dict[str, str] = {}
    shared: dict[str, tuple[str, str]] = {}
    for name, split in splits.items():
        for stimulus in set(split["stimulus_id"]):
            if seen.setdefault(stimulus, name) != name:
                shared[stimulus] = (seen[stimulus], name)
    if shared:
        one, other = shared[min(shared)]
        raise UserError(
            f"{count(sorted(shared), 'stimulus')} in both {one} and {other}: a stimulus belongs to one split only"
        )


def _read_voxels(path: Path, subjects: dict[str, int]) -> pd.DataFrame:
    file = path / "voxels.parquet"
    if not file.is_file():
        raise UserError(f"{path} has no voxels.parquet: every corpus carries its voxel table beside the splits")
    voxels = pd.read_parquet(file)
    for subject, expected in subjects.items():
        rows = int((voxels["subject"] == subject).sum())
        if rows != expected:
            raise UserError(f"voxels.parquet has {rows} voxels of {subject}, the responses have {expected}")
    return voxels
