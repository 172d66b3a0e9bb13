"""The decoder that writes latents of a frozen AutoencoderKL: training, saving, and loading without diffusers."""

import json
import subprocess
import sys

import pytest
import torch
from diffusers import AutoencoderKL

from visionflow_hf.cli import main
from visionflow_hf.hub import load_model
from visionflow_hf.modeling import VisionFlowConfig, VisionFlowModel


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """A folder with an AutoencoderKL of random weights that reduces each side to a quarter."""
    folder = tmp_path_factory.mktemp("autoencoder")
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        shift_factor=0.1,
    ).save_pretrained(folder)
    return folder


def train(*words) -> int:
    return main(["train", *map(str, words), "--max_steps", "6", "--disable_tqdm", "true", "--linear_dim", "0"])


@pytest.fixture(scope="module")
def run(autoencoder, colour_corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "model"
    assert train(colour_corpus, folder, "--autoencoder", autoencoder) == 0
    return folder


def test_the_autoencoder_stays_as_it_was(run, autoencoder):
    model, _ = load_model(run)
    frozen = model.image_decoder.from_autoencoder
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    source = AutoencoderKL.from_pretrained(autoencoder)
    for name, values in source.decoder.state_dict().items():
        assert torch.equal(frozen[1].state_dict()[name], values), name
    assert torch.equal(frozen[0].weight, source.post_quant_conv.weight)
    assert all(parameter.requires_grad for parameter in model.image_decoder.to_autoencoder.parameters())
    text = (run / "config.json").read_text()
    assert json.loads(text)["decoder_type"] == "autoencoder_kl" and str(autoencoder) not in text


def test_pixels_are_those_of_the_autoencoder(run, autoencoder):
    model, _ = load_model(run)
    latent = torch.randn(2, model.config.latent_dim, generator=torch.Generator().manual_seed(0))
    source = AutoencoderKL.from_pretrained(autoencoder)
    with torch.no_grad():
        pixels = model.image_decoder(latent)
        its_latents = model.image_decoder.to_autoencoder(latent)  # 18 x 24 px: 5 x 6 cells, and 20 x 24 px of them
        assert its_latents.shape == (2, 4, 5, 6)
        expected = source.decode(its_latents / 0.18215 + 0.1).sample
    torch.testing.assert_close(pixels, ((expected[:, :, 1:19] + 1) / 2).clamp(0, 1))


def test_gradients_reach_the_stack_through_the_frozen_decoder(run):
    model, _ = load_model(run)
    model.train()
    model.image_decoder(torch.randn(2, model.config.latent_dim)).square().mean().backward()
    assert model.image_decoder.to_autoencoder.seed.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.image_decoder.from_autoencoder.parameters())


def test_grey_images_are_the_mean_of_the_channels(run):
    settings = load_model(run)[0].config.autoencoder_config
    config = VisionFlowConfig(
        vision_config={"image_size": 16, "patch_size": 8, "hidden_size": 8, "num_attention_heads": 2},
        image_size=[16, 16],
        num_channels=1,
        latent_dim=4,
        decoder_type="autoencoder_kl",
        autoencoder_config=settings,
    )
    model = VisionFlowModel(config)
    latent = torch.randn(2, 4)
    colour = model.image_decoder.from_autoencoder(model.image_decoder.to_autoencoder(latent) / 0.18215 + 0.1)
    torch.testing.assert_close(model.image_decoder(latent), (colour.mean(1, keepdim=True) + 1) / 2)


WITHOUT_DIFFUSERS = """
import sys
sys.modules["diffusers"] = None
from transformers import AutoConfig, AutoModel
path = sys.argv[1]
config = AutoConfig.from_pretrained(path, trust_remote_code=True)
try:
    AutoModel.from_pretrained(path, trust_remote_code=True)
except ImportError as error:
    print("needs", error)
else:
    print("loaded", config.decoder_type)
"""


def test_remote_code_loads_without_diffusers(run, corpus, tmp_path_factory):
    """The default decoder does not miss it; the one that does, says so."""

    def load(folder) -> str:
        command = [sys.executable, "-c", WITHOUT_DIFFUSERS, str(folder)]
        result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path_factory.mktemp("cwd"))
        return result.stdout.strip()

    assert load(run) == "needs decoder_type autoencoder_kl needs diffusers: pip install diffusers"
    plain = tmp_path_factory.mktemp("plain") / "model"
    assert train(corpus, plain) == 0
    assert load(plain) == "loaded conv_transpose"


def test_what_is_no_autoencoder_is_refused(colour_corpus, autoencoder, tmp_path, refused, monkeypatch):
    corpus, out = colour_corpus, tmp_path / "out"
    refused(lambda: train(corpus, out, "--autoencoder", tmp_path / "nothing"), "no autoencoder .*nothing .*safetensors")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    refused(lambda: train(corpus, out, "--autoencoder", autoencoder), r"pip install 'visionflow-hf\[autoencoder\]'")
    assert not out.exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decoder_type": "diffusion"}, "decoder_type is diffusion: conv_transpose or autoencoder_kl is expected"),
        ({"decoder_type": "autoencoder_kl"}, "autoencoder_config belongs to decoder_type autoencoder_kl"),
        ({"autoencoder_config": {"latent_channels": 4}}, "autoencoder_config belongs to decoder_type autoencoder_kl"),
    ],
)
def test_configs_that_contradict_themselves(settings, message):
    with pytest.raises(ValueError, match=message):
        VisionFlowConfig(**settings)
