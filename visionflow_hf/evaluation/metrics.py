"""The field's metrics as pure functions on arrays.

Images are float arrays of shape (images, height, width) or (images, height, width, 3) with values in 0..1. Where a
correlation has no meaning, since a prediction is constant, it is 0: such a prediction tells nothing.
"""

import numpy as np
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity


def pixel_correlation(images: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """pixcorr = Pearson r over all pixels and channels of an image; array of shape (images,).

    Source: Ozcelik & VanRullen 2023 (Brain-Diffuser).
    """
    return (_unit_rows(images) * _unit_rows(reconstructions)).sum(1)


def ssim(images: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """Structural similarity of the grey images, Gaussian window of sigma 1.5 px; array of shape (images,).

    Source: Wang et al. 2004; the parameters are those of MindEye (Scotti et al. 2023). Next to the border, half a
    window of 11 px is left out; less in images that are smaller than that.
    """
    if images.ndim == 4:
        images, reconstructions = rgb2gray(images), rgb2gray(reconstructions)
    side = min(images.shape[1:])
    return np.array(
        [
            structural_similarity(
                image,
                reconstruction,
                win_size=min(11, side - 1 + side % 2),
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                data_range=1.0,
            )
            for image, reconstruction in zip(images, reconstructions, strict=True)
        ]
    )


def mean_squared_error(images: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """mse = mean over pixels and channels of (reconstruction - image)^2; array of shape (images,)."""
    difference = np.asarray(reconstructions, dtype=np.float64) - images
    return np.square(difference).reshape(len(images), -1).mean(1)


def cross_correlation(real: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """r_ij = Pearson r of real item i (rows) and predicted item j (columns), each flattened."""
    return _unit_rows(real) @ _unit_rows(predicted).T


def two_way(
    correlation: np.ndarray, comparable: np.ndarray | None = None, weights: np.ndarray | None = None
) -> np.ndarray:
    """Two-way identification = sum over i != j of [r_ij < r_jj] / (n (n - 1)); a tie fails, chance is 0.5.

    Args:
        correlation: r_ij of `cross_correlation`, columns are predictions; array of shape (n, n).
        comparable: which pairs (i, j) count, bool of shape (n, n); by default all with i != j.
        weights: how often each item counts, array of shape (draws, n); once by default.

    Returns:
        Array of shape (draws,), NaN where there is nothing to compare.
    """
    comparable, weights = _pairs(correlation, comparable, weights)
    wins = (correlation < np.diag(correlation)[None, :]) & comparable
    pairs = ((weights @ comparable) * weights).sum(1)
    return np.divide(((weights @ wins) * weights).sum(1), pairs, out=np.full_like(pairs, np.nan), where=pairs > 0)


def top1(
    correlation: np.ndarray, comparable: np.ndarray | None = None, weights: np.ndarray | None = None
) -> np.ndarray:
    """Share of the columns j with r_jj > r_ij for every i != j, so that column j picks its own row; chance is 1 / n.

    Arguments and result as in `two_way`.
    """
    comparable, weights = _pairs(correlation, comparable, weights)
    hits = ((correlation < np.diag(correlation)[None, :]) | ~comparable).all(0)
    return weights @ hits / weights.sum(1)


def top_k(
    correlation: np.ndarray, k: int = 1, comparable: np.ndarray | None = None, weights: np.ndarray | None = None
) -> np.ndarray:
    """Share of the columns j whose own row is among the k best: fewer than k rows i != j have r_ij >= r_jj.

    Each column ranks the rows. A tie fails; chance is k / n. Arguments and result as in `two_way`; whatever the
    weights, every row stays a candidate once.
    """
    comparable, weights = _pairs(correlation, comparable, weights)
    rivals = ((correlation >= np.diag(correlation)[None, :]) & comparable).sum(0)
    return weights @ (rivals < k) / weights.sum(1)


def voxel_correlation(measured: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Pearson r of each voxel over stimuli, NaN for a voxel whose measurement is constant.

    Args:
        measured, predicted: arrays of shape (stimuli, voxels).
        weights: how often each stimulus counts, array of shape (draws, stimuli); once by default.

    Returns:
        Array of shape (draws, voxels).
    """
    measured, predicted, weights = _columns(measured, predicted, weights)
    mean, other_mean = weights @ measured, weights @ predicted
    variance = weights @ measured**2 - mean**2
    other_variance = weights @ predicted**2 - other_mean**2
    covariance = weights @ (measured * predicted) - mean * other_mean
    scale = np.sqrt(variance.clip(min=0) * other_variance.clip(min=0))
    correlation = np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 1e-12)
    return np.where(variance > 1e-12, correlation, np.nan)


def voxel_r2(measured: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """R2 = 1 - sum (measured - predicted)^2 / sum (measured - mean of measured)^2 of each voxel over stimuli.

    Arguments and result as in `voxel_correlation`; the result does not depend on the unit.
    """
    scaled, _, weights = _columns(measured, predicted, weights)
    residual = (np.asarray(measured, dtype=np.float64) - predicted) / _spread(measured)
    variance = weights @ scaled**2 - (weights @ scaled) ** 2
    explained = 1 - np.divide(weights @ residual**2, variance, out=np.zeros_like(variance), where=variance > 1e-12)
    return np.where(variance > 1e-12, explained, np.nan)


def pattern_correlation(measured: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Pearson r across voxels of each stimulus; array of shape (stimuli,).

    Args:
        measured, predicted: arrays of shape (stimuli, voxels), each voxel in units of the same kind (standardised by
            its mean and standard deviation over train), or else the voxels' means alone correlate.
    """
    return (_unit_rows(measured) * _unit_rows(predicted)).sum(1)


def ceiling_normalised(correlation: np.ndarray, noise_ceiling: np.ndarray) -> np.ndarray:
    """mean over voxels of min(max(r, 0)^2 / ceiling, 1), over the voxels whose ceiling is known; NaN without any.

    Args:
        correlation: r of each voxel, array of shape (draws, voxels).
        noise_ceiling: share of the variance of what r was computed on that the stimulus explains, array of shape
            (voxels,), NaN where unknown.

    Source: the Algonauts 2023 challenge (Gifford et al. 2023), where a ceiling of 0 becomes 1e-14.
    """
    explained = correlation.clip(min=0) ** 2 / noise_ceiling.clip(min=1e-14)
    return nan_reduce(np.mean, explained.clip(max=1))


def cosine_similarity(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Cosine of every row of one array with every row of the other; array of shape (n, n)."""
    unit = [np.asarray(values, dtype=np.float64) for values in (rows, columns)]
    unit = [values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12) for values in unit]
    return unit[0] @ unit[1].T


def nan_reduce(reduce, values: np.ndarray) -> np.ndarray:
    """`reduce` (np.mean, np.median) over the last axis without its NaN; NaN where nothing is left."""
    kept = [row[np.isfinite(row)] for row in values]
    return np.array([reduce(row) if len(row) else np.nan for row in kept])


def _unit_rows(values: np.ndarray) -> np.ndarray:
    """Rows flattened, centred and scaled to length 1; constant rows become 0."""
    rows = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    constant = np.ptp(rows, axis=1, keepdims=True) == 0
    rows = np.where(constant, 0, rows - rows.mean(1, keepdims=True))
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _pairs(correlation: np.ndarray, comparable: np.ndarray | None, weights: np.ndarray | None):
    if comparable is None:
        comparable = np.ones(correlation.shape, dtype=bool)
    if weights is None:
        weights = np.ones((1, len(correlation)))
    return comparable & ~np.eye(len(correlation), dtype=bool), np.asarray(weights, dtype=np.float64)


def _columns(measured: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None):
    """Both centred and in units of their spread, for the sake of precision, and weights that sum to 1."""
    if weights is None:
        weights = np.ones((1, len(measured)))
    standard = [
        (np.asarray(values, dtype=np.float64) - np.mean(values, 0, dtype=np.float64)) / _spread(values)
        for values in (measured, predicted)
    ]
    return *standard, weights / weights.sum(1, keepdims=True)


def _spread(values: np.ndarray) -> np.ndarray:
    """Standard deviation of each column, 1 for a constant one."""
    spread = np.std(values, 0, dtype=np.float64)
    return np.where(np.ptp(values, axis=0) > 0, spread, 1.0)
