"""What stands beside a figure: its 95 % interval, and the p-value of an identification, where the truth is known."""

import numpy as np
import pytest

from visionflow_hf.evaluation import scores
from visionflow_hf.evaluation.scores import interval, score

SIDE, VOXELS, LATENT = 10, 40, 8
RNG = np.random.default_rng(0)
TO_PIXELS = RNG.normal(size=(LATENT, SIDE**2)) * 30
TO_VOXELS = RNG.normal(size=(LATENT, VOXELS)) * np.linspace(0.1, 1, VOXELS)
BELIEVED = TO_VOXELS + 0.3 * RNG.normal(size=TO_VOXELS.shape)
CEILING = np.square(TO_VOXELS).sum(0) / (np.square(TO_VOXELS).sum(0) + 1)


def observed(stimuli, rng, known=0.5, subject="ann"):
    """What `evaluate` would write of stimuli drawn at random; a part of each latent is read from fMRI, the rest not."""
    latent = rng.normal(size=(stimuli, LATENT))
    read = known * latent + rng.normal(size=latent.shape) * (1 - known)

    def pictures(latents):
        return np.clip(128 + latents @ TO_PIXELS / LATENT**0.5, 0, 255).astype(np.uint8).reshape(-1, SIDE, SIDE)

    return {
        "stimulus_id": np.array([f"stimulus {index}" for index in range(stimuli)]),
        "subject": np.array([subject] * stimuli),
        "trials": np.ones(stimuli, dtype=int),
        "image": pictures(latent),
        "reconstruction": pictures(read),
        f"fmri/{subject}": latent @ TO_VOXELS + rng.normal(size=(stimuli, VOXELS)),
        f"fmri_predicted/{subject}": latent @ BELIEVED,
        f"noise_ceiling/{subject}": CEILING,
        f"roi/{subject}": np.array(["V1" if voxel % 2 else "" for voxel in range(VOXELS)]),
        "latent/image": latent,
        "latent/fmri": read,
    }


def flat(block):
    return {name: values[0] for name, values in scores._flat(block).items() if np.isfinite(values[0])}


@pytest.mark.nightly
def test_95_percent_intervals_hold_the_truth():
    """In 90 to 98 % of 400 corpora of 80 stimuli; the truth is the mean over corpora of 1,000 stimuli.

    That of the figures which depend on the number of candidates (top1, top5) is the mean over the 400 themselves.
    """
    stimuli, corpora = 80, 400
    rng = np.random.default_rng(1)
    large = [flat(scores._blocks(observed_arrays(1000, rng), np.ones((1, 1000)))[0]) for _ in range(20)]
    truth = {name: np.mean([one[name] for one in large]) for name in large[0]}
    held: dict[str, list[bool]] = {}
    drawn = []
    for _ in range(corpora):
        arrays = observed_arrays(stimuli, rng)
        weights = rng.multinomial(stimuli, np.full(stimuli, 1 / stimuli), size=300)
        block, _, _ = scores._blocks(arrays, np.concatenate([np.ones((1, stimuli)), weights]))
        drawn.append(scores._flat(block))
    for name in truth:
        centre = truth[name]
        if "top" in name:
            centre = np.mean([one[name][0] for one in drawn])
        for one in drawn:
            both = interval(name.rpartition(".")[2], one[name], stimuli)
            if both is not None:
                assert both[0] <= one[name][0] <= both[1]
                held.setdefault(name, []).append(both[0] <= centre <= both[1])
    coverage = {name: np.mean(values) for name, values in held.items()}
    assert len(coverage) > 14
    outside = {name: share for name, share in coverage.items() if not 0.9 <= share <= 0.98}
    assert not outside, outside


def observed_arrays(stimuli, rng):
    return scores._of_subject(observed(stimuli, rng), "ann")[0]


def test_an_interval_by_hand():
    draws = np.array([0.5, *np.tile([0.4, 0.6], 50)])  # a standard deviation of .1
    assert interval("pixcorr", draws, 11) == pytest.approx(
        [0.5 - 2.228 * 0.1 * 1.1**0.5, 0.5 + 2.228 * 0.1 * 1.1**0.5], abs=1e-3
    )
    # Wilson's: 10 of 11 right, and nothing drawn otherwise in a bootstrap of independent trials
    share, n, z = 10 / 11, 11, 2.228
    se = (share * (1 - share) / (n - 1)) ** 0.5
    draws = share + np.array([0, *np.tile([-1, 1], 50)]) * se * ((n - 1) / n) ** 0.5
    centre, half = (share + z**2 / 2 / (n - 1)), z * (share * (1 - share) / (n - 1) + z**2 / 4 / (n - 1) ** 2) ** 0.5
    expected = [(centre - half) / (1 + z**2 / (n - 1)), (centre + half) / (1 + z**2 / (n - 1))]
    assert interval("top1", draws, n) == pytest.approx(expected, abs=1e-3)
    low, high = interval("two_way", np.ones(101), 30)
    assert high == pytest.approx(1) and 0.8 < low < 0.95  # all right of 30 is not all right of all
    assert interval("pixcorr", np.array([0.5, 0.5]), 1) is None
    assert interval("mse", np.array([0.01, *np.tile([0, 0.02], 50)]), 30)[0] == 0


