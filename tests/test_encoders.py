"""Vision encoders of every family of transformers, small and with random weights: maps of their layers, training."""

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers import AutoImageProcessor, AutoModel

from visionflow_hf.cli import main
from visionflow_hf.corpus.responses import pairs_of
from visionflow_hf.corpus.schema import open_corpus
from visionflow_hf.hub import load_model
from visionflow_hf.modeling import VisionFlowConfig, VisionFlowModel, linear_latent
from visionflow_hf.modeling.feature_spaces import feature_spaces
from visionflow_hf.modeling.gabor_wavelets import wavelet_maps
from visionflow_hf.modeling.trials import Trials
from visionflow_hf.modeling.vision_encoder import (
    PLAIN,
    LayerMap,
    average_pool,
    has_class_token,
    layer_maps,
    layer_widths,
    layers_by_depth,
    native_image_size,
    pooled_features,
    prepare_encoder,
    probed_widths,
)
from visionflow_hf.pretrained import load_encoder
from visionflow_hf.stimuli import Stimuli

WIDE = [32, 48]  # px; rows and columns of patches differ
DEPTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SIZE = {"image_size": 32, "patch_size": 8}
VIT = DEPTH | SIZE
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
HEADS = STAGES | {"num_attention_heads": [1, 2, 2, 2]}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
LEVIT = {"hidden_sizes": [16, 32, 48], "num_attention_heads": [1, 2, 3], "depths": [1, 1, 1]}

TOKENS = {  # encoders of patch tokens of one size: name of the config, what it is given, height and width in px
    "vit": ("ViTConfig", VIT, WIDE),
    "deit": ("DeiTConfig", VIT, WIDE),
    "beit": ("BeitConfig", VIT, WIDE),
    "data2vec_vision": ("Data2VecVisionConfig", VIT, WIDE),
    "dinov2": ("Dinov2Config", VIT, WIDE),
    "dinov2_with_registers": ("Dinov2WithRegistersConfig", VIT, WIDE),
    "dinov3_vit": ("DINOv3ViTConfig", VIT | {"num_register_tokens": 3}, WIDE),
    "vit_mae": ("ViTMAEConfig", VIT, WIDE),
    "vit_msn": ("ViTMSNConfig", VIT, WIDE),
    "ijepa": ("IJepaConfig", VIT, WIDE),
    "clip_vision": ("CLIPVisionConfig", VIT, WIDE),
    "chinese_clip_vision": ("ChineseCLIPVisionConfig", VIT, WIDE),
    "siglip_vision": ("SiglipVisionConfig", VIT, WIDE),
    "siglip2_vision": ("Siglip2VisionConfig", DEPTH | {"patch_size": 8, "num_patches": 16}, WIDE),
    "aimv2_vision": ("Aimv2VisionConfig", VIT, [32, 32]),
    "internvl_vision": ("InternVLVisionConfig", DEPTH | {"image_size": [32, 32], "patch_size": [8, 8]}, WIDE),
    "mlcd_vision": ("MLCDVisionConfig", VIT, WIDE),
    "dpt": ("DPTConfig", VIT, WIDE),
    "yolos": ("YolosConfig", DEPTH | {"image_size": [32, 32], "patch_size": 8, "num_detection_tokens": 5}, WIDE),
    "pixio": ("PixioConfig", VIT, WIDE),
    "pixtral_vision": ("PixtralVisionConfig", VIT, WIDE),
    "radio": ("RadioConfig", VIT, WIDE),
    "sapiens2": ("Sapiens2Config", VIT, WIDE),
    "tipsv2_vision": ("Tipsv2VisionConfig", VIT, WIDE),
    "idefics3_vision": ("Idefics3VisionConfig", VIT, WIDE),
    "vitdet": ("VitDetConfig", DEPTH | SIZE | {"window_size": 2}, WIDE),
    "sam_vision": ("SamVisionConfig", DEPTH | SIZE | {"window_size": 2, "output_channels": 16}, [32, 32]),
    "swin": ("SwinConfig", SWIN, WIDE),
    "swinv2": ("Swinv2Config", SWIN, WIDE),
    "donut_swin": ("DonutSwinConfig", SWIN, WIDE),
    "swin2sr": ("Swin2SRConfig", SWIN | {"patch_size": 1}, [24, 40]),
    "hiera": (
        "HieraConfig",
        {"image_size": [64, 64], "embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4},
        [64, 64],
    ),
    "pvt": ("PvtConfig", HEADS | {"image_size": 64}, [64, 64]),
    "pvt_v2": ("PvtV2Config", HEADS | {"image_size": 64}, [64, 96]),
    "focalnet": ("FocalNetConfig", {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1]}, WIDE),
}
CONVOLUTIONS = {
    "dinov3_convnext": ("DINOv3ConvNextConfig", STAGES, [64, 96]),
    "convnext": ("ConvNextConfig", STAGES, [64, 96]),
    "convnextv2": ("ConvNextV2Config", STAGES, [64, 96]),
    "resnet": ("ResNetConfig", STAGES | {"embedding_size": 8, "layer_type": "basic"}, [64, 96]),
    "regnet": ("RegNetConfig", STAGES | {"embedding_size": 8, "groups_width": 8}, [64, 96]),
    "bit": ("BitConfig", STAGES | {"embedding_size": 8, "num_groups": 2}, [64, 96]),
    "efficientnet": (
        "EfficientNetConfig",
        {"width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320},
        [64, 96],
    ),
    "mobilenet_v1": ("MobileNetV1Config", {"depth_multiplier": 0.25}, [64, 96]),
    "mobilenet_v2": ("MobileNetV2Config", {"depth_multiplier": 0.25}, [64, 96]),
    "mobilevit": (
        "MobileViTConfig",
        {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 64]},
        [64, 96],
    ),
    "mobilevitv2": ("MobileViTV2Config", {"width_multiplier": 0.25}, [64, 96]),
    "swiftformer": ("SwiftFormerConfig", {"depths": [1] * 4, "embed_dims": [8, 16, 24, 32]}, [64, 96]),
    "textnet": ("TextNetConfig", {}, [64, 96]),
    "cvt": ("CvtConfig", {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 2, 3]}, [64, 96]),
    "levit": ("LevitConfig", LEVIT | {"image_size": 64, "key_dim": [8] * 3, "attention_ratio": [2] * 3}, [64, 64]),
    "poolformer": ("PoolFormerConfig", STAGES, [64, 96]),
    "segformer": ("SegformerConfig", HEADS, [64, 96]),
    "glpn": ("GLPNConfig", HEADS, [64, 96]),
}
FAMILIES = TOKENS | CONVOLUTIONS


