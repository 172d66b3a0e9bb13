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
ONE_PENALTY = {"local_alpha": False, "n_alphas_batch": 1}  # common to all targets; tried one by one, to spare memory


def fit_ridge(
    features: np.ndarray, targets: np.ndarray, stimulus_ids: Sequence[str], seed: int = 0
) -> RidgeCV | KernelRidgeCV:
    """Fit a ridge regression whose one penalty does best on held-out stimuli; `.predict(features)` applies it.

    Args:
        features: float32 array of shape (samples, features).
        targets: float32 array of shape (samples, targets).
        stimulus_ids: the stimulus of each sample; its repeats stay in one fold.
    """
    choice = choosing(float(features.var(0, dtype=np.float64).sum()), stimulus_ids, seed)
    if features.shape[1] > features.shape[0]:
        return KernelRidgeCV(solver_params=ONE_PENALTY, **choice).fit(features, targets)
    return RidgeCV(solver_params=ONE_PENALTY | {"warn": False}, **choice).fit(features, targets)


def fit_ridge_to_products(
    products: np.ndarray, targets: np.ndarray, stimulus_ids: Sequence[str], seed: int = 0
) -> KernelRidgeCV:
    """The same ridge, in its kernel form, from features of which only the products are at hand.

    Args:
        products: float32 array of shape (samples, samples), of each two samples' features.

    Returns:
        A ridge whose weights are features^T `dual_coef_`, `dual_coef_` being of shape (samples, targets).
    """
    centred_norm = float(np.diag(products).mean(dtype=np.float64) - products.mean(dtype=np.float64))
    choice = choosing(centred_norm, stimulus_ids, seed)
    return KernelRidgeCV(kernel="precomputed", solver_params=ONE_PENALTY, **choice).fit(products, targets)


def choosing(centred_norm: float, stimulus_ids: Sequence[str], seed: int) -> dict:
    """The penalties that himalaya tries, and the stimuli that it holds out for it."""
    return {
        "alphas": PENALTIES * max(centred_norm, 1e-12),
        "fit_intercept": True,
        "cv": list(stimulus_folds(stimulus_ids, min(FOLDS, len(set(stimulus_ids))), seed)),
    }


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
