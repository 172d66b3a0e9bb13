"""How much each voxel counts in decoding, chosen by held-out stimuli."""

import numpy as np

from visionflow_hf.ridge import fit_ridge, out_of_fold
from visionflow_hf.training import voxel_weights as module
from visionflow_hf.training.voxel_weights import LEAST, voxel_weights, weigh


def made(stimuli: int, informative: int, noise: int):
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(stimuli, 3)).astype(np.float32)
    signal = latents @ rng.normal(size=(3, informative)) + 0.7 * rng.normal(size=(stimuli, informative))
    fmri = np.concatenate([signal, rng.normal(size=(stimuli, noise))], axis=1)
    fmri = (fmri - fmri.mean(0)) / fmri.std(0)
    return fmri.astype(np.float32), latents, [f"s{row}" for row in range(stimuli)]


def test_few_informative_voxels_among_many_count_more():
    fmri, latents, names = made(80, informative=8, noise=600)
    weights = voxel_weights(fmri, latents, names)
    assert weights.shape == (608,) and np.isclose(np.square(weights).mean(), 1)
    assert np.median(weights[:8]) > 4 * np.median(weights[8:])

    train, test = slice(0, 60), slice(60, 80)
    weights = voxel_weights(fmri[train], latents[train], names[:60])
    plain = fit_ridge(fmri[train], latents[train], names[:60]).predict(fmri[test])
    weighted = fit_ridge(fmri[train] * weights, latents[train], names[:60]).predict(fmri[test] * weights)
    error_plain, error_weighted = (np.square(one - latents[test]).mean() for one in (plain, weighted))
    assert error_weighted < 0.8 * error_plain


def test_the_power_is_chosen_by_some_of_many_rows_and_the_weights_made_from_all(monkeypatch):
    fmri, latents, names = made(120, informative=8, noise=600)
    rows = {}
    choose, say = module.best_power, module.reliabilities
    monkeypatch.setattr(module, "CHOOSING_ROWS", 60)
    monkeypatch.setattr(module, "best_power", lambda *some: rows.update(choosing=len(some[0])) or choose(*some))
    monkeypatch.setattr(module, "reliabilities", lambda *some: rows.update(weights=len(some[0])) or say(*some))
    weights = voxel_weights(fmri, latents, names)
    assert rows == {"choosing": 60, "weights": 120}
    assert np.median(weights[:8]) > 4 * np.median(weights[8:])


def test_with_few_distinct_stimuli_all_count_alike():
    fmri, latents, _ = made(48, informative=4, noise=10)
    names = [f"s{row % 6}" for row in range(48)]
    np.testing.assert_array_equal(voxel_weights(fmri, latents, names), 1)


def test_a_power_of_zero_leaves_all_voxels_alike():
    np.testing.assert_allclose(weigh(np.array([0.5, -0.2, 0.1]), 0.0), 1)
    one, other, least = weigh(np.array([0.5, 0.25, -0.2]), 2.0)
    np.testing.assert_allclose([one / other, least / one], [4, LEAST / 0.25], rtol=1e-5)


def test_out_of_fold_predictions_are_those_of_ridges_without_the_stimulus():
    fmri, latents, names = made(30, informative=5, noise=0)
    names = [name for name in names[:15] for _ in range(2)]
    ridge = fit_ridge(latents, fmri, names)
    predicted = out_of_fold(ridge, latents, fmri, names)
    shuffled = fmri.copy()
    shuffled[:2] = 100  # both rows of one stimulus
    again = out_of_fold(ridge, latents, shuffled, names)
    np.testing.assert_allclose(again[:2], predicted[:2], rtol=1e-4)
    assert not np.allclose(again[2:], predicted[2:])
