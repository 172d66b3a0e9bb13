"""The ridge regression of all closed-form fits: its equation, its penalty, its two forms."""

import numpy as np
import pytest
import torch
from himalaya.kernel_ridge import KernelRidgeCV
from himalaya.ridge import RidgeCV
from sklearn.linear_model import Ridge

from visionflow_hf.modeling import ridge as ridge_module
from visionflow_hf.modeling.ridge import (
    PENALTIES,
    RidgePath,
    cholesky,
    eigh,
    fit_ridge,
    fit_ridges,
    held_out_errors,
    held_out_predictions,
)

RNG = np.random.default_rng(0)


def squared_norm(x):
    return float((x - x.mean(0)).square().sum(1).mean())


def held_out_one_by_one(groups):
    return [(np.flatnonzero(groups != one), np.flatnonzero(groups == one)) for one in np.unique(groups)]


def data(samples, features, noise=1.0):
    x = RNG.normal(size=(samples, features)).astype(np.float32) + 3
    y = x @ RNG.normal(size=(features, 4)) / np.sqrt(features) + noise * RNG.normal(size=(samples, 4)) - 7
    return torch.from_numpy(x), torch.from_numpy(y.astype(np.float32))


@pytest.mark.parametrize("shape", [(60, 12), (30, 80)], ids=["more samples", "more features"])
def test_the_solution_is_that_of_scikit_learn_at_the_same_penalty(shape):
    x, y = data(*shape)
    ridge = fit_ridge(x, y, range(len(x)))
    reference = Ridge(alpha=ridge.penalty).fit(x.double().numpy(), y.double().numpy())
    np.testing.assert_allclose(ridge.predict(x), reference.predict(x.numpy()), atol=2e-3)
    assert ridge.weights.shape == (shape[1], 4) and ridge.intercept.shape == (4,)


