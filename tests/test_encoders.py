"""Vision encoders of several families, each from a folder of random weights: train, save, load, same outputs."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModel,
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextImageProcessor,
    ConvNextModel,
    DeiTConfig,
    DeiTImageProcessor,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)
from visionflow_hf.modeling import VisionFlowConfig, VisionFlowModel

from visionflow_hf.cli import main
from visionflow_hf.hub import load_model
from visionflow_hf.training.build import load_encoder

DEPTH = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SIZE = {"image_size": 32, "patch_size": 8}
TEXT = DEPTH | {"vocab_size": 20}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
CONVNEXT = {"image_size": 32, "hidden_sizes": [8, 8, 16, 24], "depths": [1, 1, 1, 1]}
SQUARE = {"height": 32, "width": 32}
MEAN_AND_STD = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
CROP = {"size": {"shortest_edge": 40}, "crop_size": SQUARE}

FAMILIES = {  # the model with its config, and its own image processor with what makes the latter take 32 px
    "vit": (ViTModel, ViTConfig(**DEPTH, **SIZE), ViTImageProcessor, {"size": SQUARE}),
    "deit": (DeiTModel, DeiTConfig(**DEPTH, **SIZE), DeiTImageProcessor, {"size": {"height": 40, "width": 40}, **CROP}),
    # trained at 48 px, as DINOv2 is at 518 while its processor gives it 224
    "dinov2": (Dinov2Model, Dinov2Config(**DEPTH | SIZE | {"image_size": 48}), BitImageProcessor, CROP),
    "dinov2 with registers": (
        Dinov2WithRegistersModel,
        Dinov2WithRegistersConfig(**DEPTH | SIZE | {"image_size": 48}),
        BitImageProcessor,
        CROP,
    ),
    "clip vision": (CLIPVisionModel, CLIPVisionConfig(**DEPTH, **SIZE), CLIPImageProcessor, CROP),
    "clip": (
        CLIPModel,
        CLIPConfig(text_config=TEXT, vision_config=DEPTH | SIZE, projection_dim=8),
        CLIPImageProcessor,
        CROP,
    ),
    "siglip vision": (SiglipVisionModel, SiglipVisionConfig(**DEPTH, **SIZE), SiglipImageProcessor, {"size": SQUARE}),
    "siglip": (
        SiglipModel,
        SiglipConfig(text_config=TEXT, vision_config=DEPTH | SIZE),
        SiglipImageProcessor,
        {"size": SQUARE},
    ),
    "swin": (SwinModel, SwinConfig(**SWIN), ViTImageProcessor, {"size": SQUARE}),
    "convnext": (ConvNextModel, ConvNextConfig(**CONVNEXT), ConvNextImageProcessor, {"size": {"shortest_edge": 32}}),
}


@pytest.fixture(params=FAMILIES)
def encoder(request, tmp_path):
    """A folder with the weights, config and image processor of one family."""
    model, config, image_processor, sizes = FAMILIES[request.param]
    torch.manual_seed(0)
    model(config).save_pretrained(tmp_path / "encoder")
    image_processor(**sizes, **MEAN_AND_STD).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_train_save_and_load(encoder, colour_corpus, tmp_path):
    flags = ["--encoder", encoder, "--freeze_encoder", "false", "--wavelet_dim", 0]
    flags += ["--max_steps", 6, "--disable_tqdm", "true"]
    assert main(["train", *map(str, [colour_corpus, tmp_path / "run", *flags])]) == 0
    model, processor = load_model(tmp_path / "run")
    config = model.config
    assert (config.image_mean, config.image_std) == ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4])
    assert config.encoder_image_size == [32, 32]

    source = AutoModel.from_pretrained(encoder).state_dict()
    learned = {name: values for name, values in model.encoder.state_dict().items() if values.is_floating_point()}
    of_the_text = ("text_model.", "logit_", "text_projection", "visual_projection")
    seen = {name.removeprefix("vision_model."): values for name, values in source.items()}
    assert set(learned) <= set(seen) and all(name.startswith(of_the_text) for name in set(seen) - set(learned))
    changed = [name for name, values in learned.items() if not torch.equal(values, seen[name])]
    assert len(changed) > len(learned) / 2  # it has learned, from where it was
    assert all((values - seen[name]).abs().max() < 0.01 for name, values in learned.items())

    inputs = processor(images=[np.zeros((18, 24, 3), np.uint8), np.full((18, 24, 3), 200, np.uint8)], subject="ann")
    before = model.predict_fmri(**inputs)
    model.save_pretrained(tmp_path / "again")
    again = VisionFlowModel.from_pretrained(tmp_path / "again")
    assert torch.equal(again.predict_fmri(**inputs), before) and not torch.equal(before[0], before[1])


def test_the_encoder_sees_what_its_own_processor_would_give_it(encoder, tmp_path):
    """For an image that needs no resizing, normalised pixels are the image processor's to rounding."""
    from visionflow_hf.modeling import VisionFlowModel

    model_of, from_processor = load_encoder(str(encoder))
    config = VisionFlowConfig(vision_config=model_of.config, image_size=[32, 32], latent_dim=4, **from_processor)
    model = VisionFlowModel(config).eval()
    seen = []
    model.encoder.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    model.extract_image_features(torch.tensor(image).permute(2, 0, 1)[None] / 255)
    own = AutoImageProcessor.from_pretrained(encoder, do_resize=False)(image, return_tensors="pt").pixel_values
    torch.testing.assert_close(seen[0], own, atol=1e-5, rtol=0)


def test_without_an_image_processor_the_encoder_says_so(tmp_path, caplog):
    ViTModel(ViTConfig(**DEPTH, **SIZE)).save_pretrained(tmp_path)
    _, from_processor = load_encoder(str(tmp_path))
    assert from_processor == {} and "has no image processor" in caplog.text


def test_several_layers_are_read_one_beside_the_other():
    config = VisionFlowConfig(
        vision_config=ViTConfig(**DEPTH, **SIZE), image_size=[32, 32], feature_grid=2, feature_layers=[0, 1, -1]
    )
    model = VisionFlowModel(config).eval()
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features, encoded = model.extract_image_features(image, output_hidden_states=True)
    tokens = [encoded.hidden_states[0], encoded.hidden_states[1], encoded.last_hidden_state]
    upper_right = torch.stack([one[:, 1:].reshape(2, 4, 4, 24)[:, :2, 2:].mean((1, 2)) for one in tokens], 1)
    classes, cells = features.reshape(2, 3, 5 * 24).split([24, 4 * 24], dim=2)
    torch.testing.assert_close(classes, torch.stack([one[:, 0] for one in tokens], 1))
    torch.testing.assert_close(cells.reshape(2, 3, 24, 4)[..., 1], upper_right)
    assert model.posterior_head.in_features == features.shape[1]


@pytest.mark.parametrize("layers", [["3"], ["-2"], ["0", "7"]])
def test_layers_that_are_not_there(colour_corpus, tmp_path, refused, layers):
    ViTModel(ViTConfig(**DEPTH, **SIZE)).save_pretrained(tmp_path / "vit")
    words = ["train", colour_corpus, tmp_path / "run", "--encoder", tmp_path / "vit", "--feature_layers", *layers]
    refused(lambda: main([str(word) for word in words]), "feature_layers is .* 1 to 2 for a layer is expected")
    assert not (tmp_path / "run").exists()
