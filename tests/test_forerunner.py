"""The forerunner's recipe as a baseline: its network and steps, what it learns, its figures, its encoder, refusals."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import SwinConfig, SwinModel, ViTConfig, ViTModel
from visionflow_hf.modeling import VisionFlowProcessor

from visionflow_hf.cli import main
from visionflow_hf.evaluation import forerunner
from visionflow_hf.evaluation.figures import figure
from visionflow_hf.evaluation.forerunner import Forerunner, baseline_encoder, train_forerunner
from visionflow_hf.evaluation.report import print_table
from visionflow_hf.evaluation.scores import score
from visionflow_hf.hub import load_model
from visionflow_hf.training.arguments import ModelArguments
from visionflow_hf.training.build import build_model

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """The folder of a pretrained ViT of 32 px and no experience."""
    folder = tmp_path_factory.mktemp("encoder") / "vit"
    torch.manual_seed(0)
    ViTModel(ViTConfig(**TINY, image_size=32, patch_size=16)).save_pretrained(folder)
    return folder


def test_the_network_is_the_recipes(vit):
    model = Forerunner(baseline_encoder(str(vit), None), {"ann": 12, "bob": 7})
    mean, logvar = model.encode(torch.rand(2, 3, 224, 224))
    assert mean.shape == logvar.shape == (2, 256)
    pixels = model.decode(mean)
    assert pixels.shape == (2, 3, 224, 224) and pixels.min() >= 0 and pixels.max() <= 1
    shapes = [tuple(layer.weight.shape) for layer in model.to_latent[1] if hasattr(layer, "weight")]
    assert shapes == [(512, 7), (256, 512)]
    shapes = [tuple(layer.weight.shape) for layer in model.to_fmri[0] if hasattr(layer, "weight")]
    assert shapes == [(512, 256), (12, 512)]
    assert sum(isinstance(layer, torch.nn.ConvTranspose2d) for layer in model.decoder) == 5


def test_the_loss_is_a_plain_sum(vit):
    torch.manual_seed(0)
    model = Forerunner(baseline_encoder(str(vit), None), {"ann": 3, "bob": 2})
    pixels = torch.rand(3, 3, 224, 224)
    fmri = {"ann": ([0, 2], torch.rand(2, 3)), "bob": ([1], torch.rand(1, 2))}
    torch.manual_seed(1)
    with torch.no_grad():
        found = model.loss(pixels, fmri)
        mean, logvar = model.encode(pixels)
        torch.manual_seed(1)
        latent = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        expected = ((model.decode(latent) - pixels) ** 2).sum()
        expected += torch.distributions.kl_divergence(
            torch.distributions.Normal(mean, torch.exp(0.5 * logvar)), torch.distributions.Normal(0.0, 1.0)
        ).sum()
        for place, (rows, measured) in enumerate(fmri.values()):
            expected += ((model.to_latent[place](measured) - latent[rows]) ** 2).sum()
            expected += ((model.to_fmri[place](latent[rows]) - measured) ** 2).sum()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_it_learns_black_from_white(vit, monkeypatch):
    """Two kinds of image and of response are told from each other, both ways, at a rate that needs few steps."""
    monkeypatch.setattr(forerunner, "EPOCHS", 40)
    monkeypatch.setattr(forerunner, "LEARNING_RATE", 3e-3)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    rows = {"image": [], "fmri": [], "subject": ["s"] * 4}
    for row in range(4):
        rows["image"].append(Image.new("L", (16, 16), 255 * (row % 2)))
        rows["fmri"].append((20 + (row % 2) * np.array([4.0, -4, 4, -4]) + rng.normal(0, 0.1, 4)).astype(np.float32))
    fmri = np.stack(rows["fmri"])
    processor = VisionFlowProcessor(image_size=[16, 16], num_channels=1)
    processor.add_subject("s", fmri.mean(0), fmri.std(0))
    before = baseline_encoder(str(vit), None)
    kept = {name: values.clone() for name, values in before.state_dict().items()}
    predictions = {
        "subject": np.array(["s"] * 2),
        "image": np.stack([np.zeros((16, 16), np.uint8), np.full((16, 16), 255, np.uint8)]),
        "fmri/s": fmri[:2],
    }
    found = forerunner.forerunner_predictions(before, processor, Dataset.from_dict(rows), predictions)
    assert set(found) == {"forerunner/reconstruction", "forerunner/fmri_predicted/s"}
    black, white = found["forerunner/reconstruction"].reshape(2, -1).mean(1)
    assert white - black > 60, (black, white)
    dark, bright = found["forerunner/fmri_predicted/s"]  # in the corpus's unit
    assert np.abs(dark - fmri[0]).max() < 3 and np.abs(bright - fmri[1]).max() < 3  # they are 8 apart
    changed = [name for name, values in before.state_dict().items() if not torch.equal(values, kept[name])]
    assert any("layer" in name for name in changed)  # the ViT learns, too


@pytest.fixture(scope="module")
def beside(run, corpus, vit, tmp_path_factory):
    """A report with the forerunner in it, after one epoch."""
    out = tmp_path_factory.mktemp("report") / "report"
    flags = ["--baseline", "forerunner", "--baseline-encoder", vit]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(forerunner, "EPOCHS", 1)
        assert main(["evaluate", *map(str, [run, corpus, out, *flags])]) == 0
    return out


def test_its_figures_stand_beside_the_others(beside, report):
    metrics, without = (json.loads((folder / "metrics.json").read_text()) for folder in (beside, report))
    with np.load(beside / "predictions.npz") as arrays:
        arrays = dict(arrays)
    model, mine = arrays["reconstruction"], arrays["forerunner/reconstruction"]
    assert (mine.shape, mine.dtype) == (model.shape, np.uint8)
    single = arrays["single_trial/forerunner/reconstruction"]
    assert single.shape == arrays["single_trial/reconstruction"].shape
    for subject in ("subj01", "subj02"):
        predicted = arrays[f"forerunner/fmri_predicted/{subject}"]
        assert predicted.shape == arrays[f"fmri_predicted/{subject}"].shape and np.ptp(predicted, axis=0).max() > 0
    for block in (metrics, metrics["single_trial"], metrics["subjects"]["subj02"]):
        for direction in ("decoding", "encoding"):
            assert set(block[direction]["forerunner"]) == set(block[direction]["model"])
    low, high = metrics["intervals"]["decoding.forerunner.pixcorr"]
    assert low <= metrics["decoding"]["forerunner"]["pixcorr"] <= high
    assert "encoding.forerunner.voxel_r_mean" in metrics["intervals"]
    errors = np.square((mine - arrays["image"] / 1.0) / 255).mean((1, 2))
    assert metrics["decoding"]["forerunner"]["mse"] == pytest.approx(errors.mean(), rel=1e-6)
    assert metrics["decoding"]["model"] == without["decoding"]["model"]  # the others are as without it
    assert "forerunner" not in without["decoding"]
    again = score(arrays, draws=2)["encoding"]["forerunner"]
    assert again == pytest.approx(metrics["encoding"]["forerunner"], rel=1e-12)  # sums of another order


def test_the_terminal_and_the_card_show_it(beside, run, capsys):
    metrics = json.loads((beside / "metrics.json").read_text())
    print_table(metrics)
    shown = capsys.readouterr().out
    assert "forerunner" in shown and figure(metrics["decoding"]["forerunner"]["pixcorr"]) in shown
    assert "| forerunner |" in (run / "README.md").read_text()


def test_in_folds_it_is_in_units_of_their_train_rows(colour_corpus, vit, tmp_path, monkeypatch):
    monkeypatch.setattr(forerunner, "EPOCHS", 1)
    flags = ["--folds", 2, "--max_steps", 2, "--disable_tqdm", "true", "--num-proc", 1]
    flags += ["--validation_fraction", 0.2, "--wavelet_dim", 0]
    flags += ["--baseline", "forerunner", "--baseline-encoder", vit]
    assert main(["crossvalidate", *map(str, [colour_corpus, tmp_path / "out", *flags])]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["encoding"]["forerunner"]["voxel_r_mean"] is not None
    with np.load(tmp_path / "out" / "predictions.npz") as arrays:
        predicted, mine = arrays["forerunner/fmri_predicted/ann"], arrays["forerunner/reconstruction"]
        assert mine.shape == arrays["image"].shape == (40, 18, 24, 3)
    assert predicted.shape == (20, 12) and np.abs(predicted[:, 1:]).max() < 2  # raw responses are near 6


def test_scratch_is_the_runs_own_vit_with_new_weights(run):
    model, _ = load_model(run)
    drawn = baseline_encoder("scratch", model.config.vision_config, seed=1)
    assert drawn.config.hidden_size == model.config.vision_config.hidden_size
    again, other = (baseline_encoder("scratch", model.config.vision_config, seed=seed) for seed in (1, 2))
    weights = [encoder.embeddings.patch_embeddings.projection.weight for encoder in (drawn, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    network = Forerunner(drawn, {"s": 3})  # one channel, 16 px
    assert network.encode(torch.rand(2, 3, 224, 224))[0].shape == (2, 256)


def test_by_default_it_begins_with_the_encoder_that_the_run_began_with(vit, tmp_path, monkeypatch):
    processor = VisionFlowProcessor(image_size=[32, 32], num_channels=3)
    processor.add_subject("s", np.zeros(2, np.float32), np.ones(2, np.float32))
    model = build_model(processor, ModelArguments(encoder=str(vit)))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model, _ = load_model(tmp_path)
    source = ViTModel.from_pretrained(vit).state_dict()
    monkeypatch.chdir(vit.parent)  # the run names no folder but by its last part, as it would a model of the Hub
    found = baseline_encoder(None, model.config.vision_config).state_dict()
    assert all(torch.equal(values, found[name]) for name, values in source.items())


def test_what_it_refuses(run, corpus, tmp_path, refused):
    def evaluate(*flags):
        return main(["evaluate", *map(str, [run, corpus, tmp_path / "out", *flags])])

    ask = "--baseline", "forerunner"
    message = "no encoder google/vit-base-patch16-224-in21k .*: give a folder, .* or scratch, as --baseline-encoder"
    refused(lambda: evaluate(*ask), message)
    refused(lambda: evaluate(*ask, "--baseline-encoder", tmp_path / "absent"), "no encoder .*absent")
    swin = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
    SwinModel(SwinConfig(**swin)).save_pretrained(tmp_path / "swin")
    refused(lambda: evaluate(*ask, "--baseline-encoder", tmp_path / "swin"), r"swin \(SwinModel\) has none: give a ViT")
    refused(lambda: evaluate("--baseline-encoder", "scratch"), "give --baseline forerunner with it")
    refused(lambda: evaluate("--baseline", "ridge"), "invalid choice: 'ridge'")
    refused(lambda: main(["crossvalidate", str(corpus), str(tmp_path / "out"), *ask]), message)
    assert not (tmp_path / "out").exists()


def test_one_seed_one_result(vit):
    rows = {"image": [Image.new("L", (16, 16), 99)] * 3, "fmri": [[1.0, 2.0]] * 3, "subject": ["s"] * 3}
    processor = VisionFlowProcessor(image_size=[16, 16], num_channels=1)
    processor.add_subject("s", np.zeros(2, np.float32), np.ones(2, np.float32))

    def losses(seed):
        torch.manual_seed(seed)
        model = Forerunner(baseline_encoder(str(vit), None), {"s": 2})
        return train_forerunner(model, processor, Dataset.from_dict(rows), seed)

    first = losses(3)
    assert first == losses(3) and first != losses(4) and len(first) == 5  # steps, one an epoch
