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
MOST_ROWS = 2000  # of a subject, by which the power is chosen
LEAST = 1e-3  # weight of a voxel that nothing predicts


def voxel_weights(fmri: np.ndarray, latents: np.ndarray, stimulus_ids: Sequence[str], seed: int = 0) -> np.ndarray:
    """Weights (voxels,) of mean square 1.

    Args:
        fmri: float32 array of shape (trials, voxels), standardised.
        latents: float32 array of shape (trials, latent_dim), those of the images.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(fmri))[:MOST_ROWS])
    fmri, latents = fmri[rows], latents[rows]
    names = np.asarray(stimulus_ids)[rows]
    distinct = len(set(names))
    if distinct < 2 * FOLDS:  # too few for folds within folds
        return np.ones(fmri.shape[1], dtype=np.float32)
    errors = np.zeros(len(POWERS))
    for train, test in stimulus_folds(names, FOLDS, seed):
        reliability = reliabilities(fmri[train], latents[train], names[train])
        for at, power in enumerate(POWERS):
            weights = weigh(reliability, power)
            ridge = fit_ridge(fmri[train] * weights, latents[train], names[train])
            errors[at] += np.square(ridge.predict(fmri[test] * weights) - latents[test]).sum()
    return weigh(reliabilities(fmri, latents, names), POWERS[errors.argmin()])


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
