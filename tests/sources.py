"""Which layout the fixture `source` writes, its import by the command line, and all rows of what came of it."""

import numpy as np
import pandas as pd
import pytest
from datasets import load_from_disk

from visionflow_hf.cli import main
from visionflow_hf.corpus import mosaic
from visionflow_hf.corpus.schema import open_corpus


def of(*names):
    return pytest.mark.parametrize("source", names, indirect=True)


def prepare(layout, source, out, *flags) -> int:
    return main(["prepare", layout, str(source), str(out), *map(str, flags)])


def table_of(writer, source) -> list:
    """The table or folder, and the flags, that import what a writer of `layouts` made for `prepare table`."""
    return {
        "table": [
            *(source / "trials.tsv", "--images-folder", source / "images"),
            *("--betas", source / "betas" / "{subject}_{session}_betas.nii.gz"),
            *("--mask", source / "masks" / "sub-{subject}_mask.nii.gz"),
            *("--rois", source / "rois" / "sub-{subject}_regions.nii.gz", source / "rois" / "regions.tsv"),
            *("--noise-ceiling", source / "ceilings" / "sub-{subject}_ceiling.nii.gz"),
        ],
        "table_of_arrays": [
            *(source / "trials.csv", "--images-folder", source / "images"),
            *("--betas", source / "betas" / "session.{kind}"),
            *("--subject-column", "participant", "--image-column", "picture"),
        ],
        "bids": [source / "derivatives", "--images-folder", source / "stimuli", "--image-column", "label"],
    }[writer]


def prepare_table(writer, source, out, *flags) -> int:
    path, *own = table_of(writer, source)
    return prepare("table", path, out, *own, *flags)


def small_mosaic(monkeypatch) -> None:
    """Read what `layouts.mosaic_small` writes, whose cortex has 7 and 6 vertices."""
    for name, number in (("LEFT", 7), ("CORTEX", 13), ("GRAYORDINATES", 16)):
        monkeypatch.setattr(mosaic, name, number)


def rows_of(out) -> dict[tuple[str, str, int], tuple[str, np.ndarray, np.ndarray]]:
    """(subject, stimulus, repeat): split, pixels, fMRI of all rows of a corpus."""
    open_corpus(out)  # with its checks
    rows = {}
    for split, data in load_from_disk(str(out)).items():
        for row in data:
            key = (row["subject"], row["stimulus_id"], row["repeat"])
            assert key not in rows
            rows[key] = (split, np.asarray(row["image"]), np.array(row["fmri"], np.float32))
    return rows


def assert_rows(rows, expected):
    """Args: expected: (subject, stimulus, repeat): (split, pixels, fMRI), a None as split fits any."""
    assert set(rows) == set(expected)
    for key, (split, pixels, fmri) in expected.items():
        assert split in (None, rows[key][0]), key
        assert np.array_equal(rows[key][1], pixels), key
        assert rows[key][2].dtype == np.float32 and np.array_equal(rows[key][2], fmri.astype(np.float32)), key


def voxels_of(out, subject) -> pd.DataFrame:
    table = pd.read_parquet(out / "voxels.parquet")
    table = table[table["subject"] == subject]
    assert table["voxel"].tolist() == list(range(len(table)))
    return table


def names_of(expected) -> list[str]:
    return sorted({key[1] for key in expected})
