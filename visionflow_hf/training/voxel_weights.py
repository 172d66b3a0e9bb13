"""How much each voxel counts where fMRI is read into the latent.

    weight_v = max(r_v, 0)^p

r_v being how well the latent of held-out images predicts voxel v. The power p is the one with which held-out fMRI
predicts the latent best; p = 0, all voxels alike, is among them. With many voxels and few trials most voxels hold no
signal, and a ridge regression cannot find that out by itself.
"""

from collections.abc import Sequence

import numpy as np

from visionflow_hf.corpus.splits import stimulus_folds
from visionflow_hf.ridge import FOLDS, fit_ridge, out_of_fold

POWERS = (0.0, 1.0, 2.0)
MOST_ROWS = 2000  # of a subject, that tell what its voxels hold
CHOOSING_ROWS = 1000  # of these, by which the power is chosen: ridges in folds within folds
LEAST = 1e-3  # weight of a voxel that nothing predicts


def voxel_weights(fmri: np.ndarray, latents: np.ndarray, stimulus_ids: Sequence[str], seed: int = 0) -> np.ndarray:
    """Weights (voxels,) of mean square 1.

    Args:
        fmri: float32 array of shape (trials, voxels), standardised.
        latents: float32 array of shape (trials, latent_dim), those of the images.
    """
    drawn = np.random.default_rng(seed).permutation(len(fmri))
    names = np.asarray(stimulus_ids)
    few, many = np.sort(drawn[:CHOOSING_ROWS]), np.sort(drawn[:MOST_ROWS])
    power = best_power(fmri[few], latents[few], names[few], seed)
    if power == 0:
        return np.ones(fmri.shape[1], dtype=np.float32)
    return weigh(reliabilities(fmri[many], latents[many], names[many]), power)


def best_power(fmri: np.ndarray, latents: np.ndarray, stimulus_ids: np.ndarray, seed: int) -> float:
    """The power with which the fMRI of held-out stimuli predicts their latents best."""
    if len(set(stimulus_ids)) < 2 * FOLDS:  # too few for folds within folds
        return 0.0
    errors = np.zeros(len(POWERS))
    for train, test in stimulus_folds(stimulus_ids, FOLDS, seed):
        reliability = reliabilities(fmri[train], latents[train], stimulus_ids[train])
        for at, power in enumerate(POWERS):
            weights = weigh(reliability, power)
            ridge = fit_ridge(fmri[train] * weights, latents[train], stimulus_ids[train])
            errors[at] += np.square(ridge.predict(fmri[test] * weights) - latents[test]).sum()
    return POWERS[errors.argmin()]


def reliabilities(fmri: np.ndarray, latents: np.ndarray, stimulus_ids: Sequence[str]) -> np.ndarray:
    """Pearson r of each voxel (voxels,) with what the latents of held-out stimuli predict of it."""
    predicted = out_of_fold(fit_ridge(latents, fmri, stimulus_ids), latents, fmri, stimulus_ids)
    predicted, measured = predicted - predicted.mean(0), fmri - fmri.mean(0)
    norms = np.sqrt(np.square(predicted).sum(0) * np.square(measured).sum(0))
    return (predicted * measured).sum(0) / norms.clip(min=1e-12)


def weigh(reliability: np.ndarray, power: float) -> np.ndarray:
    """max(r, 0)^p, with a mean square of 1."""
    weights = np.maximum(reliability.clip(min=0) ** power, LEAST)
    return (weights / np.sqrt(np.square(weights).mean())).astype(np.float32)
