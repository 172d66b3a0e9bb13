"""A new model and its processor, with the sizes that fit a corpus."""

import math
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import AutoConfig, AutoImageProcessor, AutoModel, ViTConfig
from transformers.utils import logging

from visionflow_hf.corpus.responses import image_formats, pairs_of, responses_of
from visionflow_hf.errors import UserError, count
from visionflow_hf.hub import load_model
from visionflow_hf.modeling import VisionFlowConfig, VisionFlowModel, VisionFlowProcessor
from visionflow_hf.training.arguments import PRETRAINED, SCRATCH, ModelArguments
from visionflow_hf.training.learning_encoder import choose_what_learns

logger = logging.get_logger("visionflow_hf")

LARGEST_IMAGE = 224  # px; what pretrained encoders take
PRETRAINED_FROM = 64  # px; smaller stimuli get an encoder of their own


def build_processor(train: Dataset, image_size: int | None) -> VisionFlowProcessor:
    """Image size and channels from the stimuli, mean and standard deviation of each voxel from all fMRI in train.

    A stimulus is an image that has fMRI; fMRI without an image counts for mean and standard deviation.

    Args:
        image_size: longer side in px, if it is not to be that of most stimuli.
    """
    size, channels = image_format(pairs_of(train), image_size)
    processor = VisionFlowProcessor(image_size=size, num_channels=channels)
    add_subjects(processor, train)
    return processor


def image_format(pairs: Dataset, image_size: int | None) -> tuple[list[int], int]:
    """Height and width in px that a model works at, and the number of its channels."""
    sizes, grey = image_formats(pairs)
    width, height = sizes.most_common(1)[0][0]
    scale = min(1.0, LARGEST_IMAGE / max(width, height)) if image_size is None else image_size / max(width, height)
    return [max(1, round(height * scale)), max(1, round(width * scale))], 1 if grey else 3


def encoder_name(image_size: list[int], args: ModelArguments) -> str:
    """The encoder that `args` names, or the one that fits the images."""
    return args.encoder or (PRETRAINED if max(image_size) >= PRETRAINED_FROM else SCRATCH)


def add_subjects(processor: VisionFlowProcessor, train: Dataset) -> None:
    """Teach the processor all subjects of `train` who have pairs: mean and standard deviation of each voxel.

    fMRI without an image counts, too.
    """
    pairs = pairs_of(train)
    alone = sorted(set(train["subject"]) - set(pairs["subject"]) - {None})
    if alone:
        logger.warning(f"{count(alone, 'subject')} without a pair of image and fMRI in train: left out of the model")
    for subject in sorted(set(pairs["subject"])):
        fmri = responses_of(train, subject).fmri
        mean = fmri.mean(0, dtype=np.float64).astype(np.float32)
        spread = fmri.std(0, dtype=np.float64).astype(np.float32)
        constant = np.ptp(fmri, axis=0) == 0
        if constant.any():
            logger.warning(
                f"{subject}: {count(np.flatnonzero(constant), 'voxel')} constant in train: kept, standardised to 0"
            )
        processor.add_subject(subject, mean, np.where(constant, np.float32(1), spread))


def build_model(processor: VisionFlowProcessor, args: ModelArguments) -> VisionFlowModel:
    """A model with fresh weights, those of a pretrained encoder and of an autoencoder bit for bit.

    Raises:
        UserError: the encoder or the autoencoder cannot be found, or the encoder is no vision model.
    """
    encoder = None
    name = encoder_name(processor.image_size, args)
    encoder_input = {}
    if name == SCRATCH:
        if args.unfreeze_blocks or args.lora_rank:
            raise UserError("--unfreeze_blocks and --lora_rank keep what an encoder knows: name one with --encoder")
        vision_config = small_vit(processor.image_size, processor.num_channels)
        feature_grid = vision_config.image_size[0] // vision_config.patch_size
    else:
        encoder, encoder_input = load_encoder(name)
        vision_config, feature_grid = encoder.config, 4
    autoencoder_part = {}
    if args.autoencoder is not None:
        autoencoder = load_autoencoder(args.autoencoder)
        own = {name: value for name, value in autoencoder.config.items() if not name.startswith("_")}
        autoencoder_part = {"decoder_type": "autoencoder_kl", "autoencoder_config": own}
    num_voxels = [len(processor.fmri_mean[subject]) for subject in processor.subjects]
    try:
        config = VisionFlowConfig(
            vision_config=vision_config,
            image_size=processor.image_size,
            num_channels=processor.num_channels,
            feature_grid=feature_grid,
            feature_layers=args.feature_layers or [-1],
            latent_dim=args.latent_dim or (128 if name == SCRATCH else 256),
            subjects=processor.subjects,
            num_voxels=num_voxels,
            bridge_hidden_size=args.bridge_hidden_size or bridge_width(num_voxels),
            bridge_dropout=args.bridge_dropout,
            voxel_dropout=args.voxel_dropout,
            decoder_channels=args.decoder_channels,
            image_weight=args.image_weight,
            kl_weight=args.kl_weight,
            alignment_weight=args.alignment_weight,
            fmri_weight=args.fmri_weight,
            **encoder_input,
            **autoencoder_part,
        )
    except ValueError as error:  # the config says what it expected
        raise UserError(str(error)) from error
    model = VisionFlowModel(config)
    if encoder is not None:
        model.encoder = encoder
    if autoencoder_part:
        model.image_decoder.set_autoencoder(autoencoder)
    choose_what_learns(model, args, frozen=encoder is not None)
    return model