def config_of(family: str):
    name, fields, _ = FAMILIES[family]
    return getattr(transformers, name)(**fields)


def encoder_of(family: str) -> nn.Module:
    torch.manual_seed(0)
    return prepare_encoder(AutoModel.from_config(config_of(family))).eval()


def random_images(family: str, number: int = 2) -> torch.Tensor:
    return torch.rand(number, 3, *FAMILIES[family][2], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_become_maps(family):
    """Shapes, the same result twice, and a gradient at every place of the image that a cell sees."""
    encoder, images = encoder_of(family), random_images(family).requires_grad_()
    layers = [0, 1, -1]
    maps, encoded = layer_maps(encoder, images, layers)
    assert torch.equal(maps[2].grid, layer_maps(encoder, images, [-1])[0][0].grid)
    height, width = images.shape[2:]
    widths = layer_widths(config_of(family), layers, [height, width])
    for place, size in zip(maps, widths, strict=True):
        rows, columns = place.grid.shape[2:]
        assert place.summary.shape == (2, size) and place.grid.shape[:2] == (2, size)
        assert rows * width == columns * height
        again = pooled_features(place, 2)
        assert again.shape == (2, 5 * size) and torch.equal(again[:, :size], place.summary)
    sum(place.grid.square().sum() for place in maps).backward()
    assert images.grad.flatten(1).any(1).all() and images.grad.isfinite().all()
    assert encoded.last_hidden_state is not None


@pytest.mark.parametrize("family", FAMILIES)
def test_cells_lie_where_the_image_has_them(family):
    """A bright spot changes most the cells around it; deep random layers blur it."""
    encoder, (height, width) = encoder_of(family), FAMILIES[family][2]
    layers = [0, -1] if family in TOKENS else [0]
    dull = random_images(family, 4)
    for top, left in ((0.2, 0.3), (0.7, 0.2), (0.3, 0.8), (0.8, 0.8)):
        row, column = int(top * height), int(left * width)
        bright = dull.clone()
        bright[:, :, row - 2 : row + 2, column - 2 : column + 2] += 5
        with torch.no_grad():
            maps, _ = layer_maps(encoder, torch.cat([dull, bright]), layers)
        for layer, place in zip(layers, maps, strict=True):
            change = (place.grid[4:] - place.grid[:4]).square().sum((0, 1))
            rows, columns = change.shape
            at_row, at_column = divmod(change.argmax().item(), columns)
            near = 1.0 if layer == 0 else 1.5
            assert abs(at_row + 0.5 - row / height * rows) < max(near, rows / 8)
            assert abs(at_column + 0.5 - column / width * columns) < max(near, columns / 8)


def test_a_vit_mae_masks_nothing(monkeypatch):
    """It reads as a ViT with the same weights does, in training, too."""
    encoder = encoder_of("vit_mae")
    assert encoder.config.mask_ratio == 0 and encoder.train()
    (place,), _ = layer_maps(encoder, random_images("vit_mae"), [-1])
    patches = encoder.embeddings.patch_embeddings(random_images("vit_mae"))
    where = encoder.embeddings.interpolate_pos_encoding(patches, *WIDE)
    tokens = torch.cat([(encoder.embeddings.cls_token + where[:, :1]).expand(2, -1, -1), patches + where[:, 1:]], 1)
    for layer in encoder.layers:
        tokens = layer(tokens)
    tokens = encoder.layernorm(tokens)
    torch.testing.assert_close(place.grid, tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 6)))
    torch.testing.assert_close(place.summary, tokens[:, 0])
    encoder.config.mask_ratio = 0.75
    with pytest.raises(ValueError, match="75% of the patches at random"):
        layer_maps(encoder, random_images("vit_mae"), [-1])