def test_intervals_narrow_where_stimuli_agree_and_stand_beside_each_figure():
    arrays = observed(30, np.random.default_rng(2))
    metrics = score(arrays, draws=200)
    for where in (metrics, metrics["subjects"]["ann"]):
        for name, (low, high) in where["intervals"].items():
            value = where
            for key in name.split("."):
                value = value[key]
            assert low <= value <= high, name
    assert "encoding.noise_ceiling.voxel_r_mean" not in metrics["intervals"]
    roi = metrics["subjects"]["ann"]["rois"]["V1"]
    low, high = roi["intervals"]["model.voxel_r_mean"]
    assert roi["n_voxels"] == VOXELS // 2 and low <= roi["model"]["voxel_r_mean"] <= high
    arrays["reconstruction"] = arrays["image"].copy()
    low, high = score(arrays, draws=50)["intervals"]["decoding.model.pixcorr"]
    assert high - low < 1e-9


def test_stimuli_are_drawn_with_all_subjects_that_saw_them():
    rng = np.random.default_rng(3)
    one = observed(40, rng)
    two = {name.replace("/ann", "/bob"): values for name, values in one.items()} | {"subject": np.array(["bob"] * 40)}
    of_voxels = ("noise_ceiling", "roi", "fmri", "fmri_predicted")
    both = {name: np.concatenate([one[name], two[name]]) for name in one if not name.startswith(of_voxels)}
    both |= {name: values for part in (one, two) for name, values in part.items() if name.startswith(of_voxels)}
    alone, together = score(one, draws=200), score(both, draws=200)
    # The same stimuli seen twice tell nothing more.
    assert together["intervals"] == pytest.approx(
        {name: pytest.approx(both) for name, both in alone["intervals"].items()}
    )
    assert together["p_values"]["decoding.model.two_way"] == pytest.approx(
        alone["p_values"]["decoding.model.two_way"], abs=0.01
    )


def test_p_values_are_small_where_stimuli_are_identified_and_uniform_where_not(monkeypatch):
    monkeypatch.setattr(scores, "PERMUTATIONS", 199)
    rng = np.random.default_rng(4)
    assert score(observed(20, rng), draws=2)["p_values"]["decoding.model.two_way"] == 1 / 200
    found = []
    for _ in range(120):
        arrays = observed(12, rng, known=0.0)
        correlation = scores.metrics.cross_correlation(arrays["image"], arrays["reconstruction"])
        identified = arrays["stimulus_id"], {"model": scores.ranked_below(correlation)}
        found.append(scores._p_values([identified], rng)["decoding.model.two_way"])
    # Of uniform values 120 lie below .1 in 12, below .5 in 60 cases.
    assert 4 <= np.sum(np.array(found) <= 0.1) <= 22
    assert 42 <= np.sum(np.array(found) <= 0.5) <= 78


def test_chance_scores_chance():
    """Predictions dealt to other stimuli."""
    rng = np.random.default_rng(5)
    arrays = observed(150, rng)
    dealt = rng.permutation(150)
    for name in ("reconstruction", "fmri_predicted/ann", "latent/fmri"):
        arrays[name] = arrays[name][dealt]
    metrics = score(arrays, draws=2)
    decoding, encoding, latent = (metrics[name] for name in ("decoding", "encoding", "latent"))
    assert decoding["model"]["two_way"] == pytest.approx(0.5, abs=0.06)
    assert abs(decoding["model"]["pixcorr"]) < 0.1
    for figure, chance in (("top1", 1 / 150), ("top5", 5 / 150)):
        assert decoding["model"][figure] == pytest.approx(chance, abs=0.03)
        for ranked in ("image", "fmri"):
            assert latent[f"retrieval_{ranked}_{figure}"] == pytest.approx(chance, abs=0.03)
    assert abs(latent["cosine"]) < 0.1
    assert abs(encoding["model"]["voxel_r_mean"]) < 0.03 and abs(encoding["model"]["pattern_r"]) < 0.05
    assert encoding["model"]["r2_median"] < 0 and encoding["model"]["ceiling_normalised"] < 0.05
    assert metrics["p_values"]["decoding.model.two_way"] > 0.01


def test_retrieval_is_named_by_what_is_ranked():
    arrays = observed(4, np.random.default_rng(6))
    arrays["latent/image"] = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.9, 0.1, 0.4]])
    arrays["latent/fmri"] = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0.1]])
    latent = score(arrays, draws=2)["latent"]
    # The last response's latent is nearer to the first image; every image's own response is its nearest.
    assert latent["retrieval_image_top1"] == 0.75
    assert latent["retrieval_fmri_top1"] == 1
    assert latent["retrieval_image_top1_of_300"] is None


def test_one_stimulus_has_nothing_to_be_compared_with():
    metrics = score(observed(1, np.random.default_rng(7)), draws=5)
    decoding, encoding = metrics["decoding"]["model"], metrics["encoding"]["model"]
    assert all(decoding[figure] is None for figure in ("two_way", "top1", "top5"))
    assert encoding["voxel_r_mean"] is None and encoding["r2_median"] is None
    assert decoding["pixcorr"] is not None and metrics["latent"]["retrieval_image_top1"] is None
    assert metrics["intervals"] == {} and metrics["p_values"] == {}
