"""Ridge regression with the penalty chosen inside the rows that are given.

    weights = argmin ||targets - features weights - intercept||^2 + penalty ||weights||^2

solved by himalaya (Dupre la Tour et al. 2022), in its kernel form where features exceed samples.
"""

from collections.abc import Sequence

import numpy as np
from himalaya.kernel_ridge import KernelRidge, KernelRidgeCV
from himalaya.ridge import Ridge, RidgeCV

from visionflow_hf.corpus.splits import stimulus_folds

PENALTIES = np.logspace(-5, 2, 15)  # times the mean squared norm of a centred row of features
FOLDS = 5


def fit_ridge(
    features: np.ndarray, targets: np.ndarray, stimulus_ids: Sequence[str], seed: int = 0
) -> RidgeCV | KernelRidgeCV:
    """Fit a ridge regression whose one penalty does best on held-out stimuli; `.predict(features)` applies it.

    Args:
        features: float32 array of shape (samples, features).
        targets: float32 array of shape (samples, targets).
        stimulus_ids: the stimulus of each sample; its repeats stay in one fold.
    """
    folds = list(stimulus_folds(stimulus_ids, min(FOLDS, len(set(stimulus_ids))), seed))
    centred_norm = float(features.var(0, dtype=np.float64).sum())
    wide = features.shape[1] > features.shape[0]
    estimator = KernelRidgeCV if wide else RidgeCV
    return estimator(
        alphas=PENALTIES * max(centred_norm, 1e-12),
        fit_intercept=True,
        cv=folds,
        solver_params={"local_alpha": False} if wide else {"local_alpha": False, "warn": False},
    ).fit(features, targets)


def out_of_fold(
    model: RidgeCV | KernelRidgeCV,
    features: np.ndarray,
    targets: np.ndarray,
    stimulus_ids: Sequence[str],
    seed: int = 0,
) -> np.ndarray:
    """What ridges with the penalty of `model` predict of the stimuli that they were fitted without, as `targets`."""
    penalty = float(np.max(model.best_alphas_))
    predicted = np.empty_like(targets)
    for train, test in stimulus_folds(stimulus_ids, min(FOLDS, len(set(stimulus_ids))), seed):
        predicted[test] = ridge_of(penalty, features[train], targets[train]).predict(features[test])
    return predicted


def ridge_of(penalty: float, features: np.ndarray, targets: np.ndarray) -> Ridge | KernelRidge:
    """A ridge regression with a penalty that is given."""
    estimator = KernelRidge if features.shape[1] > len(features) else Ridge
    return estimator(alpha=penalty, fit_intercept=True).fit(features, targets)


def linear_map(
    model: RidgeCV | KernelRidgeCV | Ridge | KernelRidge, features: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (features, targets) and intercept (targets,) of a ridge that was fitted on `features`."""
    weights = model.coef_ if isinstance(model, (RidgeCV, Ridge)) else model.get_primal_coef(features)
    return np.asarray(weights, dtype=np.float32), np.asarray(model.intercept_, dtype=np.float32)