@pytest.mark.parametrize("shape", [(60, 12), (30, 80)], ids=["more samples", "more features"])
def test_the_penalty_is_the_one_that_himalaya_chooses_without_each_stimulus_in_turn(shape):
    x, y = data(*shape, noise=2.0)
    groups = np.minimum(np.arange(len(x)) // 2, 10)  # groups of 2 and a larger one
    folds = held_out_one_by_one(groups)
    alphas = np.array(PENALTIES) * squared_norm(x)
    estimator = KernelRidgeCV if shape[1] > shape[0] else RidgeCV
    options = {"solver_params": {"local_alpha": False}, "fit_intercept": True, "cv": folds}
    theirs = estimator(alphas=alphas, **options).fit(x.numpy(), y.numpy())
    ours = fit_ridge(x, y, groups.tolist())
    assert ours.penalty == pytest.approx(float(np.max(theirs.best_alphas_)), rel=1e-4)


@pytest.mark.parametrize("features", [50, 120], ids=["more samples", "more features"])
def test_of_many_samples_an_even_choice_decides_and_all_are_fitted(features, monkeypatch):
    monkeypatch.setattr(ridge_module, "MOST_DECIDING", 30)
    x, y = data(90, features)
    groups = np.minimum(np.arange(90) // 2, 40)  # groups of 2 and a larger one
    (ridge, other) = fit_ridges(x, [y, y[:, :2] ** 2], groups.tolist())
    some = ridge_module.deciding(groups.tolist())
    assert some == [row for row in range(90) if groups[row] % 3 == 0]
    monkeypatch.undo()
    for fitted, targets in ((ridge, y), (other, y[:, :2] ** 2)):
        few = fit_ridge(x[some], targets[some], groups[some].tolist())
        assert fitted.penalty == pytest.approx(few.penalty, rel=1e-4)
        x64, y64, error = x.double().numpy(), targets.double().numpy(), 0
        reference = Ridge(alpha=fitted.penalty).fit(x64, y64)
        np.testing.assert_allclose(fitted.predict(x), reference.predict(x64), atol=2e-3, rtol=1e-3)
        for train, test in held_out_one_by_one(groups):
            of_others = Ridge(alpha=fitted.penalty).fit(x64[train], y64[train])
            error = error + np.square(of_others.predict(x64[test]) - y64[test]).sum(0) / 90
        np.testing.assert_allclose(fitted.held_out_error, error, rtol=2e-3)


def test_a_penalty_that_is_lost_in_rounding_is_raised():
    x = torch.from_numpy(RNG.normal(size=(40, 3)).astype(np.float32)) * 100
    products = x @ x.T
    before = products.clone()
    penalty, factor = cholesky(products, 1e-9)
    assert 1e-9 < penalty < 10 and torch.equal(products, before)
    torch.testing.assert_close(torch.cholesky_solve(products, factor).T @ x, x, rtol=1e-2, atol=1e-2)


def test_noise_raises_the_penalty():
    chosen = [fit_ridge(*data(60, 12, noise), range(60)).penalty for noise in (0.01, 30.0)]
    assert chosen[0] < chosen[1]


def test_the_penalty_does_not_depend_on_the_unit():
    x, y = data(40, 10)
    small, large = fit_ridge(x, y, range(40)), fit_ridge(x * 1000, y, range(40))
    assert large.penalty / small.penalty == pytest.approx(1e6, rel=1e-3)


def test_repeats_of_a_stimulus_never_choose_the_penalty_for_each_other():
    # Each stimulus appears six times with its own noise-free target: with repeats on both sides no penalty looks best.
    torch.manual_seed(0)
    x, y = torch.randn(20, 40), torch.randn(20, 40)  # nothing generalises over stimuli
    x, y = x.repeat_interleave(6, 0) + 0.01 * torch.randn(120, 40), y.repeat_interleave(6, 0)
    by_stimulus = fit_ridge(x, y, np.repeat(np.arange(20), 6).tolist()).penalty
    assert fit_ridge(x, y, range(120)).penalty < by_stimulus


@pytest.mark.parametrize("shape", [(60, 12), (60, 59), (30, 80)], ids=["more samples", "as many", "more features"])
def test_generalised_cross_validation_chooses_the_penalty_of_its_formula(shape):
    x, y = data(*shape, noise=2.0)
    centred, targets = (one.double() - one.double().mean(0) for one in (x, y))
    errors = []
    for share in PENALTIES:
        penalty = share * squared_norm(x)
        hat = centred @ torch.linalg.solve(centred.T @ centred + penalty * torch.eye(shape[1]), centred.T)
        free = 1 - (1 + torch.trace(hat)) / len(x)
        missed = (targets - hat @ targets).square().sum() / len(x) / free**2
        errors.append(missed if free >= 0.01 else torch.inf)
    best = RidgePath(x, y).best_penalty()
    assert best == pytest.approx(PENALTIES[int(np.argmin(errors))] * squared_norm(x), rel=1e-3)


@pytest.mark.parametrize("shape", [(40, 10), (30, 80)], ids=["more samples", "more features"])
def test_held_out_predictions_are_those_of_ridges_without_the_stimulus(shape):
    x, y = data(*shape)
    groups = RNG.permutation(np.minimum(np.arange(len(x)) // 2, 8))
    ridge = fit_ridge(x, y, groups.tolist())
    predicted = held_out_predictions(ridge.penalty, x, y, groups.tolist())
    for train, test in held_out_one_by_one(groups):
        reference = Ridge(alpha=ridge.penalty).fit(x[train].double().numpy(), y[train].double().numpy())
        np.testing.assert_allclose(predicted[test], reference.predict(x[test].numpy()), atol=5e-3)
    torch.testing.assert_close(ridge.held_out_error, (predicted - y).square().mean(0), rtol=1e-3, atol=1e-4)


def test_a_sample_that_has_a_direction_to_itself():
    """1 - H_ii is 0 but for rounding where the penalty is small: another one is chosen."""
    scores = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]) / 2**0.5
    y = torch.tensor([[1.0], [2.0], [4.0], [3.0]])
    penalties = torch.tensor([1e-9, 1.0])
    ((_, errors),) = held_out_errors(scores, torch.tensor([1.0, 1.0]), y, "abcd", penalties)
    assert errors[1].isfinite().all()
    x, y = data(30, 80)
    x[0] *= 1e12
    assert fit_ridge(x, y, range(30)).weights.isfinite().all()


def test_held_out_predictions_in_parts_are_the_same(monkeypatch):
    x, y = data(40, 10)
    whole = held_out_predictions(3.0, x, y, range(40))
    monkeypatch.setattr(ridge_module, "MOST_NUMBERS", 100)
    monkeypatch.setattr(ridge_module, "BLOCK", 3)
    torch.testing.assert_close(held_out_predictions(3.0, x, y, range(40)), whole)


def test_many_regressions_at_once_are_those_one_by_one():
    x = torch.from_numpy(RNG.normal(1, 2, (3, 30, 5)).astype(np.float32))
    y = torch.randn(30, 4)
    penalty = torch.tensor([1.0, 10.0, 100.0])
    together = RidgePath(x, y).solve(penalty)
    for one in range(3):
        alone = Ridge(alpha=float(penalty[one])).fit(x[one].numpy(), y.numpy())
        np.testing.assert_allclose(together.weights[one].T, alone.coef_, atol=1e-3)
        np.testing.assert_allclose(together.intercept[one], alone.intercept_, atol=1e-3)


def test_a_single_group_cannot_be_held_out():
    with pytest.raises(ValueError, match="1 distinct stimulus: at least 2 are needed"):
        fit_ridge(*data(6, 3), ["a"] * 6)


def test_one_precision_is_enough():
    """float32 against numpy's float64 where the ridge is ill-conditioned: more features than samples, small penalty."""
    x, y = data(200, 900, noise=0.1)
    path = RidgePath(x, y)
    for penalty in (1e-4 * squared_norm(x), squared_norm(x)):
        centred, level = x.double() - x.double().mean(0), y.double().mean(0)
        dual = torch.linalg.solve(centred @ centred.T + penalty * torch.eye(200), y.double() - level)
        expected = centred.T @ dual
        error = (path.solve(penalty).weights.double() - expected).norm() / expected.norm()
        assert error < 1e-3


@pytest.mark.parametrize("scale", [1e-15, 1e-30, 1.0, 1e15])
def test_eigenvalues_of_very_small_and_large_matrices(scale):
    """LAPACK makes NaN of some whose largest entry is 1e-15: those of the wavelets of an image of 2 x 3 px, say."""
    features = torch.randn(11, 20, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -8, 11)[:, None]
    products = torch.stack([features @ features.T, torch.zeros(11, 11)])
    values, vectors = eigh(products * scale)
    expected = torch.linalg.eigvalsh(products.double())
    torch.testing.assert_close(values.double() / scale, expected, rtol=0, atol=1e-5 * expected.max().item())
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(11).expand(2, -1, -1), rtol=0, atol=1e-5)
    assert [part.shape for part in eigh(torch.zeros(0, 0))] == [(0,), (0, 0)]
