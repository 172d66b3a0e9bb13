"""Linear encoding models from fixed features of an image to voxels, and how far each is to be trusted.

    pixels      ridge from the colours on a grid
    wavelets    ridge from all Gabor-wavelet energies and colours
    fields      the mean over many ridges that each read one place of the visual field, weighted for each voxel

The last is the Gabor wavelet pyramid of Kay et al. 2008 with the receptive fields of St-Yves & Naselaris 2018, and a
mean in the place of a choice.

Each is fitted to fMRI (rows, voxels), row i of which saw the stimulus with the place rows[i] in the maps. Weights of
all voxels would fill memory: `add_to` adds those of a block of voxels, times a share, to an array of shape (channels,
GRID * GRID, voxels of the block), and the intercepts to one of shape (voxels of the block,).
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.optimize import nnls
from tqdm import tqdm

from visionflow_hf.corpus.splits import stimulus_folds
from visionflow_hf.modeling.gabor_wavelets import CYCLES, GRID, ORIENTATIONS, SIZES, WAVELETS
from visionflow_hf.ridge import FOLDS, fit_ridge, fit_ridge_to_products, linear_map
from visionflow_hf.training.field_ridges import WORKING_SET, FieldRidges, Linear, held_out_errors, shares
from visionflow_hf.training.stimulus_maps import StimulusMaps

FIELDS = (0.12, 0.25)  # sigma of a pooling field, as a share of the image's side
ASKED = 50_000  # held-out responses that tell how far the models are to be trusted, about


def fit_features(features: np.ndarray, fmri: np.ndarray, stimulus_ids: Sequence[str]) -> Linear:
    """Ridge with one penalty for all voxels."""
    return linear_map(fit_ridge(features, fmri, stimulus_ids), features)


class Pixels:
    """Ridge from the colours."""

    def __init__(self, maps: StimulusMaps, rows: Sequence[int], fmri: np.ndarray, stimulus_ids: Sequence[str]):
        colours = np.float32(maps.values[WAVELETS:, rows])
        self.weights, self.intercept = fit_features(colours.swapaxes(0, 1).reshape(len(rows), -1), fmri, stimulus_ids)

    def add_to(self, weights: np.ndarray, intercept: np.ndarray, voxels: slice, share: float) -> None:
        of_colours = weights[WAVELETS:]
        of_colours += share * self.weights[:, voxels].reshape(of_colours.shape)
        intercept += share * self.intercept[voxels]


class Wavelets:
    """Ridge from all energies and colours."""

    def __init__(self, maps: StimulusMaps, rows: Sequence[int], fmri: np.ndarray, stimulus_ids: Sequence[str]):
        ridge = fit_ridge_to_products(maps.products[np.ix_(rows, rows)], fmri, stimulus_ids)
        self.maps, self.intercept = maps, ridge.intercept_
        self.dual = np.zeros((len(maps.products), fmri.shape[1]), dtype=np.float32)
        np.add.at(self.dual, rows, ridge.dual_coef_)  # a stimulus has several rows where it was repeated

    def add_to(self, weights: np.ndarray, intercept: np.ndarray, voxels: slice, share: float) -> None:
        dual = share * self.dual[:, voxels]
        for channel, of_channel in zip(self.maps.values, weights, strict=True):
            of_channel += np.float32(channel).T @ dual
        intercept += share * self.intercept[voxels]


class Fields:
    """For each voxel the mean over all fields and penalties, by their likelihood.

        share_k ~ exp(-(n / 2) (error_k - least error) / least error)

    with the n rows' squared errors where their stimulus was held out.
    """

    def __init__(self, maps: StimulusMaps, rows: Sequence[int], fmri: np.ndarray, stimulus_ids: Sequence[str]):
        self.maps, self.rows, self.fmri = maps.values, rows, fmri
        self.folds = list(stimulus_folds(stimulus_ids, min(FOLDS, len(set(stimulus_ids))), seed=0))

    def add_to(self, weights: np.ndarray, intercept: np.ndarray, voxels: slice, share: float) -> None:
        responses = self.fmri[:, voxels]
        chunk = max(1, WORKING_SET // responses.size)
        parts = [
            (group, places[at : at + chunk])
            for group, places in fields(len(self.maps))
            for at in range(0, len(places), chunk)
        ]
        errors = [
            held_out_errors(self.read(*part), responses, self.folds)
            for part in tqdm(parts, desc="receptive fields", unit="chunk", leave=False, disable=None)
        ]
        likely = share * shares(np.concatenate(errors), len(self.rows))
        ends = np.cumsum([len(one) for one in errors])[:-1]
        for (group, places), part in zip(parts, np.split(likely, ends), strict=True):
            if not part.any():
                continue
            linear, constant = FieldRidges(self.read(group, places), responses).mean_over_penalties(part)
            used = np.flatnonzero(places.any(0))
            for of_channel, one in zip(weights[group], linear.swapaxes(0, 1), strict=True):
                of_channel[used] += places[:, used].T @ one
            intercept += constant.sum(0)

    def read(self, group: slice, places: np.ndarray) -> np.ndarray:
        """What each field holds of the channels in `group`, `(fields, rows, channels)`."""
        used = np.flatnonzero(places.any(0))
        weights = places[:, used].T
        held = np.stack([np.float32(channel[:, used]) @ weights for channel in self.maps[group]], axis=2)
        return held.swapaxes(0, 1)[:, self.rows]


EncodingModel = Pixels | Wavelets | Fields
MODELS = (Pixels, Wavelets, Fields)


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


def trust(
    maps: StimulusMaps,
    rows: Sequence[int],
    latents: np.ndarray,
    fmri: np.ndarray,
    stimulus_ids: Sequence[str],
    seed: int,
) -> tuple[np.ndarray, float]:
    """Non-negative weights of a ridge from the latents and of MODELS, in this order, that predict new stimuli best.

    They are common to all voxels, and are least squares on what models that were fitted without a stimulus, their
    penalties and fields included, predict of it.

    Args:
        rows: the place in `maps` of what was seen; `latents`, `fmri` and `stimulus_ids` have as many rows.

    Returns:
        The weights, and the squared error that is left with them, as a share of what the latents alone leave.
    """
    rng = np.random.default_rng(seed)
    enough = min(len(fmri), 250)
    fmri = fmri[:, np.sort(rng.permutation(fmri.shape[1])[: max(100, ASKED // enough)])]
    rows, columns, measured = np.asarray(rows), [], []
    for train, test in stimulus_folds(stimulus_ids, min(FOLDS, len(set(stimulus_ids))), seed):
        seen, level = [stimulus_ids[row] for row in train], fmri[train].mean(0)
        linear, intercept = fit_features(latents[train], fmri[train], seen)
        predicted = [latents[test] @ linear + intercept - level]
        for model in MODELS:
            weights, intercept = empty_map(maps, fmri.shape[1])
            model(maps, rows[train], fmri[train], seen).add_to(weights, intercept, slice(None), 1.0)
            predicted.append(maps.predict(weights, rows[test]) + intercept - level)
        columns.append(np.stack(predicted).reshape(1 + len(MODELS), -1))
        measured.append((fmri[test] - level).ravel())
        if sum(map(len, measured)) >= enough * fmri.shape[1]:
            break
    columns, measured = np.concatenate(columns, axis=1).T, np.concatenate(measured)
    weights, left = nnls(columns, measured)
    alone = float(np.square(measured - columns[:, 0]).sum())
    return weights, min(max(left**2 / max(alone, 1e-12), 1e-3), 1.0)


def empty_map(maps: StimulusMaps, voxels: int) -> Linear:
    """Weights and an intercept for `add_to` to add to."""
    channels, _, places = maps.values.shape
    return np.zeros((channels, places, voxels), dtype=np.float32), np.zeros(voxels, dtype=np.float32)
