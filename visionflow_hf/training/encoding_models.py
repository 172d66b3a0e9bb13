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

Linear = tuple[np.ndarray, np.ndarray]  # weights (features, voxels) and intercept (voxels,)

FIELDS = (0.12, 0.25)  # sigma of a pooling field, as a share of the image's side
PENALTIES = (0.03, 0.3, 3.0, 30.0)  # times the mean variance of a feature and the number of rows
LEAST_LIKELIHOOD = 0.02  # of a candidate, against the best
LEAST_VARIANCE = 1e-6  # of a feature; what varies less is the blank border of the images
BLOCK = 2000  # voxels at a time, which bounds the memory
WORKING_SET = 10_000_000  # responses that as many fields as are worked on at once predict together
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
            averaged = 0
            for penalty, (linear, constant) in enumerate(solve(read_fields(maps, group, places), responses)):
                averaged = averaged + part[:, penalty, None] * linear
                intercept[voxels] += (part[:, penalty] * constant).sum(0)
            weights[group, :, voxels] += np.einsum("kp,kcv->cpv", places, averaged, optimize=True)
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
    used = np.flatnonzero(places.any(0))
    return np.einsum("ncp,kp->knc", maps[:, group][:, :, used], places[:, used], optimize=True)


def held_out_errors(features: np.ndarray, fmri: np.ndarray, folds) -> np.ndarray:
    """Summed squared errors `(fields, penalties, voxels)` of ridges that were fitted without the row's fold.

    Args:
        features: float32 array of shape (fields, rows, channels).
    """
    errors = np.zeros((len(features), len(PENALTIES), fmri.shape[1]), dtype=np.float32)
    for train, test in folds:
        for at, (linear, constant) in enumerate(solve(features[:, train], fmri[train])):
            errors[:, at] += np.square(features[:, test] @ linear + constant[:, None] - fmri[test]).sum(1)
    return errors


def solve(features: np.ndarray, targets: np.ndarray) -> Iterator[Linear]:
    """Ridge weights (fields, channels, targets) and intercepts (fields, targets) for each of PENALTIES."""
    mean, level = features.mean(1), targets.mean(0)
    centred = features - mean[:, None]
    turned = centred.transpose(0, 2, 1)
    scale = centred.var(1).mean(1).clip(min=LEAST_VARIANCE)[:, None]
    wide = features.shape[2] > features.shape[1]  # then the rows' own products are the smaller matrix
    values, vectors = np.linalg.eigh(centred @ turned if wide else turned @ centred)
    along = vectors.transpose(0, 2, 1) @ (targets - level if wide else turned @ targets)
    back = turned @ vectors if wide else vectors
    for penalty in PENALTIES:
        shrunk = values.clip(min=0) + np.float32(penalty * features.shape[1]) * scale
        linear = back @ (along / shrunk[:, :, None])
        yield linear, level - np.einsum("kc,kcv->kv", mean, linear)


def shares(errors: np.ndarray, rows: int) -> np.ndarray:
    """Likelihoods, normalised for each voxel, of candidates with summed squared errors (fields, penalties, voxels)."""
    least = errors.min((0, 1))
    likelihood = np.exp(-rows / 2 * (errors - least) / least.clip(min=1e-12))
    likelihood[likelihood < LEAST_LIKELIHOOD] = 0
    return likelihood / likelihood.sum((0, 1))


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
