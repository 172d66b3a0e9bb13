"""Ridge regressions from many small groups of features at once, each for several penalties, and their likelihood.

    weights = argmin ||targets - features weights - intercept||^2 + penalty ||weights||^2

A group is what one field holds of an image. One eigendecomposition of a group serves all penalties and targets.
"""

from collections.abc import Iterable

import numpy as np

Linear = tuple[np.ndarray, np.ndarray]  # weights (features, voxels) and intercept (voxels,)

PENALTIES = (0.03, 0.3, 3.0, 30.0)  # times the mean variance of a feature and the number of rows
LEAST_LIKELIHOOD = 0.02  # of a candidate, against the best
LEAST_VARIANCE = 1e-6  # of a feature; what varies less is the blank border of the images
BLOCK = 2000  # voxels at a time, which bounds the memory
WORKING_SET = 10_000_000  # responses that as many fields as are worked on at once predict together


class FieldRidges:
    """A ridge for each field and each of PENALTIES.

    With the eigenvectors U and eigenvalues s of the centred features' products, weights = U (U' X' Y) / (s + penalty).

    Args:
        features: float32 array of shape (fields, rows, channels).
        targets: float32 array of shape (rows, targets).
    """

    def __init__(self, features: np.ndarray, targets: np.ndarray):
        self.mean, self.level = features.mean(1), targets.mean(0)
        centred = features - self.mean[:, None]
        turned = centred.transpose(0, 2, 1)
        wide = features.shape[2] > features.shape[1]  # then the rows' own products are the smaller matrix
        values, vectors = np.linalg.eigh(centred @ turned if wide else turned @ centred)
        self.along = vectors.transpose(0, 2, 1) @ (targets - self.level if wide else turned @ targets)
        self.back = turned @ vectors if wide else vectors
        scale = centred.var(1).mean(1).clip(min=LEAST_VARIANCE)[:, None]
        self.shrunk = [values.clip(min=0) + np.float32(penalty * features.shape[1]) * scale for penalty in PENALTIES]

    def errors(self, features: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Squared errors of predictions from other rows, summed over them, `(fields, penalties, targets)`."""
        ahead, wanted = (features - self.mean[:, None]) @ self.back, targets - self.level
        errors = []
        for shrunk in self.shrunk:
            missed = (ahead / shrunk[:, None]) @ self.along
            missed -= wanted
            errors.append(np.einsum("krv,krv->kv", missed, missed))
        return np.stack(errors, axis=1)

    def mean_over_penalties(self, share: np.ndarray) -> Linear:
        """Their mean with shares `(fields, penalties, targets)`: weights (fields, channels, targets).

        And intercepts (fields, targets); where the shares of a field do not sum to 1, neither do its ridges.
        """
        along = sum(share[:, at, None] / shrunk[:, :, None] for at, shrunk in enumerate(self.shrunk)) * self.along
        linear = self.back @ along
        return linear, share.sum(1) * self.level - (self.mean[:, None] @ linear)[:, 0]


def held_out_errors(
    features: np.ndarray, targets: np.ndarray, folds: Iterable[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """Summed squared errors `(fields, penalties, targets)` of ridges that were fitted without the row's fold."""
    return sum(
        FieldRidges(features[:, train], targets[train]).errors(features[:, test], targets[test])
        for train, test in folds
    )


def shares(errors: np.ndarray, rows: int) -> np.ndarray:
    """Likelihoods, normalised for each voxel, of candidates with summed squared errors (fields, penalties, voxels)."""
    least = errors.min((0, 1))
    likelihood = np.exp(-rows / 2 * (errors - least) / least.clip(min=1e-12))
    likelihood[likelihood < LEAST_LIKELIHOOD] = 0
    return likelihood / likelihood.sum((0, 1))
