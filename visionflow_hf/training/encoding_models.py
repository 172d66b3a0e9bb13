"""Linear encoding models from fixed features of an image to voxels, and how far each is to be trusted.

    pixels      ridge from the colours on a grid
    wavelets    ridge from all Gabor-wavelet energies and colours
    fields      the mean over many ridges that each read one place of the visual field, weighted for each voxel

The last is the Gabor wavelet pyramid of Kay et al. 2008 with the receptive fields of St-Yves & Naselaris 2018, and a
mean in the place of a choice.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy.optimize import nnls
from tqdm import tqdm

from visionflow_hf.corpus.splits import stimulus_folds
from visionflow_hf.modeling.gabor_wavelets import CYCLES, GRID, ORIENTATIONS, SIZES, WAVELETS
from visionflow_hf.ridge import FOLDS, fit_ridge, linear_map

Linear = tuple[np.ndarray, np.ndarray]  # weights (features, voxels) and intercept (voxels,)

FIELDS = (0.12, 0.25)  # sigma of a pooling field, as a share of the image's side
PENALTIES = (0.03, 0.3, 3.0, 30.0)  # times the mean variance of a feature and the number of rows
LEAST_LIKELIHOOD = 0.02  # of a candidate, against the best
LEAST_VARIANCE = 1e-6  # of a feature; what varies less is the blank border of the images
BLOCK = 2000  # voxels at a time, which bounds the memory
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
    candidates = list(fields(maps.shape[1]))
    at_place = np.ascontiguousarray(maps.transpose(2, 0, 1))
    for start in range(0, fmri.shape[1], BLOCK):
        voxels = np.arange(start, min(start + BLOCK, fmri.shape[1]))
        responses = fmri[:, voxels]
        errors = np.empty((len(candidates), len(PENALTIES), len(voxels)), dtype=np.float32)
        for at, candidate in enumerate(tqdm(candidates, desc="receptive fields", unit="field", leave=False)):
            errors[at] = held_out_errors(read_field(at_place, *candidate), responses, folds)
        share = shares(errors, len(fmri))
        for at, (group, place) in enumerate(candidates):
            counts = np.flatnonzero(share[at].any(0))
            if len(counts) == 0:
                continue
            averaged = 0
            solutions = solve(read_field(at_place, group, place), responses[:, counts])
            for one, (linear, constant) in zip(share[at][:, counts], solutions, strict=True):
                averaged = averaged + one * linear
                intercept[voxels[counts]] += one * constant
            used = np.flatnonzero(place)
            spread = np.einsum("p,cv->cpv", place[used], averaged)
            channels = np.arange(maps.shape[1])[group]
            weights[np.ix_(channels, used, voxels[counts])] += spread
    return weights.reshape(-1, fmri.shape[1]), intercept


MODELS: tuple[Callable[[np.ndarray, np.ndarray, Sequence[str]], Linear], ...] = (fit_pixels, fit_wavelets, fit_fields)


def fields(channels: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Candidates: the channels that a voxel may read, and the weights of the grid's places, `(GRID * GRID,)`.

    A single place with the wavelets of one size, or a Gaussian of places with all channels.
    """
    of_size = len(CYCLES) * ORIENTATIONS
    place = (np.arange(GRID) + 0.5) / GRID
    for row, column in itertools.product(range(1, GRID - 1), repeat=2):
        one = np.zeros((GRID, GRID), dtype=np.float32)
        one[row, column] = 1
        for number in range(len(SIZES)):
            yield slice(number * of_size, (number + 1) * of_size), one.ravel()
        for sigma in FIELDS if row % 2 and column % 2 else ():
            down, across = (np.exp(-((place - place[at]) ** 2) / (2 * sigma**2)) for at in (row, column))
            many = np.outer(down, across).astype(np.float32)
            many[many < 1e-3] = 0
            yield slice(0, channels), (many / many.sum()).ravel()


def read_field(at_place: np.ndarray, group: slice, place: np.ndarray) -> np.ndarray:
    """What one field holds of each channel in `group`, `(rows, channels)`; from `(GRID * GRID, rows, channels)`."""
    used = np.flatnonzero(place)
    return np.tensordot(place[used], at_place[used, :, group], axes=1)


def held_out_errors(features: np.ndarray, fmri: np.ndarray, folds) -> np.ndarray:
    """Summed squared errors `(penalties, voxels)`, each row predicted by ridges that were fitted without its fold."""
    errors = np.zeros((len(PENALTIES), fmri.shape[1]), dtype=np.float32)
    for train, test in folds:
        for at, (linear, constant) in enumerate(solve(features[train], fmri[train])):
            errors[at] += np.square(features[test] @ linear + constant - fmri[test]).sum(0)
    return errors


def solve(features: np.ndarray, targets: np.ndarray) -> Iterator[Linear]:
    """Ridge weights (features, targets) and intercept (targets,) for each of PENALTIES."""
    mean, level = features.mean(0), targets.mean(0)
    centred = features - mean
    scale = max(float(centred.var(0).mean()), LEAST_VARIANCE)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    along = vectors.T @ (centred.T @ targets)
    for penalty in PENALTIES:
        linear = vectors @ (along / (values.clip(min=0) + np.float32(penalty * scale * len(features)))[:, None])
        yield linear, level - mean @ linear


def shares(errors: np.ndarray, rows: int) -> np.ndarray:
    """Likelihoods, normalised for each voxel, of candidates with summed squared errors (fields, penalties, voxels)."""
    least = errors.min((0, 1))
    likelihood = np.exp(-rows / 2 * (errors - least) / least.clip(min=1e-12))
    likelihood[likelihood < LEAST_LIKELIHOOD] = 0
    return likelihood / likelihood.sum((0, 1))


def trust(
    maps: np.ndarray, latents: np.ndarray, fmri: np.ndarray, stimulus_ids: Sequence[str], seed: int = 0
) -> np.ndarray:
    """Non-negative weights of a ridge from the latents and of MODELS, in this order, that predict new stimuli best.

    They are common to all voxels, and are least squares on what models that were fitted without a stimulus, their
    penalties and fields included, predict of it.
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
    return nnls(columns, np.concatenate(measured).ravel())[0]
