"""Each metric against a library or a hand count, its traps, and its weights against rows written out repeatedly."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity
from sklearn.metrics import r2_score

from visionflow_hf import metrics

RNG = np.random.default_rng(0)
GREY = RNG.random((6, 16, 14))
COLOUR = RNG.random((6, 16, 14, 3))


def blurred(images):
    return 0.6 * images + 0.4 * RNG.random(images.shape)


@pytest.mark.parametrize("images", [GREY, COLOUR], ids=["grey", "colour"])
def test_pixel_correlation_is_pearson_r_over_all_pixels_and_channels(images):
    other = blurred(images)
    expected = [pearsonr(a.ravel(), b.ravel())[0] for a, b in zip(images, other, strict=True)]
    np.testing.assert_allclose(metrics.pixel_correlation(images, other), expected)
    np.testing.assert_allclose(metrics.cross_correlation(images, other), np.corrcoef(*flat(images, other))[:6, 6:])


def flat(*arrays):
    return [array.reshape(len(array), -1) for array in arrays]


def test_a_constant_reconstruction_correlates_with_nothing():
    assert metrics.pixel_correlation(GREY, np.full_like(GREY, 0.3)).tolist() == [0] * 6


def test_ssim_is_that_of_scikit_image_on_the_grey_image():
    other = blurred(COLOUR)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    expected = [structural_similarity(rgb2gray(a), rgb2gray(b), **options) for a, b in zip(COLOUR, other, strict=True)]
    np.testing.assert_allclose(metrics.ssim(COLOUR, other), expected)
    assert metrics.ssim(GREY, GREY).tolist() == [1] * 6
    assert metrics.ssim(GREY[:, :4, :4], GREY[:, :4, :4]).tolist() == [1] * 6  # smaller than the window


def test_mean_squared_error_is_a_mean_over_pixels_and_channels():
    np.testing.assert_allclose(metrics.mean_squared_error(COLOUR, COLOUR + 0.5), 0.25)


def counted_two_way(correlation):
    n = len(correlation)
    wins = [correlation[i, j] < correlation[j, j] for j in range(n) for i in range(n) if i != j]
    return sum(wins) / (n * (n - 1))


def test_two_way_and_top1_count_columns_as_predictions():
    correlation = np.array([[0.5, 0.2, 0.1], [0.6, 0.9, 0.1], [0.4, 0.3, 0.0]])
    # column 0 beats row 2 only; column 1 beats both; column 2 neither
    assert metrics.two_way(correlation).tolist() == [pytest.approx(3 / 6)]
    assert metrics.top_k(correlation).tolist() == [pytest.approx(1 / 3)]
    random = RNG.normal(size=(9, 9))
    assert metrics.two_way(random)[0] == pytest.approx(counted_two_way(random))


def test_top_k_counts_rows_that_are_as_good_or_better():
    correlation = np.array([[0.5, 0.2, 0.4, 0.1], [0.6, 0.9, 0.4, 0.1], [0.4, 0.3, 0.4, 0.1], [0.7, 0.1, 0.4, 0.0]])
    # rivals of the columns' own rows: 2 (.6 and .7), none, 3 ties, 3 better ones
    assert [metrics.top_k(correlation, k)[0] for k in (1, 2, 3, 4)] == [0.25, 0.25, 0.5, 1]


def test_top1_among_some_is_the_mean_over_all_choices_of_them():
    correlation = RNG.normal(size=(7, 7)) + np.eye(7)
    hits = []
    for column in range(7):
        for rivals in combinations([row for row in range(7) if row != column], 3):
            hits.append(all(correlation[row, column] < correlation[column, column] for row in rivals))
    assert metrics.top1_of(4, correlation)[0] == pytest.approx(np.mean(hits))
    assert metrics.top1_of(7, correlation)[0] == pytest.approx(metrics.top_k(correlation)[0])
    assert np.isnan(metrics.top1_of(8, correlation)[0])


def test_pattern_correlation_is_pearson_r_over_voxels():
    measured, predicted = RNG.normal(size=(2, 6, 50))
    expected = [pearsonr(a, b)[0] for a, b in zip(measured, predicted, strict=True)]
    np.testing.assert_allclose(metrics.pattern_correlation(measured, predicted), expected)


def test_blocks_change_nothing(monkeypatch):
    measured, predicted = RNG.normal(size=(2, 6, 50))
    figures = (metrics.cross_correlation, metrics.pattern_correlation, metrics.voxel_correlation, metrics.voxel_r2)
    whole = [figure(measured, predicted) for figure in figures]
    monkeypatch.setattr(metrics, "BLOCK", 100)
    for figure, expected in zip(figures, whole, strict=True):
        np.testing.assert_allclose(figure(measured, predicted), expected)


def test_a_tie_fails():
    assert metrics.two_way(np.ones((4, 4))).tolist() == [0]
    assert metrics.top_k(np.ones((4, 4))).tolist() == [0]


def test_chance_is_what_the_docstrings_say():
    random = RNG.normal(size=(400, 400))
    assert metrics.two_way(random)[0] == pytest.approx(0.5, abs=0.03)
    assert metrics.top_k(random)[0] == pytest.approx(1 / 400, abs=0.01)


def test_pairs_that_cannot_be_compared_do_not_count():
    correlation = np.array([[0.5, 0.2, 0.1], [0.6, 0.9, 0.1], [0.4, 0.3, 0.0]])
    comparable = np.array([[0, 0, 1], [0, 0, 1], [1, 1, 0]], dtype=bool)
    assert metrics.two_way(correlation, comparable)[0] == pytest.approx(2 / 4)
    assert metrics.top_k(correlation, 1, comparable)[0] == pytest.approx(2 / 3)
    nothing = np.zeros((3, 3), bool)
    assert np.isnan(metrics.two_way(correlation, nothing)[0]) and np.isnan(metrics.top_k(correlation, 1, nothing)[0])
    nothing[0, 2] = True  # the last column alone has a rival, which is better
    assert metrics.top_k(correlation, 1, nothing)[0] == 0


WEIGHTS = np.array([2, 0, 1, 3, 1])


def test_weights_of_two_way_stand_for_repeated_items():
    correlation = RNG.normal(size=(5, 5)) + np.eye(5)
    place = np.repeat(np.arange(5), WEIGHTS)
    written_out = metrics.two_way(correlation[np.ix_(place, place)], place[:, None] != place[None, :])
    np.testing.assert_allclose(metrics.two_way(correlation, None, WEIGHTS[None]), written_out)


def test_weights_of_top1_count_predictions_while_every_item_stays_a_candidate():
    correlation = RNG.normal(size=(5, 5)) + np.eye(5)
    hits = correlation.argmax(0) == np.arange(5)
    assert metrics.top_k(correlation, 1, None, WEIGHTS[None])[0] == pytest.approx(np.average(hits, weights=WEIGHTS))


def test_voxel_figures_against_scipy_and_scikit_learn():
    measured = RNG.normal(100, 3, (30, 4))
    predicted = measured + RNG.normal(0, 4, (30, 4))
    expected = [pearsonr(a, b)[0] for a, b in zip(measured.T, predicted.T, strict=True)]
    np.testing.assert_allclose(metrics.voxel_correlation(measured, predicted)[0], expected)
    expected = r2_score(measured, predicted, multioutput="raw_values")
    np.testing.assert_allclose(metrics.voxel_r2(measured, predicted)[0], expected)


def test_weights_of_voxel_figures_stand_for_repeated_rows():
    measured, predicted = RNG.normal(5, 1, (5, 3)), RNG.normal(5, 1, (5, 3))
    for figure in (metrics.voxel_correlation, metrics.voxel_r2):
        written_out = figure(np.repeat(measured, WEIGHTS, 0), np.repeat(predicted, WEIGHTS, 0))
        np.testing.assert_allclose(figure(measured, predicted, WEIGHTS[None]), written_out)


def test_voxel_figures_of_constants():
    measured, predicted = RNG.normal(size=(8, 2)), RNG.normal(size=(8, 2))
    measured[:, 0] = predicted[:, 1] = 0.1
    assert np.isnan(metrics.voxel_correlation(measured, predicted)[0, 0])
    assert metrics.voxel_correlation(measured, predicted)[0, 1] == 0
    assert np.isnan(metrics.voxel_r2(measured, predicted)[0, 0])


def test_tiny_units_lose_no_precision():
    measured, predicted = RNG.normal(size=(20, 3)), RNG.normal(size=(20, 3))
    for figure in (metrics.voxel_correlation, metrics.voxel_r2):
        np.testing.assert_allclose(figure(measured * 1e-9 + 1, predicted * 1e-9 + 1), figure(measured, predicted), 1e-4)


def test_ceiling_normalised_by_hand():
    r = np.array([[0.5, -0.5, 0.9, 0.3, 0.3, 0.2]])
    ceiling = np.array([0.5, 0.5, 0.5, 0.0, 0.04, np.nan])
    # .25 / .5, negative r counts 0, .81 / .5 is capped at 1; ceilings below .05 and unknown ones are left out
    assert metrics.ceiling_normalised(r, ceiling)[0] == pytest.approx((0.5 + 0 + 1) / 3)
    assert np.isnan(metrics.ceiling_normalised(r, np.full(6, np.nan))[0])
    assert metrics.ceiling_normalised(r, np.array([0.0, 0.01, 0.02, 0.03, 0.04, np.nan])).tolist() == [0]


def test_noise_explains_nothing_of_voxels_without_signal():
    """Half the voxels have no signal and the others a ceiling of .3; chance correlations over 100 stimuli."""
    r = np.random.default_rng(0).normal(scale=0.1, size=(1, 10000))
    ceiling = np.where(np.arange(10000) % 2, 0.0, 0.3)
    assert metrics.ceiling_normalised(r, ceiling)[0] == pytest.approx(0.1**2 / 2 / 0.3, rel=0.1)


def test_measurable_ceilings_give_the_score_of_algonauts_2023(corpus):
    """The voxels of a simulated cortex with the default noise are all measurable, also on single trials."""
    ceiling = pd.read_parquet(corpus / "voxels.parquet")["noise_ceiling"].to_numpy()
    r = np.random.default_rng(0).uniform(-0.2, 1, (3, len(ceiling)))
    expected = np.minimum(np.maximum(r, 0) ** 2 / np.maximum(ceiling, 1e-14), 1).mean(1)
    np.testing.assert_array_equal(metrics.ceiling_normalised(r, ceiling), expected)


def test_cosine_similarity_by_hand():
    similarity = metrics.cosine_similarity(np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[4.0, 3.0], [1.0, 0.0]]))
    np.testing.assert_allclose(similarity, [[0.96, 0.6], [0, 0]])


def test_what_is_not_a_number_is_no_hit():
    scores = np.array([[np.nan, 0.1], [np.nan, 0.9]])
    assert metrics.top_k(scores) == metrics.top1_of(2, scores) == 0.5
