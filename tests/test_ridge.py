"""The ridge of the bridges and of the baselines: its equation, its penalty, its two forms."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from visionflow_hf.ridge import PENALTIES, fit_ridge, linear_map

RNG = np.random.default_rng(0)


def data(samples, features, noise=1.0):
    x = RNG.normal(size=(samples, features)).astype(np.float32) + 3
    y = x @ RNG.normal(size=(features, 4)) / np.sqrt(features) + noise * RNG.normal(size=(samples, 4)) - 7
    return x, y.astype(np.float32)


@pytest.mark.parametrize("shape", [(60, 12), (30, 80)], ids=["more samples", "more features"])
def test_the_solution_is_that_of_scikit_learn_at_the_same_penalty(shape):
    x, y = data(*shape)
    model = fit_ridge(x, y, [str(i) for i in range(len(x))])
    alpha = np.unique(np.asarray(model.best_alphas_))
    assert len(alpha) == 1  # one penalty for all targets
    reference = Ridge(alpha=float(alpha[0])).fit(x.astype(float), y.astype(float))
    np.testing.assert_allclose(model.predict(x), reference.predict(x), atol=2e-3)
    weights, intercept = linear_map(model, x)
    np.testing.assert_allclose(x @ weights + intercept, model.predict(x), atol=2e-3)
    assert weights.shape == (shape[1], 4) and intercept.shape == (4,)


def test_noise_raises_the_penalty():
    ids = [str(i) for i in range(60)]
    chosen = [float(np.max(fit_ridge(*data(60, 12, noise), ids).best_alphas_)) for noise in (0.01, 30.0)]
    assert chosen[0] < chosen[1]


def test_the_penalty_does_not_depend_on_the_unit():
    x, y = data(40, 10)
    ids = [str(i) for i in range(40)]
    small, large = fit_ridge(x, y, ids), fit_ridge(x * 1000, y, ids)
    np.testing.assert_allclose(np.asarray(large.best_alphas_) / np.asarray(small.best_alphas_), 1e6, rtol=1e-3)


def test_repeats_of_a_stimulus_never_choose_the_penalty_for_each_other():
    # Each stimulus appears six times with its own noise-free target: with repeats on both sides no penalty looks best.
    x, y = data(10, 40, noise=0)
    y = RNG.permutation(y)  # nothing generalises over stimuli
    ids = [str(i) for i in np.repeat(np.arange(10), 6)]
    x, y = np.repeat(x, 6, 0) + 0.01 * RNG.normal(size=(60, 40)).astype(np.float32), np.repeat(y, 6, 0)
    by_stimulus = float(np.max(fit_ridge(x, y, ids).best_alphas_))
    by_row = float(np.max(fit_ridge(x, y, [str(i) for i in range(60)]).best_alphas_))
    assert by_row < by_stimulus


def test_penalties_reach_from_interpolation_to_the_mean():
    assert PENALTIES[0] <= 1e-5 and PENALTIES[-1] >= 100
    x, _ = data(40, 10)
    y = RNG.normal(size=(40, 3)).astype(np.float32)
    predicted = fit_ridge(x, y, [str(i) for i in range(40)]).predict(x)
    assert np.abs(predicted - y.mean(0)).max() < 0.5 * np.abs(y - y.mean(0)).max()