@pytest.mark.parametrize(
    ("family", "tokens"),
    [
        ("yolos", "detection_tokens"),
        ("dinov2_with_registers", "register_tokens"),
        ("dinov3_vit", "register_tokens"),
        ("deit", "distillation_token"),
    ],
)
def test_tokens_that_are_no_patches_are_left_out(family, tokens):
    encoder, images = encoder_of(family), random_images(family)
    (before,), encoded = layer_maps(encoder, images, [0])
    torch.testing.assert_close(before.summary, encoded.hidden_states[0][:, 0])
    with torch.no_grad():
        encoder.get_parameter(f"embeddings.{tokens}").add_(100)
    (after,), _ = layer_maps(encoder, images, [0])
    assert torch.equal(after.grid, before.grid) and torch.equal(after.summary, before.summary)


def test_siglip2_reads_the_patches_of_its_own_image_processor():
    encoder = encoder_of("siglip2_vision")
    image = np.random.default_rng(0).integers(0, 256, (*WIDE, 3), dtype=np.uint8)
    own = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=24)(image, return_tensors="pt")
    pixels = torch.tensor(image).permute(2, 0, 1)[None] / 127.5 - 1
    (place,), _ = layer_maps(encoder, pixels, [-1])
    expected = encoder(**own).last_hidden_state
    torch.testing.assert_close(place.grid.flatten(2).transpose(1, 2), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", [family for family in TOKENS if config_of(family).model_type in PLAIN])
def test_the_config_of_a_common_family_tells_the_widths(family):
    config = config_of(family)
    assert layer_widths(config, [0, 2, -1], WIDE) == probed_widths(config, [0, 2, -1], WIDE, "meta") == [32] * 3


@pytest.mark.parametrize("family", ["vit", "dinov2_with_registers", "siglip2_vision", "swin", "hiera", "convnext"])
def test_bfloat16_and_gradient_checkpointing(family):
    layers, images = [1, -1], random_images(family)

    def gradients(encoder):
        maps, _ = layer_maps(encoder.train(), images.to(encoder.dtype), layers)
        sum(pooled_features(place, 2).float().square().mean() for place in maps).backward()
        return {name: weight.grad for name, weight in encoder.named_parameters() if weight.grad is not None}

    expected = gradients(encoder_of(family))
    if family != "convnext":  # which transformers does not checkpoint
        checkpointed = encoder_of(family)
        checkpointed.gradient_checkpointing_enable()
        found = gradients(checkpointed)
        assert set(found) == set(expected) and len(found) > 10
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient)
    half = gradients(encoder_of(family).bfloat16())
    assert set(half) == set(expected) and all(gradient.isfinite().all() for gradient in half.values())


