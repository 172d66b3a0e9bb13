"""The forerunner's recipe in benchmarks/: its network and loss, what it learns, and that one seed gives one result."""

import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from datasets import Dataset
from PIL import Image
from transformers import ViTConfig, ViTModel

from visionflow_hf.modeling import VisionFlowProcessor

sys.path.append(str(ROOT / "benchmarks"))
import forerunner
from forerunner import Forerunner, load_encoder

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """The folder of a ViT of 32 px with random weights."""
    folder = tmp_path_factory.mktemp("encoder") / "vit"
    torch.manual_seed(0)
    ViTModel(ViTConfig(**TINY, image_size=32, patch_size=16)).save_pretrained(folder)
    return folder


def test_the_network_is_the_recipes(vit):
    model = Forerunner(load_encoder(str(vit), None), {"ann": 12, "bob": 7})
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
    model = Forerunner(load_encoder(str(vit), None), {"ann": 3, "bob": 2})
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
    before = load_encoder(str(vit), None)
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


def test_one_seed_one_result(vit):
    rows = {"image": [Image.new("L", (16, 16), 99)] * 3, "fmri": [[1.0, 2.0]] * 3, "subject": ["s"] * 3}
    processor = VisionFlowProcessor(image_size=[16, 16], num_channels=1)
    processor.add_subject("s", np.zeros(2, np.float32), np.ones(2, np.float32))

    def losses(seed):
        torch.manual_seed(seed)
        model = Forerunner(load_encoder(str(vit), None), {"s": 2})
        return forerunner.train_forerunner(model, processor, Dataset.from_dict(rows), seed)

    first = losses(3)
    assert first == losses(3) and first != losses(4) and len(first) == 5  # steps, one an epoch
