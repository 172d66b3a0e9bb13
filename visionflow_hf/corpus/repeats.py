"""Repeated trials of a stimulus: their numbering, their average, and the noise ceiling that they reveal.

Of a voxel's variance over trials a part comes from the stimulus and a part from noise. With repeats both are
measured, and ncsnr^2 = signal variance / noise variance of one trial. The average of n trials then has the ceiling

    ceiling = ncsnr^2 / (ncsnr^2 + mean over stimuli of 1/n)

as a share of its variance (Allen et al. 2022, NSD, "Noise ceiling estimation").
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd

from visionflow_hf.errors import UserError

COLUMNS = 1000  # that are averaged at once in float64
ROUNDING = 1e-3  # by which a share may be above 1
LEAST_PERCENT = 2  # the largest of noise ceilings in percent is not below it


def number_repeats(keys: Sequence) -> list[int]:
    """How often each key came before: [a, b, a, a] gives [0, 0, 1, 2]."""
    seen: dict = {}
    numbers = []
    for key in keys:
        numbers.append(seen.get(key, 0))
        seen[key] = numbers[-1] + 1
    return numbers


def average_repeats(values: np.ndarray, stimulus_ids: Sequence[str]) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Mean over the trials of each stimulus.

    Args:
        values: array of shape (trials, columns, ...).

    Returns:
        The means, array of shape (stimuli, ...), their stimuli in order of appearance, and the number of trials of
        each, array of shape (stimuli,).
    """
    distinct = list(dict.fromkeys(stimulus_ids))
    position = {stimulus: index for index, stimulus in enumerate(distinct)}
    rows = np.array([position[stimulus] for stimulus in stimulus_ids], dtype=np.int64)
    counts = np.bincount(rows, minlength=len(distinct))
    means = np.empty((len(distinct), *values.shape[1:]), dtype=values.dtype)
    for column in range(0, values.shape[1], COLUMNS):
        part = values[:, column : column + COLUMNS]
        sums = np.zeros((len(distinct), *part.shape[1:]), dtype=np.float64)
        np.add.at(sums, rows, part)
        means[:, column : column + COLUMNS] = sums / counts.reshape(-1, *[1] * (values.ndim - 1))
    return means, distinct, counts


def ncsnr(fmri: np.ndarray, stimulus_ids: Sequence[str]) -> np.ndarray | None:
    """`ncsnr_of_groups` of trials in one array (trials, voxels)."""
    stimulus_ids = np.asarray(stimulus_ids)
    groups = (fmri[stimulus_ids == stimulus] for stimulus in dict.fromkeys(stimulus_ids.tolist()))
    return ncsnr_of_groups(group for group in groups if len(group) > 1)


def ncsnr_of_groups(groups: Iterable[np.ndarray]) -> np.ndarray | None:
    """Noise-ceiling signal-to-noise ratio of each voxel.

    noise variance  = mean over repeated stimuli of the variance over their trials
    signal variance = variance of the stimuli's means - noise variance * mean over stimuli of 1/n, at least 0
    ncsnr           = sqrt(signal variance / noise variance)

    Args:
        groups: the trials of each repeated stimulus, arrays of shape (at least 2 trials, voxels), one at a time.

    Returns:
        Array of shape (voxels,), or None where fewer than two stimuli have repeats. A constant voxel has 0.
    """
    number, shares, noise, centre, squares = 0, 0.0, 0.0, 0.0, 0.0
    for trials in groups:
        trials = np.asarray(trials, dtype=np.float64)
        mean = trials.mean(0)
        number += 1
        shares += 1 / len(trials)
        noise = noise + ((trials - mean) ** 2).sum(0) / (len(trials) - 1)
        step = mean - centre
        centre = centre + step / number  # Welford's running mean, and the squares around it
        squares = squares + step * (mean - centre)
    if number < 2:
        return None
    noise = noise / number
    signal = squares / (number - 1) - noise * shares / number
    return np.sqrt(np.divide(signal.clip(min=0), noise, out=np.zeros_like(noise), where=noise > 0))


def mean_share(counts: Sequence[int]) -> float:
    """mean(1 / n) over stimuli with n trials each."""
    return float(np.mean(1 / np.asarray(counts, dtype=np.float64)))


def ceilings_of_test(voxels: pd.DataFrame) -> pd.DataFrame:
    """A voxel table with the ceilings of the rows of test, where these average other numbers of trials than all rows.

        ceiling = ncsnr^2 / (ncsnr^2 + test)        ncsnr^2 = corpus * known / (1 - known)

    `corpus` and `test` being the means of 1 / trials, which the importer keeps in `attrs`.
    """
    voxels = voxels.copy()
    for subject, mean in voxels.attrs.get("repeats", {}).items():
        own = voxels["subject"] == subject
        known = voxels.loc[own, "noise_ceiling"].to_numpy(np.float64, na_value=np.nan)
        share = mean["test"] / mean["corpus"] * (1 - known)
        voxels.loc[own, "noise_ceiling"] = known / (known + share)
    return voxels


def ceiling_of_average(ncsnr: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Share of the variance of averages over `counts` trials that the stimulus explains, array of shape (voxels,).

    Args:
        ncsnr: array of shape (voxels,).
        counts: trials of each stimulus, array of shape (stimuli,).
    """
    return ncsnr**2 / (ncsnr**2 + np.mean(1 / np.asarray(counts)))


def shares(ceiling: np.ndarray, source: str, report: Callable[[str], None]) -> np.ndarray:
    """Noise ceilings as shares of the variance of one trial, 0 to 1; in percent where one is above 1, as is told.

    Args:
        source: what they were read from.

    Raises:
        UserError: values that are neither.
    """
    ceiling = np.asarray(ceiling, dtype=np.float64)
    low, high = np.nanmin(ceiling, initial=0), np.nanmax(ceiling, initial=0)
    if low < 0 or high > 100:
        raise UserError(
            f"{source} runs from {low:g} to {high:g}: shares of the variance of one trial, 0 to 1 or in percent, are "
            "expected"
        )
    if high <= 1 + ROUNDING:
        return ceiling.clip(max=1)
    if high < LEAST_PERCENT:
        raise UserError(
            f"{source} runs to {high:g}, too much for shares of a variance and little for percent: give shares of the "
            "variance of one trial, 0 to 1"
        )
    report(f"{source} runs to {high:g}: read as percent")
    return ceiling / 100


def ncsnr_of_ceiling(noise_ceiling: np.ndarray) -> np.ndarray:
    """The ncsnr of one row from its ceiling, array of shape (voxels,): sqrt(ceiling / (1 - ceiling))."""
    return np.sqrt(noise_ceiling / np.maximum(1 - noise_ceiling, 1e-12))
