"""Linear encoding models from fixed features of an image to voxels, and how far each is to be trusted.

    pixels      ridge from the colours on a grid
    wavelets    ridge from all Gabor-wavelet energies and colours
    fields      the mean over many ridges that each read one place of the visual field, weighted for each voxel

The last is the Gabor wavelet pyramid of Kay et al. 2008 with the receptive fields of St-Yves & Naselaris 2018, and a
mean in the place of a choice.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy.optimize import nnls
from tqdm import tqdm

from visionflow_hf.corpus.splits import stimulus_folds
from visionflow_hf.modeling.gabor_wavelets import CYCLES, GRID, ORIENTATIONS, SIZES, WAVELETS
from visionflow_hf.ridge import FOLDS, fit_ridge, linear_map
from visionflow_hf.training.field_ridges import BLOCK, WORKING_SET, FieldRidges, Linear, held_out_errors, shares

FIELDS = (0.12, 0.25)  # sigma of a pooling field, as a share of the image's side
ASKED = 50_000  # held-out responses that tell how far the models are to be trusted, about


def fit_pixels(maps: np.ndarray, fmri: np.ndarray, stimulus_ids: Sequence[str]) -> Linear:
    """Ridge from the colour channels of `maps` `(rows, channels, GRID * GRID)`; weights of all channels."""
    weights, intercept = fit_features(maps[:, WAVELETS:].reshape(len(maps), -1), fmri, stimulus_ids)
    return np.pad(weights, ((WAVELETS * maps.shape[2], 0), (0, 0))), intercept


def fit_wavelets(maps: np.ndarray, fmri: np.ndarray, stimulus_ids: Sequence[str]) -> Linear:
    """Ridge from all of `maps` `(rows, channels, GRID * GRID)`."""
    return fit_features(maps.reshape(len(maps), -1), fmri, stimulus_ids)


def fit_features(features: np.ndarray, fmri: np.ndarray, stimulus_ids: Sequence[str]) -> Linear:
    """Ridge with one penalty for all voxels."""
    return linear_map(fit_ridge(features, fmri, stimulus_ids), features)


def fit_fields(maps: np.ndarray, fmri: np.ndarray, stimulus_ids: Sequence[str]) -> Linear:
    """For each voxel the mean over all fields and penalties, by their likelihood.

        share_k ~ exp(-(n / 2) (error_k - least error) / least error)

    with the n rows' squared errors where their stimulus was held out.

    Args:
        maps: float32 array of shape (rows, channels, GRID * GRID).
    """
    weights = np.zeros((maps.shape[1], maps.shape[2], fmri.shape[1]), dtype=np.float32)
    intercept = np.zeros(fmri.shape[1], dtype=np.float32)
    folds = list(stimulus_folds(stimulus_ids, min(FOLDS, len(set(stimulus_ids))), seed=0))
    families = list(fields(maps.shape[1]))
    for start in range(0, fmri.shape[1], BLOCK):
        voxels = slice(start, start + BLOCK)
        responses = fmri[:, voxels]
        chunk = max(1, WORKING_SET // responses.size)
        parts = [(group, places[at : at + chunk]) for group, places in families for at in range(0, len(places), chunk)]
        errors = [
            held_out_errors(read_fields(maps, *part), responses, folds)
            for part in tqdm(parts, desc="receptive fields", unit="chunk", leave=False, disable=None)
        ]
        share = shares(np.concatenate(errors), len(fmri))
        for (group, places), part in zip(
            parts, np.split(share, np.cumsum([len(one) for one in errors])[:-1]), strict=True
        ):
            if not part.any():
                continue
            linear, constant = FieldRidges(read_fields(maps, group, places), responses).mean_over_penalties(part)
            used = np.flatnonzero(places.any(0))
            weights[group, used, voxels] += np.einsum("kp,kcv->cpv", places[:, used], linear, optimize=True)
            intercept[voxels] += constant.sum(0)
    return weights.reshape(-1, fmri.shape[1]), intercept


MODELS: tuple[Callable[[np.ndarray, np.ndarray, Sequence[str]], Linear], ...] = (fit_pixels, fit_wavelets, fit_fields)


def fields(channels: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Families of candidates: the channels that they read, and each one's weights of the places, `(fields, places)`.

    Single places with the wavelets of one size, and Gaussians of places with all channels.
    """
    of_size = len(CYCLES) * ORIENTATIONS
    inner = np.arange(1, GRID - 1)
    single = np.eye(GRID**2, dtype=np.float32).reshape(GRID, GRID, -1)[np.ix_(inner, inner)].reshape(-1, GRID**2)
    for number in range(len(SIZES)):
        yield slice(number * of_size, (number + 1) * of_size), single
    place = (np.arange(GRID) + 0.5) / GRID
    for sigma in FIELDS:
        near = np.exp(-((place - place[inner[::2], None]) ** 2) / (2 * sigma**2))
        near /= near.sum(1, keepdims=True)
        yield slice(0, channels), np.einsum("ap,bq->abpq", near, near).reshape(-1, GRID**2).astype(np.float32)


def read_fields(maps: np.ndarray, group: slice, places: np.ndarray) -> np.ndarray:
    """What each field holds of the channels in `group`, `(fields, rows, channels)`."""
    maps, used = maps[:, group], np.flatnonzero(places.any(0))
    if len(used) < maps.shape[2]:
        maps, places = maps[:, :, used], places[:, used]
    return np.einsum("ncp,kp->knc", maps, places, optimize=True)


def trust(
    maps: np.ndarray, latents: np.ndarray, fmri: np.ndarray, stimulus_ids: Sequence[str], seed: int = 0
) -> tuple[np.ndarray, float]:
    """Non-negative weights of a ridge from the latents and of MODELS, in this order, that predict new stimuli best.

    They are common to all voxels, and are least squares on what models that were fitted without a stimulus, their
    penalties and fields included, predict of it.

    Returns:
        The weights, and the squared error that is left with them, as a share of what the latents alone leave.
    """
    rng = np.random.default_rng(seed)
    rows = min(len(fmri), 250)
    fmri = fmri[:, np.sort(rng.permutation(fmri.shape[1])[: max(100, ASKED // rows)])]
    predicted, measured = [], []
    for train, test in stimulus_folds(stimulus_ids, min(FOLDS, len(set(stimulus_ids))), seed):
        seen = [stimulus_ids[row] for row in train]
        models = [(latents, fit_features(latents[train], fmri[train], seen))]
        models += [(maps.reshape(len(maps), -1), fit(maps[train], fmri[train], seen)) for fit in MODELS]
        level = fmri[train].mean(0)
        predicted.append([features[test] @ linear + constant - level for features, (linear, constant) in models])
        measured.append(fmri[test] - level)
        if sum(map(len, measured)) >= rows:
            break
    columns = np.concatenate(predicted, axis=1).reshape(1 + len(MODELS), -1).T
    measured = np.concatenate(measured).ravel()
    weights, left = nnls(columns, measured)
    alone = float(np.square(measured - columns[:, 0]).sum())
    return weights, min(max(left**2 / max(alone, 1e-12), 1e-3), 1.0)
