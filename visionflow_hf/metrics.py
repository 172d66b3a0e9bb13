"""Metrics of decoding and encoding as pure functions on arrays.

Images are float arrays of shape (images, height, width) or (images, height, width, 3) with values in 0..1. The
correlation with a constant prediction is undefined and counts as 0.

`weights` of shape (draws, items) are the counts of each item in each bootstrap draw; by default every item counts once.
"""

from collections.abc import Iterator

import numpy as np
from scipy.special import gammaln
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity

BLOCK = 2_000_000  # numbers
# Noise ceiling below which a voxel is left out of ceiling_normalised. A perfect model reaches r = sqrt(.05) = .22
# there; of chance correlations over 80 stimuli 95 % lie below that, too (1.96 / sqrt(80) = .22).
LEAST_CEILING = 0.05


def pixel_correlation(images: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """pixcorr = Pearson r over all pixels and channels of an image; array of shape (images,).

    Source: Ozcelik & VanRullen 2023 (Brain-Diffuser).
    """
    parts = [(_unit_rows(images[some]) * _unit_rows(reconstructions[some])).sum(1) for some in _blocks(images)]
    return np.concatenate(parts)


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
    (real, of_row), (predicted, of_column) = map(_distinct, (real, predicted))
    correlation = np.empty((len(real), len(predicted)))
    for rows in _blocks(real, 16 * BLOCK):
        unit = _unit_rows(real[rows])
        for columns in _blocks(predicted, 16 * BLOCK):  # few columns would read all of `unit` for little work
            correlation[rows, columns] = unit @ _unit_rows(predicted[columns]).T
    return correlation[np.ix_(of_row, of_column)]


def two_way(
    correlation: np.ndarray, comparable: np.ndarray | None = None, weights: np.ndarray | None = None
) -> np.ndarray:
    """Two-way identification = sum over i != j of [r_ij < r_jj] / (n (n - 1)); a tie counts as wrong, chance is 0.5.

    Args:
        correlation: r_ij of `cross_correlation`, columns are predictions; array of shape (n, n).
        comparable: which pairs (i, j) count, bool of shape (n, n); by default all with i != j.

    Returns:
        Array of shape (draws,), NaN where there is nothing to compare.
    """
    comparable, weights = _pairs(correlation, comparable, weights)
    wins = (correlation < np.diag(correlation)[None, :]) & comparable
    pairs = ((weights @ comparable) * weights).sum(1)
    return np.divide(((weights @ wins) * weights).sum(1), pairs, out=np.full_like(pairs, np.nan), where=pairs > 0)


def top_k(
    correlation: np.ndarray, k: int = 1, comparable: np.ndarray | None = None, weights: np.ndarray | None = None
) -> np.ndarray:
    """Share of the columns j whose own row is among the k best: fewer than k rows i != j have r_ij >= r_jj.

    Each column ranks the rows. A tie counts as wrong; chance is k / n. Arguments and result as in `two_way`. Weights
    count columns only: every row stays a candidate once. A column that can be compared with no row is left out.
    """
    comparable, weights = _pairs(correlation, comparable, weights)
    ranking = comparable.any(0)
    hits, columns = weights @ (ranking & (_rivals(correlation, comparable) < k)), weights @ ranking
    return np.divide(hits, columns, out=np.full_like(columns, np.nan), where=columns > 0)


def top1_of(
    among: int, correlation: np.ndarray, comparable: np.ndarray | None = None, weights: np.ndarray | None = None
) -> np.ndarray:
    """`top_k` with k = 1 among `among` rows drawn at random, one of which is the column's own: mean over all draws.

        mean over j of C(n_j - rivals_j, among - 1) / C(n_j, among - 1)

    with n_j the number of rows that can be compared with j, and rivals_j how many of them have r_ij >= r_jj.

    Source: Lin et al. 2022 (Mind Reader) and MindEye use 300 candidates and draw them 30 times.

    Returns:
        Array of shape (draws,), NaN where a column has fewer than `among` - 1 rows to be compared with.
    """
    comparable, weights = _pairs(correlation, comparable, weights)
    rows, rivals = comparable.sum(0), _rivals(correlation, comparable)
    if rows.min() < among - 1:
        return np.full(len(weights), np.nan)
    left = rows - rivals - (among - 1)
    choices = gammaln(rows - rivals + 1) - gammaln(left.clip(min=0) + 1)
    chance = np.where(left >= 0, np.exp(choices - gammaln(rows + 1) + gammaln(rows - among + 2)), 0)
    return weights @ chance / weights.sum(1)


def voxel_correlation(measured: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Pearson r of each voxel over stimuli, NaN for a voxel whose measurement is constant.

    Args:
        measured, predicted: arrays of shape (stimuli, voxels).

    Returns:
        Array of shape (draws, voxels).
    """
    return voxel_correlation_and_r2(measured, predicted, weights)[0]


def voxel_r2(measured: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """R2 = 1 - sum (measured - predicted)^2 / sum (measured - mean of measured)^2 of each voxel over stimuli.

    Arguments and result as in `voxel_correlation`; the result does not depend on the unit.
    """
    return voxel_correlation_and_r2(measured, predicted, weights)[1]


def voxel_correlation_and_r2(
    measured: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """`voxel_correlation` and `voxel_r2` in one pass, since the weighted sums that both need take most of the time."""
    weights = np.ones((1, len(measured))) if weights is None else weights
    weights = weights / weights.sum(1, keepdims=True)
    correlation, explained = (np.empty((len(weights), measured.shape[1])) for _ in range(2))
    for voxels in _blocks(measured.T):
        # Centred and in units of their own spread, for the sake of precision.
        (m, mean, spread), (p, other_mean, other_spread) = (
            _standard(values[:, voxels]) for values in (measured, predicted)
        )
        level, scale = (mean - other_mean) / spread, other_spread / spread
        m1, p1, m2, p2, mp = (weights @ values for values in (m, p, m * m, p * p, m * p))
        variance, other_variance = (m2 - m1**2).clip(min=0), (p2 - p1**2).clip(min=0)
        width = np.sqrt(variance * other_variance)
        r = np.divide(mp - m1 * p1, width, out=np.zeros_like(width), where=width > 1e-12)
        # measured - predicted = spread (m + level - scale p)
        error = m2 + level**2 + scale**2 * p2 + 2 * level * m1 - 2 * scale * mp - 2 * level * scale * p1
        varies = variance > 1e-12
        r2 = 1 - np.divide(error, variance, out=np.zeros_like(error), where=varies)
        correlation[:, voxels], explained[:, voxels] = np.where(varies, r, np.nan), np.where(varies, r2, np.nan)
    return correlation, explained


def is_constant(values: np.ndarray) -> np.ndarray:
    """Which columns have one value in all rows; bool array of shape (columns,)."""
    return np.ptp(values, axis=0) == 0


def pattern_correlation(
    measured: np.ndarray, predicted: np.ndarray, mean: np.ndarray | float = 0.0, std: np.ndarray | float = 1.0
) -> np.ndarray:
    """Pearson r across voxels of each stimulus, of (fmri - mean) / std; array of shape (stimuli,), NaN for one voxel.

    Args:
        measured, predicted: arrays of shape (stimuli, voxels).
        mean, std: of each voxel over train, arrays of shape (voxels,): in raw units the voxels' means alone correlate.
    """
    if measured.shape[1] < 2:
        return np.full(len(measured), np.nan)
    parts = []
    for some in _blocks(measured):
        unit = [_unit_rows((np.float64(values[some]) - mean) / std) for values in (measured, predicted)]
        parts.append((unit[0] * unit[1]).sum(1))
    return np.concatenate(parts)


def ceiling_normalised(correlation: np.ndarray, noise_ceiling: np.ndarray) -> np.ndarray:
    """mean over voxels of min(max(r, 0)^2 / ceiling, 1), over the voxels whose ceiling is at least `LEAST_CEILING`.

    Voxels with a lower ceiling are left out: r^2 / ceiling would be at the cap of 1 as soon as r is above 0 by chance,
    so that a model which predicts nothing would score up to .5. Voxels of unknown ceiling are left out, too.

    Args:
        correlation: r of each voxel, array of shape (draws, voxels).
        noise_ceiling: share of the variance of the responses r was computed on that the stimulus explains, array of
            shape (voxels,), NaN where unknown.

    Returns:
        Array of shape (draws,). NaN where no ceiling is known; 0 where ceilings are known and all are lower.

    Source: the score of the Algonauts 2023 challenge (Gifford et al. 2023), which keeps all voxels and replaces a
    ceiling of 0 by 1e-14. The two agree where all ceilings are at least `LEAST_CEILING`.
    """
    measurable = noise_ceiling >= LEAST_CEILING
    if not measurable.any():
        return np.full(len(correlation), 0.0 if np.isfinite(noise_ceiling).any() else np.nan)
    explained = correlation[:, measurable].clip(min=0)
    explained *= explained
    explained /= noise_ceiling[measurable]
    return nan_reduce(np.mean, explained.clip(max=1, out=explained))


def cosine_similarity(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Cosine of every row of one array with every row of the other; array of shape (n, n)."""
    unit = [np.asarray(values, dtype=np.float64) for values in (rows, columns)]
    unit = [values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12) for values in unit]
    return unit[0] @ unit[1].T


def nan_reduce(reduce, values: np.ndarray) -> np.ndarray:
    """`reduce` (np.mean, np.median) over the last axis without its NaN; NaN where nothing is left."""
    if np.isfinite(values).all() and values.shape[1]:
        return reduce(values, axis=1)
    kept = [row[np.isfinite(row)] for row in values]
    return np.array([reduce(row) if len(row) else np.nan for row in kept])


def _distinct(values) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows, as far as an array on disk tells them, and the place of each row among them."""
    return values.distinct() if hasattr(values, "distinct") else (values, np.arange(len(values)))


def _unit_rows(values: np.ndarray) -> np.ndarray:
    """Rows flattened, centred and scaled to length 1; constant rows become 0."""
    values = values.reshape(len(values), -1)
    constant = values.max(1) == values.min(1)
    rows = values.astype(np.float64)
    rows -= rows.mean(1, keepdims=True)
    rows[constant] = 0
    rows /= np.sqrt(np.einsum("ij,ij->i", rows, rows)).clip(min=1e-12)[:, None]
    return rows


def _pairs(correlation: np.ndarray, comparable: np.ndarray | None, weights: np.ndarray | None):
    if comparable is None:
        comparable = np.ones(correlation.shape, dtype=bool)
    if weights is None:
        weights = np.ones((1, len(correlation)))
    return comparable & ~np.eye(len(correlation), dtype=bool), np.asarray(weights, dtype=np.float64)


def _rivals(correlation: np.ndarray, comparable: np.ndarray) -> np.ndarray:
    """How many rows each column ranks as high as its own or higher; all of them where its own is NaN."""
    return (~(correlation < np.diag(correlation)[None, :]) & comparable).sum(0)


def _standard(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns centred and scaled to variance 1, their means, and their standard deviations (1 for a constant one)."""
    mean = np.mean(values, 0, dtype=np.float64)
    spread = np.where(np.ptp(values, axis=0) > 0, np.std(values, 0, dtype=np.float64), 1.0)
    return (values - mean) / spread, mean, spread


def _blocks(values: np.ndarray, numbers: int | None = None) -> Iterator[slice]:
    """Slices of the rows of so many numbers, BLOCK by default: few enough to be held as float64 a few times over."""
    size = max(1, (numbers or BLOCK) * len(values) // max(values.size, 1))
    return (slice(start, start + size) for start in range(0, len(values), size))
