"""Which layout the fixture `source` writes, its import by the command line, and all rows of what came of it."""

import numpy as np
import pytest
from datasets import load_from_disk

from visionflow_hf.cli import main
from visionflow_hf.corpus.schema import open_corpus


def of(*names):
    return pytest.mark.parametrize("source", names, indirect=True)


def prepare(layout, source, out, *flags) -> int:
    return main(["prepare", layout, str(source), str(out), *map(str, flags)])


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
