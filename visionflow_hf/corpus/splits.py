"""Splits and folds by stimulus: all repeats and all subjects of an image stay on one side."""

from collections.abc import Iterator, Sequence

import numpy as np
from sklearn.model_selection import KFold

from visionflow_hf.errors import UserError


def split_stimuli(stimulus_ids: Sequence[str], fraction: float, seed: int) -> set[str]:
    """Draw `fraction` of the distinct stimuli (at least one, never all)."""
    distinct = sorted(set(stimulus_ids))
    if not 0 < fraction < 1:
        raise UserError(f"the held-out fraction is {fraction}: give one between 0 and 1")
    if len(distinct) < 2:
        raise UserError(f"there is {len(distinct)} distinct stimulus: at least 2 are needed to hold some out")
    count = min(max(round(len(distinct) * fraction), 1), len(distinct) - 1)
    return set(np.random.default_rng(seed).choice(distinct, count, replace=False).tolist())


def stimulus_folds(stimulus_ids: Sequence[str], folds: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (train rows, held-out rows) of each fold.

    The folds are a shuffled `KFold` over the distinct stimuli in their order of appearance: where each stimulus has
    one row, they are the folds of scikit-learn's `KFold(folds, shuffle=True, random_state=seed)` over the rows.
    """
    distinct = np.array(list(dict.fromkeys(stimulus_ids)))
    if not 2 <= folds <= len(distinct):
        raise UserError(
            f"{folds} folds of {len(distinct)} distinct stimuli: give --folds between 2 and {len(distinct)}"
        )
    stimulus_ids = np.asarray(stimulus_ids)
    for _, held_out in KFold(folds, shuffle=True, random_state=seed).split(distinct):
        in_test = np.isin(stimulus_ids, distinct[held_out])
        yield np.flatnonzero(~in_test), np.flatnonzero(in_test)
