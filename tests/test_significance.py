"""The test against ridge and the count of voxels above chance, against values computed in other ways."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import pearsonr, rankdata

from visionflow_hf.evaluation.quality import VoxelScores
from visionflow_hf.evaluation.significance import against_ridge, voxels_above_chance


def made(stimuli=9, subjects=("a", "b"), voxels=40, noise=1.0, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (stimuli, 8, 8), dtype=np.uint8)
    found = {
        "stimulus_id": np.array([f"s{n}" for _ in subjects for n in range(stimuli)]),
        "subject": np.repeat(subjects, stimuli),
        "trials": np.ones(stimuli * len(subjects)),
        "image": np.concatenate([images] * len(subjects)),
    }
    for name, spread in (("reconstruction", 60), ("ridge/reconstruction", 80)):
        found[name] = (found["image"] + rng.normal(0, spread, found["image"].shape)).clip(0, 255).astype(np.uint8)
    for subject in subjects:
        signal = rng.normal(size=(stimuli, voxels)) * (np.arange(voxels) < voxels // 2)
        found[f"fmri/{subject}"] = signal + rng.normal(size=signal.shape)
        for name, spread in (("", noise), ("ridge/", 1.5 * noise)):
            found[f"{name}fmri_predicted/{subject}"] = signal + rng.normal(0, spread, signal.shape)
        found[f"noise_ceiling/{subject}"] = np.full(voxels, np.nan)
    return found


def signed_rank_p(difference):
    """By all signs that the differences could have."""
    ranks = rankdata(np.abs(difference))
    sums = np.array([np.dot(signs, ranks) for signs in product((0, 1), repeat=len(ranks))])
    own = ranks[difference > 0].sum()
    return min(1, 2 * min((sums >= own).mean(), (sums <= own).mean()))


def test_against_ridge_is_the_signed_rank_test_of_means_over_subjects():
    predictions = made()
    stimuli = np.unique(predictions["stimulus_id"])
    pixels, patterns = [], []
    for stimulus in stimuli:
        rows = np.flatnonzero(predictions["stimulus_id"] == stimulus)
        both = [
            np.mean(
                [np.corrcoef(predictions["image"][row].ravel(), predictions[name][row].ravel())[0, 1] for row in rows]
            )
            for name in ("reconstruction", "ridge/reconstruction")
        ]
        pixels.append(both[0] - both[1])
        place = int(stimulus[1:])
        both = [
            np.mean(
                [
                    np.corrcoef(predictions[f"fmri/{one}"][place], predictions[f"{name}fmri_predicted/{one}"][place])[
                        0, 1
                    ]
                    for one in "ab"
                ]
            )
            for name in ("", "ridge/")
        ]
        patterns.append(both[0] - both[1])
    tests = against_ridge(predictions)
    for name, difference in (("decoding.pixcorr", np.array(pixels)), ("encoding.pattern_r", np.array(patterns))):
        assert tests[name]["difference"] == pytest.approx(difference.mean(), abs=1e-6)
        assert tests[name]["wins"] == (difference > 0).sum() and tests[name]["n"] == len(stimuli)
        assert tests[name]["p"] == pytest.approx(signed_rank_p(difference))


def test_no_difference_is_not_tested():
    predictions = made()
    predictions["ridge/reconstruction"] = predictions["reconstruction"]
    assert "decoding.pixcorr" not in against_ridge(predictions)
    one = made(stimuli=1)
    assert against_ridge(one) == {}


def test_voxels_above_chance_by_benjamini_and_hochberg():
    predictions = made(stimuli=30)
    predictions["fmri_predicted/a"][:, 3] = 0.0  # a constant has no r
    found = voxels_above_chance(VoxelScores.of(predictions), predictions)
    for subject in "ab":
        for method, name in (("model", ""), ("ridge", "ridge/")):
            measured, predicted = predictions[f"fmri/{subject}"].T, predictions[f"{name}fmri_predicted/{subject}"].T
            p = sorted(
                pearsonr(*pair, alternative="greater").pvalue
                for pair in zip(measured, predicted, strict=True)
                if pair[1].std()
            )
            below = [k for k, one in enumerate(p, 1) if one < 0.05 * k / len(p)]
            assert found[subject][method] == max(below, default=0)
        assert found[subject]["are"] == 40 and 10 < found[subject]["model"] < 25
    for name in ("fmri/a", "fmri_predicted/a"):
        predictions[name] = np.zeros_like(predictions[name])
    found = voxels_above_chance(VoxelScores.of(predictions), predictions)
    assert found["a"] == {"are": 40, "model": 0, "ridge": 0}
    assert voxels_above_chance(VoxelScores.of(made(stimuli=2)), made(stimuli=2)) == {}