def test_an_encoder_with_adapters_keeps_its_options():
    from peft import LoraConfig, get_peft_model

    expected = layer_maps(encoder_of("vit_mae"), random_images("vit_mae"), [1, -1])[0]
    adapted = get_peft_model(encoder_of("vit_mae"), LoraConfig(r=2, target_modules="all-linear")).eval()
    for one, other in zip(layer_maps(adapted, random_images("vit_mae"), [1, -1])[0], expected, strict=True):
        torch.testing.assert_close(one.grid, other.grid)


@pytest.mark.parametrize("shape", [(14, 14), (7, 9), (2, 3), (1, 1), (8, 12)])
def test_pooling_is_adaptive_average_pooling(shape):
    grid = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    pooled, expected = average_pool(grid, 4), nn.functional.adaptive_avg_pool2d(grid, 4)
    torch.testing.assert_close(pooled, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(*(torch.autograd.grad(one.square().sum(), grid)[0] for one in (pooled, expected)))
    half = average_pool(grid.bfloat16(), 4)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, nn.functional.adaptive_avg_pool2d(grid.bfloat16().float(), 4).bfloat16())


def test_order_of_pooled_features():
    place = LayerMap(torch.tensor([[7.0, 8.0]]), torch.arange(8.0).reshape(1, 2, 2, 2))
    assert pooled_features(place, 2).tolist() == [[7, 8, 0, 1, 2, 3, 4, 5, 6, 7]]
    assert pooled_features(place, 1).tolist() == [[7, 8, 1.5, 5.5]]
    assert pooled_features(place, 0).tolist() == [[7, 8]]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (transformers.VideoMAEConfig(**VIT), "VideoMAEModel reads videos"),
        (transformers.TimesformerConfig(**VIT), "TimesformerModel reads videos"),
        (transformers.CLIPConfig(vision_config=VIT), "CLIPModel reads text"),
        (transformers.SegGptConfig(**DEPTH, **SIZE), "SegGptModel also needs prompt_pixel_values, prompt_masks"),
        (transformers.BertConfig(**DEPTH), "BertModel takes input_ids"),
        (transformers.HGNetV2Config(), "layer -1 of encoder HGNetV2Backbone gives no tensor"),
        (transformers.Aimv2VisionConfig(**VIT), "aimv2_vision_model cannot be run on images of 32 x 48 px"),
        (
            transformers.DetrConfig(
                use_timm_backbone=False,
                backbone_config=transformers.ResNetConfig(embedding_size=8, **STAGES, out_features=["stage4"]),
            ),
            "DetrModel ends in queries",
        ),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_what_is_no_encoder_of_images_is_refused(config, message):
    with pytest.raises(ValueError, match=message) as raised:
        layer_widths(config, [-1], WIDE)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("family", "last"), [("vit", 2), ("convnext", 4), ("swin", 2)])
