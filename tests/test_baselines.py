"""Ridge regression from the best single layer of an encoder."""

import numpy as np
import torch
from sklearn.linear_model import Ridge
from test_encoders import encoder_of

from visionflow_hf.cli import main
from visionflow_hf.corpus.responses import Responses
from visionflow_hf.evaluation.baselines import FeatureRidgeBaseline


class Processor:
    fmri_mean = {"ann": np.array([3.0, 4.0, 5.0])}
    fmri_std = {"ann": np.array([2.0, 1.0, 0.5])}


def test_the_layer_that_predicts_held_out_stimuli_is_chosen():
    rng = np.random.default_rng(0)
    layers = [rng.normal(size=(60, 10)) * rng.uniform(0.1, 10, 10) for _ in range(3)]
    standard = rng.normal(size=(10, 3)) / np.sqrt(10)
    fmri = (layers[1] / layers[1].std(0)) @ standard + 0.3 * rng.normal(size=(60, 3))
    fmri = fmri * Processor.fmri_std["ann"] + Processor.fmri_mean["ann"]
    names = [f"s{row}" for row in range(60)]
    features = [torch.from_numpy(layer.astype(np.float32)) for layer in layers]
    twice = Responses(np.repeat(fmri, 2, 0).astype(np.float32), [name for name in names for _ in range(2)])
    baseline = FeatureRidgeBaseline(twice, names, iter(features), Processor, "ann")
    assert baseline.layer == 1
    scaled = layers[1] / layers[1].std(0)
    z = (fmri - Processor.fmri_mean["ann"]) / Processor.fmri_std["ann"]
    expected = Ridge(alpha=baseline.ridge.penalty).fit(scaled, z).predict(scaled[:5])
    expected = expected * Processor.fmri_std["ann"] + Processor.fmri_mean["ann"]
    np.testing.assert_allclose(baseline.predict_fmri(one[:5] for one in features), expected, atol=1e-3)


def test_it_is_in_the_report_of_a_model_with_a_pretrained_encoder(colour_corpus, tmp_path):
    encoder_of("vit").save_pretrained(tmp_path / "vit")
    words = ["train", colour_corpus, tmp_path / "run", "--encoder", tmp_path / "vit", "--max_steps", "2"]
    assert main([str(word) for word in words]) == 0
    assert main([str(word) for word in ("evaluate", tmp_path / "run", colour_corpus, tmp_path / "report")]) == 0
    arrays = np.load(tmp_path / "report" / "predictions.npz")
    assert arrays["feature_ridge/fmri_predicted/ann"].shape == arrays["fmri/ann"].shape
    assert "Feature ridge is the same" in (tmp_path / "report" / "report.html").read_text()
