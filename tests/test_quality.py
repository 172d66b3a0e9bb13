"""The figures that we promise, from the commands without flags: better than ridge in both directions."""

import json

import pytest
from conftest import REAL_DATA

from visionflow_hf.cli import main


def figures(corpus, folder, *flags) -> dict:
    assert main(["train", str(corpus), str(folder / "model"), "--disable_tqdm", "true", *flags]) == 0
    assert main(["evaluate", str(folder / "model"), str(corpus), str(folder / "report")]) == 0
    return json.loads((folder / "report" / "metrics.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "flags"),
    [
        (["--stimuli", "340", "--subjects", "1", "--voxels", "250"], ["--max_steps", "120"]),
        pytest.param([], [], marks=pytest.mark.nightly),  # the demo
    ],
)
def test_the_model_beats_ridge_on_the_simulated_cortex(tmp_path, size, flags):
    assert main(["simulate", str(tmp_path / "corpus"), *size]) == 0
    metrics = figures(tmp_path / "corpus", tmp_path, *flags)
    model, ridge = metrics["decoding"]["model"], metrics["decoding"]["ridge"]
    assert model["pixcorr"] > ridge["pixcorr"]
    assert model["ssim"] > ridge["ssim"]
    assert model["mse"] < ridge["mse"]
    assert model["two_way"] > ridge["two_way"]
    assert metrics["encoding"]["model"]["voxel_r_mean"] > metrics["encoding"]["ridge"]["voxel_r_mean"]
    assert metrics["encoding"]["model"]["ceiling_normalised"] > 0.8


@pytest.mark.nightly
@pytest.mark.skipif(not (REAL_DATA / "digit69").is_dir(), reason="the recordings of digit69 are not at hand")
def test_real_digits_are_decoded_better_than_by_ridge(tmp_path):
    file = REAL_DATA / "digit69" / "digit69_28x28.mat"
    keys = ["--images", "stimTrn", "--fmri", "fmriTrn", "--test-images", "stimTest", "--test-fmri", "fmriTest"]
    layout = ["--image-shape", "28", "28", "--column-major"]
    assert main(["prepare", "arrays", str(file), str(tmp_path / "corpus"), *keys, *layout]) == 0
    metrics = figures(tmp_path / "corpus", tmp_path)["decoding"]
    # Known beforehand, so that the baselines vouch for the path: ridge .791 / .458, mean image .655 / .245.
    assert metrics["ridge"]["pixcorr"] == pytest.approx(0.791, abs=0.01)
    assert metrics["ridge"]["ssim"] == pytest.approx(0.458, abs=0.02)
    assert metrics["mean_image"]["pixcorr"] == pytest.approx(0.655, abs=0.005)
    assert metrics["mean_image"]["ssim"] == pytest.approx(0.245, abs=0.005)
    assert metrics["model"]["pixcorr"] >= 0.80
    assert metrics["model"]["ssim"] > metrics["ridge"]["ssim"]