@pytest.mark.parametrize("layer", [-2, 9])
def test_layers_that_an_encoder_does_not_have(family, last, layer):
    message = f"layer {layer} of encoder {family}: -1 for its output or 0 to {last}"
    with pytest.raises(ValueError, match=message):
        layer_widths(config_of(family), [-1, layer], WIDE)
    with pytest.raises(ValueError, match=message):
        layer_maps(encoder_of(family), torch.rand(1, 3, *FAMILIES[family][2]), [layer])


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_a_config_whose_layers_the_encoder_does_not_have(family):
    settings = VisionFlowConfig(
        vision_config=config_of(family), image_size=[32, 32], encoder_image_size=[32, 32], feature_layers=[1, -1]
    ).to_dict()
    for change, message in (({"feature_layers": [1, 40]}, "layer 40"), ({"feature_widths": [5, 5]}, r"are \[5, 5\]")):
        with pytest.raises(ValueError, match=message):
            VisionFlowConfig(**(settings | change)).check_widths()
    with pytest.raises(ValueError, match=r"linear_layers is \[1, 1\]: each layer is expected once"):
        VisionFlowConfig(**(settings | {"linear_layers": [1, 1], "linear_widths": None}))
    if family == "vit":  # whose widths are known without a run
        with pytest.raises(ValueError, match="layer 40"):
            VisionFlowConfig(**(settings | {"feature_layers": [1, 40]}))


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_by_depth_are_layers_that_can_be_read(family):
    config, size = config_of(family), FAMILIES[family][2]
    layers = layers_by_depth(config, size)
    assert layers == sorted(set(layers)) and 1 <= len(layers) <= 5
    maps, _ = layer_maps(encoder_of(family), random_images(family), layers)
    assert [one.grid.shape[1] for one in maps] == layer_widths(config, layers, size)


def test_an_encoder_that_cannot_be_run_is_refused_whatever_it_raises():
    with pytest.raises(ValueError, match="encoder levit cannot be run on images of 8 x 8 px"):
        layers_by_depth(transformers.LevitConfig(), [8, 8])


def test_models_of_timm_may_have_registers_alone():
    wrapper = nn.Module()
    assert has_class_token(wrapper)
    wrapper.timm_model = nn.Module()
    assert has_class_token(wrapper)
    wrapper.timm_model.reg_token = nn.Parameter(torch.zeros(4))
    assert not has_class_token(wrapper)
    wrapper.timm_model.cls_token = nn.Parameter(torch.zeros(1))
    assert has_class_token(wrapper)


def test_an_encoder_of_grey_images_sees_the_mean_of_the_colours():
    grey = transformers.ViTConfig(**(config_of("vit").to_dict() | {"num_channels": 1}))
    model = VisionFlowModel(VisionFlowConfig(vision_config=grey, image_size=[32, 32], num_channels=3)).eval()
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features, _ = model.extract_image_features(image)
    mean = image.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    torch.testing.assert_close(model.extract_image_features(mean)[0], features)


def test_layers_by_depth_lie_between_first_and_last():
    assert layers_by_depth(transformers.ViTConfig(), [224, 224]) == [2, 4, 6, 8, 11]
    assert layers_by_depth(transformers.ResNetConfig(), [224, 224]) == [1, 2, 3, 4]


def test_image_size_that_an_encoder_was_trained_with():
    assert native_image_size(config_of("vit")) == [32, 32]
    assert native_image_size(transformers.YolosConfig()) == [512, 864]
    assert native_image_size(transformers.Siglip2VisionConfig()) == [256, 256]
    assert native_image_size(transformers.ResNetConfig()) is None


@pytest.mark.parametrize(
    "family", ["vit_mae", "yolos", "dinov3_vit", "siglip2_vision", "swin", "mobilenet_v2", "resnet"]
)
def test_a_model_reads_every_family(family, tmp_path):
    encoder = encoder_of(family)
    config = VisionFlowConfig(
        vision_config=encoder.config,
        image_size=[18, 24],
        encoder_image_size=FAMILIES[family][2],
        latent_dim=4,
        feature_layers=[1, -1],
        feature_grid=2,
        subjects=["ann"],
        num_voxels=[5],
    )
    model = VisionFlowModel(config).eval()
    model.encoder = encoder
    images = torch.rand(2, 3, 18, 24, generator=torch.Generator().manual_seed(0))
    features, _ = model.extract_image_features(images)
    assert torch.equal(features, model.extract_image_features(images)[0])
    assert features.shape[1] == 5 * sum(config.feature_widths)
    model(pixel_values=images, fmri=torch.rand(2, 5)).loss.backward()
    learned = [weight.grad for weight in model.encoder.parameters() if weight.grad is not None]
    assert len(learned) > 10 and all(gradient.isfinite().all() for gradient in learned)
    model.save_pretrained(tmp_path)
    again = VisionFlowModel.from_pretrained(tmp_path)
    assert again.config.feature_widths == config.feature_widths
    assert torch.equal(again.extract_image_features(images)[0], features)


