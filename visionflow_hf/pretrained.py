"""Pretrained networks by name: image encoders of any vision family of transformers, and autoencoders of diffusers."""

import json
from pathlib import Path

from huggingface_hub.errors import HTTPError
from transformers import AutoConfig, AutoImageProcessor, AutoModel
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, logging

from visionflow_hf.errors import UserError, count
from visionflow_hf.hub import MODEL_ERRORS
from visionflow_hf.modeling.optional_files import optional_file
from visionflow_hf.modeling.vision_encoder import (
    check_encoder,
    layers_by_depth,
    native_image_size,
    prepare_encoder,
)
from visionflow_hf.training.arguments import SCRATCH

logger = logging.get_logger("visionflow_hf")


def load_encoder(name: str):
    """A pretrained vision model, and what its image processor says of its input.

    Returns:
        The encoder in float32, and `image_mean`, `image_std` and `encoder_image_size` for the config as far as the
        image processor tells them.

    Raises:
        UserError: no such encoder, or one that cannot be used.
    """
    encoder = load_vision_model(name)
    if encoder.config.model_type == "timm_wrapper":
        given = getattr(encoder.config, "pretrained_cfg", None) or {}
        return encoder, {f"image_{key}": list(given[key]) for key in ("mean", "std") if key in given}
    try:
        images = AutoImageProcessor.from_pretrained(name) if has_image_processor(name) else None
    except (*MODEL_ERRORS, HTTPError) as error:
        raise UserError(
            f"the image processor of encoder {name} cannot be loaded: {' '.join(str(error).split())[:200]}"
        ) from error
    if images is None:
        logger.warning(f"encoder {name} has no image processor: its pixels are normalised with mean 0.5 and std 0.5")
        return encoder, {}
    if getattr(images, "do_flip_channel_order", None):
        raise UserError(f"encoder {name} reads blue before red (do_flip_channel_order): choose one that reads RGB")
    return encoder, encoder_input(images, encoder.config)


def has_image_processor(name: str) -> bool:
    """Whether an image processor lies beside an encoder, in a file of its own or within that of a processor."""
    if optional_file(name, IMAGE_PROCESSOR_NAME) is not None:
        return True
    file = optional_file(name, PROCESSOR_NAME)
    return file is not None and "image_processor" in json.loads(Path(file).read_text(encoding="utf-8"))


def encoder_input(images, config) -> dict[str, list]:
    """`image_mean`, `image_std`, on a 0..1 scale, and `encoder_image_size` as an image processor has them."""
    mean, std = [0.0] * 3, [1.0] * 3
    if getattr(images, "do_normalize", None) and images.image_mean is not None:
        mean, std = (
            list(values) if isinstance(values, (list, tuple)) else [values] * 3
            for values in (images.image_mean, images.image_std)
        )
    brightest = 255 * images.rescale_factor if getattr(images, "do_rescale", True) else 255
    offset = 1 if getattr(images, "rescale_offset", False) else 0  # EfficientNet's: pixels from -1
    found = {"image_mean": [(value + offset) / brightest for value in mean]}
    if getattr(images, "include_top", False):  # EfficientNet divides by std once more
        std = [value**2 for value in std]
    found["image_std"] = [value / brightest for value in std]
    size = images.crop_size if getattr(images, "do_center_crop", None) else getattr(images, "size", None)
    if size is not None and size.height and size.width:
        found["encoder_image_size"] = [size.height, size.width]
    elif native_image_size(config):  # the processor keeps the shape of an image, or takes any
        found["encoder_image_size"] = native_image_size(config)
    if size is not None and size.shortest_edge and not size.longest_edge:
        found["encoder_image_size"] = [size.shortest_edge] * 2
    return found


def input_size(config, own: dict, image_size: list[int]) -> list[int]:
    """Height and width in px of what an encoder is given: as its image processor, its config or the images have it.

    Args:
        own: what `load_encoder` found.
        image_size: height and width of the images.
    """
    return list(own.get("encoder_image_size") or native_image_size(config) or image_size)


def layers_to_read(config, size: list[int]) -> list[int]:
    """`layers_by_depth`, whose complaints are the user's to mend."""
    try:
        return layers_by_depth(config, size)
    except ValueError as error:
        raise UserError(str(error)) from error


def load_vision_model(name: str):
    """A pretrained vision model in float32; of a model of images and text, as CLIP is, the vision part.

    Raises:
        UserError: no such model, one that gives no feature map of an image, or a checkpoint that lacks weights.
    """
    try:
        config = AutoConfig.from_pretrained(name)
        config = getattr(config, "vision_config", None) or config
        encoder, report = AutoModel.from_pretrained(
            name, config=config, dtype="float32", use_safetensors=True, output_loading_info=True
        )
    except (*MODEL_ERRORS, HTTPError) as error:
        raise UserError(
            f"no encoder {name} ({' '.join(str(error).split())[:200]}): give a folder or a name on the Hub; `train` "
            f"also takes --encoder {SCRATCH}"
        ) from error
    try:
        check_encoder(encoder)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
    unused = ("pooler.", "head.", "embeddings.mask_token")  # what feature maps do not need
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(unused))
    if missing:
        raise UserError(
            f"encoder {name} is no whole {type(encoder).__name__}, it lacks {count(missing, 'weight')}: "
            "a checkpoint of this architecture is needed"
        )
    prepare_encoder(encoder)
    encoder.config.num_labels = 2  # the default: a feature map has no classes, whose names would fill the config
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
        except (*MODEL_ERRORS, HTTPError) as error:
            reason = error
    raise UserError(
        f"no autoencoder {name} ({' '.join(str(reason).split())[:200]}): give a folder or a name on the Hub that "
        "holds an AutoencoderKL with safetensors weights"
    )