def continue_model(name: str, train: Dataset, args: ModelArguments) -> tuple[VisionFlowModel, VisionFlowProcessor]:
    """The image side of a trained model and its MLP to fMRI, with new maps for the subjects of `train`; its processor.

    The MLP from fMRI to latent begins anew: it corrected the maps of other people.

    Raises:
        UserError: no model of that name.
    """
    trained, old = load_model(name)
    processor = VisionFlowProcessor(image_size=old.image_size, num_channels=old.num_channels)
    add_subjects(processor, train)
    config = VisionFlowConfig.from_dict(trained.config.to_dict())
    config.latent_dim, config.wavelet_dim = config.learned_dim, 0
    config.linear_share = config.decoding_spread = config.black_point = 0.0
    config.subjects, config.num_voxels = [], []
    model = VisionFlowModel(config)
    own = model.state_dict()
    kept = {
        key: values
        for key, values in trained.state_dict().items()
        if key in own and values.shape == own[key].shape and not key.startswith("fmri_to_latent.")
    }
    model.load_state_dict(own | kept)
    for subject in processor.subjects:
        model.add_subject(subject, len(processor.fmri_mean[subject]))
    choose_what_learns(model, args, frozen=False)
    return model, processor


def bridge_width(num_voxels: list[int]) -> int:
    """1,024 hidden units, fewer where the maps to all voxels would then exceed 64 M weights, 128 at least."""
    affordable = 64_000_000 // sum(num_voxels)
    return max(128, min(1024, 2 ** (affordable.bit_length() - 1)))


def small_vit(image_size: list[int], channels: int) -> ViTConfig:
    """A ViT of 0.1 M parameters for stimuli too small for a pretrained one, with about 8 patches a side."""
    patch = max(1, round(max(image_size) / 8))
    side = math.ceil(max(image_size) / patch) * patch
    return ViTConfig(
        image_size=[side, side],
        patch_size=patch,
        num_channels=channels,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
    )


def load_encoder(name: str):
    """A pretrained vision model, and what its image processor says of its input.

    Returns:
        The encoder in float32, and `image_mean`, `image_std` and `encoder_image_size` for the config where the encoder
        comes with an image processor.
    """
    encoder = load_vision_model(name)
    try:
        images = AutoImageProcessor.from_pretrained(name)
    except OSError:
        logger.warning(f"encoder {name} has no image processor: its pixels are normalised with mean 0.5 and std 0.5")
        return encoder, {}
    size = images.crop_size if getattr(images, "do_center_crop", False) else images.size
    return encoder, {
        "image_mean": images.image_mean if images.do_normalize else [0.0] * 3,
        "image_std": images.image_std if images.do_normalize else [1.0] * 3,
        "encoder_image_size": [size.height or size.shortest_edge, size.width or size.shortest_edge],
    }


def load_vision_model(name: str):
    """A pretrained vision model in float32; of a model of images and text, as CLIP is, the part that sees."""
    try:
        config = AutoConfig.from_pretrained(name)
        config = getattr(config, "vision_config", config)
        encoder = AutoModel.from_pretrained(name, config=config, dtype="float32", use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no encoder {name} ({' '.join(str(error).split())[:200]}): give a folder, a name on the Hub, or {SCRATCH}"
        ) from error
    if encoder.main_input_name != "pixel_values":
        raise UserError(
            f"encoder {name} is a {type(encoder).__name__}: a vision model that takes pixel_values is needed"
        )
    encoder.config._name_or_path = Path(name).name if Path(name).is_dir() else name  # what is shared names no folder
    return encoder


def load_autoencoder(name: str):
    """A pretrained AutoencoderKL of diffusers, in float32; of a whole diffusion model it is the part in `vae`."""
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise UserError("--autoencoder needs diffusers: pip install 'visionflow-hf[autoencoder]'") from error
    for subfolder in (None, "vae"):
        try:
            return AutoencoderKL.from_pretrained(name, subfolder=subfolder, use_safetensors=True)
        except (OSError, ValueError) as error:
            reason = error
    raise UserError(
        f"no autoencoder {name} ({' '.join(str(reason).split())[:200]}): give a folder or a name on the Hub that "
        "holds an AutoencoderKL with safetensors weights"
    )