SQUARE = {"height": 32, "width": 32}
MEAN_AND_STD = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
CROP = {"size": {"shortest_edge": 40}, "crop_size": SQUARE}
TEXT = DEPTH | {"vocab_size": 20}

FOLDERS = {  # a model, its config, and its own image processor with what makes it take 32 px
    "vit": ("ViTModel", config_of("vit"), "ViTImageProcessor", {"size": SQUARE}),
    "vit_mae": ("ViTMAEModel", config_of("vit_mae"), "ViTImageProcessor", {"size": SQUARE}),
    # trained at 48 px, as DINOv2 is at 518 while its processor gives it 224
    "dinov2": ("Dinov2Model", transformers.Dinov2Config(**VIT | {"image_size": 48}), "BitImageProcessor", CROP),
    "clip": (
        "CLIPModel",
        transformers.CLIPConfig(text_config=TEXT, vision_config=VIT, projection_dim=8),
        "CLIPImageProcessor",
        CROP,
    ),
    "siglip": (
        "SiglipModel",
        transformers.SiglipConfig(text_config=TEXT, vision_config=VIT),
        "SiglipImageProcessor",
        {"size": SQUARE},
    ),
    "convnext": ("ConvNextModel", config_of("convnext"), "ConvNextImageProcessor", {"size": {"shortest_edge": 32}}),
}


def encoder_folder(name, folder):
    """A folder with the weights, config and image processor of one encoder."""
    model, config, image_processor, sizes = FOLDERS[name]
    torch.manual_seed(0)
    getattr(transformers, model)(config).save_pretrained(folder)
    getattr(transformers, image_processor)(**sizes, **MEAN_AND_STD).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["clip", "vit_mae"])
def test_train_save_and_load(name, colour_corpus, tmp_path):
    encoder = encoder_folder(name, tmp_path / "encoder")
    flags = ["--encoder", encoder, "--freeze_encoder", "false", "--max_steps", 4, "--disable_tqdm", "true"]
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


@pytest.mark.parametrize("name", FOLDERS)
def test_the_encoder_sees_what_its_own_processor_would_give_it(name, tmp_path):
    """For an image that needs no resizing, normalised pixels are the image processor's to rounding."""
    encoder, from_processor = load_encoder(str(encoder_folder(name, tmp_path)))
    config = VisionFlowConfig(vision_config=encoder.config, image_size=[32, 32], latent_dim=4, **from_processor)
    model = VisionFlowModel(config).eval()
    seen = []
    model.encoder.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    model.extract_image_features(torch.tensor(image).permute(2, 0, 1)[None] / 255)
    own = AutoImageProcessor.from_pretrained(tmp_path, do_resize=False)(image, return_tensors="pt").pixel_values
    torch.testing.assert_close(seen[0], own, atol=1e-5, rtol=0)


def test_without_an_image_processor_the_encoder_says_so(tmp_path, caplog):
    encoder_of("vit").save_pretrained(tmp_path)
    _, from_processor = load_encoder(str(tmp_path))
    assert from_processor == {} and "has no image processor" in caplog.text


def test_several_layers_are_read_one_beside_the_other():
    config = VisionFlowConfig(
        vision_config=config_of("vit"), image_size=[32, 32], feature_grid=2, feature_layers=[0, 1, -1]
    )
    model = VisionFlowModel(config).eval()
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features, encoded = model.extract_image_features(image, output_hidden_states=True)
    tokens = [encoded.hidden_states[0], encoded.hidden_states[1], encoded.last_hidden_state]
    upper_right = torch.stack([one[:, 1:].reshape(2, 4, 4, 32)[:, :2, 2:].mean((1, 2)) for one in tokens], 1)
    classes, cells = features.reshape(2, 3, 5 * 32).split([32, 4 * 32], dim=2)
    torch.testing.assert_close(classes, torch.stack([one[:, 0] for one in tokens], 1))
    torch.testing.assert_close(cells.reshape(2, 3, 32, 4)[..., 1], upper_right)


