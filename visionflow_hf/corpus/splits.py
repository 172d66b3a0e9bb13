"""Splits and folds by stimulus: all repeats of a stimulus, of all subjects, are on one side."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from sklearn.model_selection import KFold

from visionflow_hf.errors import UserError


def draw_test(stimuli: Iterable[str], fraction: float, seed: int, report: Callable[[str], None] = print) -> set[str]:
    """Draw about `fraction` of the distinct stimuli as the test split, each by a hash of its own.

    A stimulus is in test where `place(stimulus, seed)` is below `fraction`, whatever the other stimuli are: corpora
    that are prepared one by one with the same fraction and seed agree, and can be merged. Where this leaves one side
    empty, the stimulus nearest to `fraction` moves there.

    Args:
        stimuli: what stimuli are known by in all corpora, such as hashes of their pixels.
        report: told where a stimulus had to move.

    Raises:
        UserError: a fraction beyond 0 and 1, or fewer than 2 stimuli.
    """
    distinct = check_drawn(stimuli, fraction)
    places = {stimulus: place(stimulus, seed) for stimulus in distinct}
    test = {stimulus for stimulus in distinct if places[stimulus] < fraction}
    if not test or len(test) == len(distinct):
        empty = "train" if test else "test"
        nearest = min(distinct, key=lambda stimulus: abs(places[stimulus] - fraction))
        test ^= {nearest}
        report(
            f"a share of {fraction:g} of {len(distinct)} stimuli left none in {empty}: one was moved there, which may "
            "be on the other side in another corpus"
        )
    return test


def place(stimulus: str, seed: int) -> float:
    """Where a stimulus lies between 0 and 1, a hash of its name and the seed."""
    return int.from_bytes(hashlib.sha256(f"{seed} {stimulus}".encode()).digest()[:8], "big") / 2**64


def split_stimuli(stimulus_ids: Iterable[str], fraction: float, seed: int) -> set[str]:
    """Draw just `fraction` of the distinct stimuli, at least one and never all; which ones depends on all of them."""
    distinct = check_drawn(stimulus_ids, fraction)
    count = min(max(round(len(distinct) * fraction), 1), len(distinct) - 1)
    return set(np.random.default_rng(seed).choice(distinct, count, replace=False).tolist())


def check_drawn(stimuli: Iterable[str], fraction: float) -> list[str]:
    """The distinct stimuli, sorted."""
    distinct = sorted(set(stimuli))
    if not 0 < fraction < 1:
        raise UserError(f"the held-out fraction is {fraction}: give one between 0 and 1")
    if len(distinct) < 2:
        raise UserError(f"there is {len(distinct)} distinct stimulus: at least 2 are needed to hold some out")
    return distinct


def draw_groups(groups: Sequence[str], fraction: float, seed: int, what: str) -> set[str]:
    """Draw whole groups, such as categories, until they have about `fraction` of the members.

    Args:
        groups: the group of each member.
        what: what a group is.

    Raises:
        UserError: a fraction beyond 0 and 1, or a single group.
    """
    if not 0 < fraction < 1:
        raise UserError(f"the held-out fraction is {fraction}: give one between 0 and 1")
    names, sizes = np.unique(np.asarray(groups), return_counts=True)
    if len(names) < 2:
        raise UserError(f"all trials belong to one {what}: --split-by {what} needs at least 2")
    order = np.random.default_rng(seed).permutation(len(names))
    held = np.cumsum(sizes[order])
    number = 1 + int(np.abs(held[:-1] - fraction * held[-1]).argmin())
    return set(names[order[:number]].tolist())


def category_folds(categories: Sequence[str], folds: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (train rows, held-out rows) of each fold; whole categories are held out.

    Args:
        categories: of each row, the same for all rows of a stimulus.
    """
    for held in group_folds(categories, folds, seed, "category"):
        in_test = np.isin(np.asarray(categories), held)
        yield np.flatnonzero(~in_test), np.flatnonzero(in_test)


def session_folds(
    sessions: Sequence[str], stimulus_ids: Sequence[str], folds: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (train rows, held-out rows) of each fold; whole sessions are held out, of all subjects.

    A stimulus is held out once, with the session of its first row. Its rows in other sessions are then neither in train
    nor held out.

    Raises:
        UserError: no row is left to train on.
    """
    sessions, stimulus_ids = np.asarray(sessions), np.asarray(stimulus_ids)
    _, first, of_row = np.unique(stimulus_ids, return_index=True, return_inverse=True)
    for held in group_folds(sessions, folds, seed, "session"):
        there, tested = np.isin(sessions, held), np.isin(sessions[first], held)[of_row]
        train = np.flatnonzero(~there & ~tested)
        if not len(train):
            raise UserError(
                f"the stimuli of session {', '.join(held)} are those of all other sessions: no row is left to train on"
            )
        if (there & tested).any():
            yield train, np.flatnonzero(there & tested)


def group_folds(groups: Sequence[str], folds: int, seed: int, what: str) -> Iterator[list[str]]:
    """The groups that each fold holds out."""
    distinct = np.unique(np.asarray(groups))
    if len(distinct) < 2 or not 2 <= folds <= len(distinct):
        raise UserError(
            f"{folds} folds by {what}, of which there are {len(distinct)}: at least 2 folds, and at least one {what} "
            "for each, are needed"
        )
    for _, held in KFold(folds, shuffle=True, random_state=seed).split(distinct):
        yield distinct[held].tolist()


def stimulus_folds(stimulus_ids: Sequence[str], folds: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (train rows, held-out rows) of each fold.

    The folds are a shuffled `KFold` over the distinct stimuli in their order of appearance: where each stimulus has
    one row, they are the folds of scikit-learn's `KFold(folds, shuffle=True, random_state=seed)` over the rows.

    Raises:
        UserError: fewer than 2 stimuli, or another number of folds than 2 to as many as there are stimuli.
    """
    distinct = np.array(list(dict.fromkeys(stimulus_ids)))
    if len(distinct) < 2:
        raise UserError(
            f"the corpus has {len(distinct)} distinct stimulus to draw folds from: cross-validation, as in "
            "`crossvalidate`, needs at least 2"
        )
    if not 2 <= folds <= len(distinct):
        raise UserError(
            f"{folds} folds of {len(distinct)} distinct stimuli: the number of folds must be between 2 and "
            f"{len(distinct)}"
        )
    stimulus_ids = np.asarray(stimulus_ids)
    for _, held_out in KFold(folds, shuffle=True, random_state=seed).split(distinct):
        in_test = np.isin(stimulus_ids, distinct[held_out])
        yield np.flatnonzero(~in_test), np.flatnonzero(in_test)
