"""The baselines in blocks: the same as scikit-learn makes of whole arrays."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from test_encoders import encoder_of

from visionflow_hf.cli import main
from visionflow_hf.corpus.responses import Responses
from visionflow_hf.evaluation import baselines
from visionflow_hf.evaluation.baselines import (
    Known,
    SharesRidge,
    feature_ridge_to_fmri,
    mean_image,
    nearest_images,
    ridge_to_fmri,
    ridge_to_pixels,
)
from visionflow_hf.modeling import ridge as ridge_module
from visionflow_hf.modeling.ridge import fit_ridge

RNG = np.random.default_rng(0)
NAMES = [f"s{row}" for row in range(60)]
NEW = [f"new{row}" for row in range(7)]


class Processor:
    fmri_mean = {"ann": np.array([3.0, 4.0, 5.0])}
    fmri_std = {"ann": np.array([2.0, 1.0, 0.5])}


class Pictures:
    """Pixels and features of 60 known and 7 new stimuli."""

    def __init__(self, shape, features=None):
        self.of = {name: row for row, name in enumerate(NAMES + NEW)}
        self.values = RNG.integers(0, 256, (67, *shape), dtype=np.uint8)
        self.pixels, self.features = self, features

    shape = property(lambda self: self.values.shape[1:])

    def uint8_pixels(self, names, lines=slice(None)):
        return self.values[[self.of[name] for name in names]][:, lines]

    def linear_features(self, names, columns):
        return torch.from_numpy(self.features[[self.of[name] for name in names]][:, columns].astype(np.float32))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(baselines, "NUMBERS", 1500)
    monkeypatch.setattr(baselines, "ROWS", 25)


def responses(signal):
    fmri = signal @ RNG.normal(size=(signal.shape[1], 3)) / np.sqrt(signal.shape[1])
    fmri = (fmri + 0.3 * RNG.normal(size=fmri.shape)) * Processor.fmri_std["ann"] + Processor.fmri_mean["ann"]
    return fmri.astype(np.float32)


def standard(fmri):
    return (fmri - Processor.fmri_mean["ann"]) / Processor.fmri_std["ann"]


@pytest.mark.parametrize("shape", [(4, 5, 1), (6, 9, 3)], ids=["fewer pixels than trials", "more"])
def test_ridge_in_blocks_is_that_of_scikit_learn_in_both_directions(shape):
    pictures = Pictures(shape)
    flat = pictures.values.reshape(67, -1) / 255
    fmri = responses(flat)
    seen = Responses(np.repeat(fmri[:60], 2, 0) + RNG.normal(size=(120, 3)).astype(np.float32), sorted(NAMES * 2))
    rows = [NAMES.index(name) for name in seen.stimulus_ids]
    known = Known(seen, pictures, Processor, "ann")
    z, x = standard(seen.fmri).astype(np.float32), flat[rows].astype(np.float32)

    penalty = fit_ridge(torch.from_numpy(x), torch.from_numpy(z), seen.stimulus_ids).penalty
    expected = Ridge(alpha=penalty).fit(x, z).predict(flat[60:])
    np.testing.assert_allclose(standard(ridge_to_fmri(known, NEW)), expected, atol=1e-3)

    penalty = fit_ridge(torch.from_numpy(z), torch.from_numpy(x), seen.stimulus_ids).penalty
    asked = [fmri[60:], fmri[:40]]
    for found, one in zip(ridge_to_pixels(known, asked), asked, strict=True):
        images = np.concatenate(list(found)).reshape(len(one), -1) / 255
        expected = Ridge(alpha=penalty).fit(z, x).predict(standard(one)).clip(0, 1)
        assert np.abs(images - expected).max() < 0.5 / 255 + 1e-3


def test_more_voxels_than_trials():
    x, y = RNG.normal(size=(30, 80)).astype(np.float32) + 3, RNG.normal(size=(30, 4)).astype(np.float32)
    new = RNG.normal(size=(5, 80)).astype(np.float32) + 3
    columns = [(torch.from_numpy(x[:, some]), torch.from_numpy(new[:, some])) for some in baselines.slices(80, 11)]
    ridge = SharesRidge(iter(columns), 80, range(30), lambda rows: torch.from_numpy(y[rows]))
    expected = fit_ridge(torch.from_numpy(x), torch.from_numpy(y), range(30))
    assert ridge.penalty == pytest.approx(expected.penalty, rel=1e-4)
    found = Ridge(alpha=ridge.penalty).fit(x, y).predict(new)
    np.testing.assert_allclose(ridge.shares.numpy() @ y, found, atol=1e-3)
    np.testing.assert_allclose(ridge.shares.sum(1), 1, atol=1e-4)


@pytest.mark.parametrize("voxels", [20, 80])
def test_of_many_trials_an_even_choice_of_stimuli_decides_on_the_penalty(voxels, monkeypatch):
    monkeypatch.setattr(ridge_module, "MOST_DECIDING", 30)
    names = [f"s{row // 3}" for row in range(90)]
    x, y = RNG.normal(size=(90, voxels)).astype(np.float32), RNG.normal(size=(90, 4)).astype(np.float32)
    y += x[:, :4]
    blocks = [(torch.from_numpy(x[:, some]), torch.from_numpy(x[:5, some])) for some in baselines.slices(voxels, 11)]
    rows = ridge_module.deciding(names)
    assert rows == [row for row in range(90) if (row // 3) % 3 == 0]
    ridge = SharesRidge(iter(blocks), voxels, names, lambda rows: torch.from_numpy(y[rows]))
    monkeypatch.undo()
    own = [names[row] for row in rows]
    assert ridge.penalty == pytest.approx(fit_ridge(*map(torch.from_numpy, (x[rows], y[rows])), own).penalty, rel=1e-3)
    found = Ridge(alpha=ridge.penalty).fit(x, y).predict(x[:5])
    np.testing.assert_allclose(ridge.shares.numpy() @ y, found, atol=1e-3)


def test_the_layer_that_predicts_held_out_stimuli_is_chosen():
    layers = [RNG.normal(size=(67, 10)) * RNG.uniform(0.1, 10, 10) for _ in range(3)]
    scaled = layers[1] / layers[1][:60].std(0)
    fmri = responses(scaled)
    known = Known(Responses(np.repeat(fmri[:60], 2, 0), sorted(NAMES * 2)), None, Processor, "ann")
    known.seen.stimulus_ids = [name for name in NAMES for _ in range(2)]
    known.stimuli = Pictures((1, 1, 1), np.concatenate(layers, 1))
    known.average_repeats()
    penalty = fit_ridge(
        *(torch.from_numpy(one[:60].astype(np.float32)) for one in (scaled, standard(fmri))), NAMES
    ).penalty
    expected = Ridge(alpha=penalty).fit(scaled[:60], standard(fmri)[:60]).predict(scaled[60:])
    found = standard(feature_ridge_to_fmri(known, NEW, [10, 10, 10]))
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_mean_and_the_nearest_image_are_found_in_blocks():
    pictures = Pictures((4, 5, 3))
    pictures.values[60:] = pictures.values[[3, 59, 30, 8, 0, 26, 24]] // 2 + 9
    known = Known(Responses(np.zeros((60, 3), np.float32), NAMES), pictures, Processor, "ann")
    assert nearest_images(known, NEW).tolist() == [3, 59, 30, 8, 0, 26, 24]
    np.testing.assert_allclose(mean_image(known), pictures.values[:60].mean(0), atol=0.5)


def test_it_is_in_the_report_of_a_model_with_a_pretrained_encoder(colour_corpus, tmp_path):
    encoder_of("vit").save_pretrained(tmp_path / "vit")
    words = ["train", colour_corpus, tmp_path / "run", "--encoder", tmp_path / "vit", "--max_steps", "2"]
    assert main([str(word) for word in words]) == 0
    assert main([str(word) for word in ("evaluate", tmp_path / "run", colour_corpus, tmp_path / "report")]) == 0
    arrays = np.load(tmp_path / "report" / "predictions.npz")
    assert arrays["feature_ridge/fmri_predicted/ann"].shape == arrays["fmri/ann"].shape
    assert "Feature ridge is the same" in (tmp_path / "report" / "report.html").read_text()