def test_linear_dimensions_read_layers_over_seven_by_seven_cells():
    config = VisionFlowConfig(
        vision_config=config_of("vit"), image_size=[32, 32], linear_layers=[0, 2], linear_dim=3, latent_dim=4
    )
    model = VisionFlowModel(config).eval()
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features, encoded = model.extract_image_features(image, output_hidden_states=True)
    assert features.shape[1] == sum(model.feature_sizes) == 32 * (1 + 16) + 2 * 32 * 49
    grids = [encoded.hidden_states[layer][:, 1:].transpose(1, 2).unflatten(2, (4, 4)) for layer in (0, 2)]
    cells = [nn.functional.adaptive_avg_pool2d(grid, 7).flatten(1) for grid in grids]
    read = torch.cat([wavelet_maps(image).flatten(1), *cells], dim=1)
    torch.testing.assert_close(model.encode_image(image).linear.mean, model.linear_head(read))
    alone = model.encode_image(image, features[:, : model.feature_sizes[0]], with_linear=False)
    assert torch.equal(alone.learned.mean, model.encode_image(image).learned.mean)


@pytest.mark.parametrize(("flags", "layers"), [([], [0, 1, 2]), (["--feature_layers", "1"], [1])])
def test_voxels_read_the_layers_of_a_pretrained_encoder(colour_corpus, tmp_path, monkeypatch, flags, layers):
    """The model predicts what the ridge from one of them does, if all weight is given to it."""
    encoder_of("vit").save_pretrained(tmp_path / "vit")
    words = ["train", colour_corpus, tmp_path / "run", "--encoder", tmp_path / "vit", "--max_steps", "2", *flags]
    assert main([str(word) for word in words]) == 0
    model, processor = load_model(tmp_path / "run")
    assert model.config.linear_layers == layers and model.config.linear_widths == [32] * len(layers)
    pairs = pairs_of(open_corpus(colour_corpus).splits["train"])
    trials, stimuli = Trials(pairs, processor), Stimuli(processor, [pairs], model)
    spaces = feature_spaces(model, stimuli, trials.stimuli)
    assert [space.name for space in spaces] == ["energies", *(f"layer {layer}" for layer in layers)]
    fmri = trials.mean_responses("ann", trials.stimuli)
    encodings = [linear_latent.Encoding(space, torch.arange(len(fmri)), fmri) for space in spaces]
    names = [name for one in encodings for name in one.models]
    weights = dict.fromkeys(names, 0.0) | {"layer 1": 1.0}
    monkeypatch.setattr(linear_latent, "stacking_weights", lambda *_: (dict(weights), [0.0] * len(layers) + [1.0], 1.0))
    linear_latent.fit_encoding(model, trials, stimuli, seed=0)
    pixels, features = stimuli.pixel_values(trials.stimuli), stimuli.image_features(trials.stimuli)
    ids = torch.zeros(len(pixels), dtype=torch.long)
    found = model.predict_fmri(pixels, ids, image_features=features)
    (of_layer,) = [one for one in encodings if one.space.name == "layer 1"]
    torch.testing.assert_close(found[:, :12], of_layer.ridge(slice(0, 12)).fmri, atol=5e-3, rtol=0)
    torch.testing.assert_close(found, model.predict_fmri(pixels, ids), atol=5e-3, rtol=0)  # not from the cache


@pytest.mark.parametrize("layers", [["3"], ["0", "7"]])
def test_layers_that_are_not_there(colour_corpus, tmp_path, refused, layers):
    encoder_of("vit").save_pretrained(tmp_path / "vit")
    words = ["train", colour_corpus, tmp_path / "run", "--encoder", tmp_path / "vit", "--feature_layers", *layers]
    refused(lambda: main([str(word) for word in words]), "-1 for its output or 0 to 2 for a place in its hidden_states")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "stated"), [("ViTConfig", {"num_hidden_layers": 10**6}), ("SwinConfig", {"depths": [2, 10**6]})]
)
def test_an_encoder_of_a_damaged_config_is_refused_before_it_is_built(name, stated):
    with pytest.raises(ValueError, match=r"vision_config states 1,000,000 layers: 1,000 at most"):
        VisionFlowConfig(vision_config=getattr(transformers, name)(**stated))
