# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""Feature maps from the layers of a vision encoder of transformers, with the patch tokens put back in their places."""

import copy
import inspect
import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel
from transformers.modeling_outputs import ModelOutput

MADE_HERE = ("pixel_values", "pixel_attention_mask", "spatial_shapes")  # inputs that `layer_maps` gives an encoder
MOST_BEFORE = 16  # class tokens and registers before the patches, where nothing but the number of tokens tells them
STAGED = ("depths", "hidden_sizes", "backbone_config")  # config fields of encoders whose stages have different grids
PLAIN = (  # families whose layers all have `hidden_size` channels, for images of any size
    *("vit", "deit", "beit", "data2vec-vision", "dinov2", "dinov2_with_registers", "dinov3_vit", "vit_mae", "vit_msn"),
    *("ijepa", "clip_vision_model", "siglip_vision_model", "siglip2_vision_model"),
)
DEPTHS = (0.2, 0.35, 0.5, 0.7, 0.9)  # of the layers that `layers_by_depth` gives, as shares of the encoder's depth
VIDEO = ("tubelet_size", "num_frames", "frames_per_clip")  # config fields of encoders of videos


@dataclass
class LayerMap:
    """What one layer of an encoder gives for a batch of images.

    Args:
        summary: The class token, or the mean over the grid for an encoder without one, `(batch, width)`.
        grid: The patch tokens in their places, `(batch, width, rows, columns)`.
    """

    summary: torch.Tensor
    grid: torch.Tensor


class UnusableEncoder(ValueError):
    """An encoder, or a layer of it, that gives no feature map of an image."""


def check_encoder(encoder: nn.Module) -> None:
    """
    Raises:
        ValueError: The encoder cannot be used with a batch of images alone: it takes no `pixel_values`, reads text,
            prompts or videos, needs inputs that are not made here, or ends in queries instead of patches.
    """
    encoder = without_adapters(encoder)
    inputs = inspect.signature(encoder.forward).parameters
    needed = [
        name
        for name, parameter in inputs.items()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    ]
    others = [name for name in needed if name not in MADE_HERE]
    if "pixel_values" not in inputs:
        reason = f"takes {encoder.main_input_name}"
    elif "input_ids" in inputs:
        reason = "reads text, too"
    elif any(getattr(encoder.config, field, None) for field in VIDEO):
        reason = "reads videos"
    elif others:
        reason = f"also needs {', '.join(others)}"
    elif getattr(encoder.config, "is_encoder_decoder", False) or "pixel_mask" in inputs:
        reason = "ends in queries, not in a feature map"
    else:
        return
    raise UnusableEncoder(
        f"encoder {type(encoder).__name__} {reason}: a vision model that takes images as pixel_values and gives a "
        "feature map is needed"
    )


def prepare_encoder(encoder: nn.Module) -> nn.Module:
    """Switch off the random masking of a ViT-MAE, which leaves out patches in evaluation, too; return the encoder.

    `mask_ratio` becomes 0 in the encoder's config, so that it stays off in a saved model.
    """
    config = without_adapters(encoder).config
    if config.model_type == "vit_mae":
        config.mask_ratio = 0.0
    return encoder


def layer_maps(
    encoder: nn.Module, pixels: torch.Tensor, layers: list[int], **kwargs
) -> tuple[list[LayerMap], ModelOutput]:
    """A `LayerMap` for each of `layers`, and the whole output of the encoder.

    Args:
        encoder: A vision model of transformers after `prepare_encoder`, with or without adapters of peft.
        pixels: Normalised images of the encoder's size and dtype, `(batch, channels, height, width)`.
        layers: Places in the encoder's `hidden_states`; -1 is its `last_hidden_state`.
        kwargs: Passed to the encoder. `output_hidden_states` is set to True where the maps need them.

    Raises:
        ValueError: A layer is not there or gives no feature map, or a ViT-MAE masks patches at random.
    """
    plain = without_adapters(encoder)
    if any(layer != -1 for layer in layers) or not one_patch_size(plain.config):
        kwargs["output_hidden_states"] = True
    encoded = encoder(**encoder_inputs(plain, pixels), **kwargs)
    return [layer_map(plain, encoded, layer, pixels) for layer in layers], encoded


def pooled_features(layer: LayerMap, cells: int) -> torch.Tensor:
    """The summary, then the grid averaged over `cells` x `cells` cells.

    Returns:
        `(batch, width * (1 + cells^2))`; for 0 cells the summary alone, `(batch, width)`.
    """
    if not cells:
        return layer.summary
    return torch.cat([layer.summary, average_pool(layer.grid, cells).flatten(1)], dim=1)


def resized(pixels: torch.Tensor, size) -> torch.Tensor:
    """Bilinear, antialiased, to `size` (height, width). MPS lacks its gradient, for which the CPU does it."""
    if pixels.device.type == "mps" and pixels.requires_grad:
        return resized(pixels.cpu(), size).to(pixels.device)
    return nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)


def average_pool(grid: torch.Tensor, cells: int) -> torch.Tensor:
    """`adaptive_avg_pool2d` to `cells` x `cells`; MPS lacks it for sizes that `cells` does not divide."""
    if grid.shape[-2] % cells == 0 and grid.shape[-1] % cells == 0:
        return nn.functional.adaptive_avg_pool2d(grid, cells)
    pooled = grid.to(torch.promote_types(grid.dtype, torch.float32))
    for dim in (-2, -1):
        size = grid.shape[dim]
        bounds = [(cell * size // cells, math.ceil((cell + 1) * size / cells)) for cell in range(cells)]
        pooled = torch.stack([pooled.narrow(dim, start, stop - start).mean(dim) for start, stop in bounds], dim)
    return pooled.to(grid.dtype)


def layer_widths(config, layers: list[int], image_size: list[int]) -> list[int]:
    """Width of each of `layers`.

    Families in `PLAIN` have it in their config. Any other is built without weights and run once on the meta device,
    which takes no memory; on the CPU if it does not run there.

    Args:
        config: Config of the encoder.
        layers: Places in its `hidden_states`; -1 is its `last_hidden_state`.
        image_size: Height and width in px of the images that it is given.

    Raises:
        ValueError: The encoder cannot be used, not with this image size, or has no such layer.
    """
    if config.model_type in PLAIN:
        for layer in layers:
            check_layer(config.model_type, layer, config.num_hidden_layers + 1)
        return [config.hidden_size] * len(layers)
    try:
        with torch.random.fork_rng(devices=[]):  # the weights of the model that is built next stay the same
            try:
                return probed_widths(config, layers, image_size, "meta")
            except RuntimeError:  # it reads values, which tensors on meta lack
                return probed_widths(config, layers, image_size, "cpu")
    except UnusableEncoder:
        raise
    except Exception as error:  # of the encoder's own code
        raise cannot_run(config, image_size, error) from error


def layers_by_depth(config, image_size: list[int]) -> list[int]:
    """Places in the encoder's `hidden_states` at some depths, of those that give a feature map.

    Voxels of early areas are told best by early layers, those of late areas by late ones; which, differs from encoder
    to encoder, so that several are read.

    Args:
        config: Config of the encoder.
        image_size: Height and width in px of the images that it is given.
    """
    if config.model_type in PLAIN:
        places = list(range(config.num_hidden_layers + 1))
    else:
        places = probed_places(config, image_size)
    return sorted({places[round(depth * (len(places) - 1))] for depth in DEPTHS if places})


def cannot_run(config, image_size: list[int], error: Exception) -> ValueError:
    return ValueError(
        f"encoder {config.model_type} cannot be run on images of {image_size[0]} x {image_size[1]} px "
        f"({' '.join(str(error).split())[:200]}): another encoder or another encoder_image_size is needed"
    )


def probed_places(config, image_size: list[int]) -> list[int]:
    """The places in `hidden_states` that give a feature map, from a run on the meta device or the CPU."""
    with torch.random.fork_rng(devices=[]):
        for device in ("meta", "cpu"):
            try:
                encoder, pixels = probe(config, image_size, device)
                with torch.no_grad():
                    encoded = encoder(**encoder_inputs(encoder, pixels), output_hidden_states=True)
                maps = getattr(encoded, "reshaped_hidden_states", None) or getattr(encoded, "hidden_states", None) or ()
                return [place for place in range(len(maps)) if gives_map(encoder, encoded, place, pixels)]
            except Exception as error:  # of the encoder's own code, or of values that tensors on meta lack
                if device == "cpu":
                    raise cannot_run(config, image_size, error) from error
    return []


def gives_map(encoder: nn.Module, encoded: ModelOutput, layer: int, pixels: torch.Tensor) -> bool:
    try:
        layer_map(encoder, encoded, layer, pixels)
    except UnusableEncoder:
        return False
    return True


def native_image_size(config) -> list[int] | None:
    """Height and width in px that an encoder was trained with, None where its config does not say."""
    size = getattr(config, "image_size", None)
    if size is None and config.model_type == "siglip2_vision_model":
        size = math.isqrt(config.num_patches) * config.patch_size
    if size is None:  # timm's
        size = ((getattr(config, "pretrained_cfg", None) or {}).get("input_size") or [None])[1:] or None
    return list(size) if isinstance(size, (list, tuple)) else size and [size, size]


def probed_widths(config, layers: list[int], image_size: list[int], device: str) -> list[int]:
    """`layer_widths` on one device; the encoder's own errors come through."""
    encoder, pixels = probe(config, image_size, device)
    with torch.no_grad():
        maps, _ = layer_maps(encoder, pixels, layers)
    return [one.grid.shape[1] for one in maps]


def probe(config, image_size: list[int], device: str) -> tuple[nn.Module, torch.Tensor]:
    """An encoder with new weights and two black images."""
    with torch.device(device):
        encoder = AutoModel.from_config(copy.deepcopy(config), attn_implementation="eager", dtype=torch.float32)
        check_encoder(encoder)
        pixels = torch.zeros(2, getattr(config, "num_channels", 3), *image_size)
    return prepare_encoder(encoder).train(False), pixels


def check_layer(name: str, layer: int, places: int) -> None:
    if layer != -1 and not 0 <= layer < places:
        others = f" or 0 to {places - 1} for a place in its hidden_states" if places else ""
        raise UnusableEncoder(f"layer {layer} of encoder {name}: -1 for its output{others} is expected")


def without_adapters(encoder: nn.Module) -> nn.Module:
    return encoder.get_base_model() if hasattr(encoder, "get_base_model") else encoder


def one_patch_size(config) -> bool:
    """Whether each layer of the encoder has one token for each patch of `config.patch_size` px."""
    staged = any(getattr(config, field, None) is not None for field in STAGED)
    return not staged and hasattr(config, "patch_size") and hasattr(config, "hidden_size")


def encoder_inputs(encoder: nn.Module, pixels: torch.Tensor) -> dict[str, torch.Tensor | bool | None]:
    """What the encoder's `forward` takes for these images, beside options that the user may choose."""
    config = encoder.config
    batch, _, height, width = pixels.shape
    if config.model_type == "siglip2_vision_model":  # takes flattened patches
        size = config.patch_size
        rows, columns = height // size, width // size
        patches = pixels[..., : rows * size, : columns * size].unflatten(3, (columns, size)).unflatten(2, (rows, size))
        return {
            "pixel_values": patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1),
            "pixel_attention_mask": None,  # no patch is padding
            "spatial_shapes": torch.tensor([[rows, columns]] * batch, device="cpu"),  # its values are read
        }
    inputs = {"pixel_values": pixels}
    if config.model_type == "vit_mae":
        if config.mask_ratio:
            raise UnusableEncoder(
                f"encoder {type(encoder).__name__} leaves out {config.mask_ratio:.0%} of the patches at random "
                "(mask_ratio): call prepare_encoder(encoder) first"
            )
        rows, columns = patch_grid(config, height, width)
        inputs["noise"] = torch.arange(rows * columns, device=pixels.device).expand(batch, -1)  # keeps their order
    takes_any_size = "interpolate_pos_encoding" in inspect.signature(encoder.forward).parameters
    if takes_any_size and native_image_size(config) not in (None, [height, width]):
        inputs["interpolate_pos_encoding"] = True
    return inputs


def patch_grid(config, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of patches of `config.patch_size` px."""
    size = config.patch_size
    rows, columns = size if isinstance(size, (list, tuple)) else (size, size)
    return height // rows, width // columns


def layer_map(encoder: nn.Module, encoded: ModelOutput, layer: int, pixels: torch.Tensor) -> LayerMap:
    """The `LayerMap` of one place in `hidden_states`, of `last_hidden_state` for -1."""
    config, (batch, _, height, width) = encoder.config, pixels.shape
    maps = getattr(encoded, "reshaped_hidden_states", None) or getattr(encoded, "hidden_states", None) or ()
    check_layer(config.model_type, layer, len(maps))
    states = getattr(encoded, "last_hidden_state", None) if layer == -1 else maps[layer]
    grid = states if isinstance(states, torch.Tensor) else None
    if grid is not None and grid.ndim == 4:
        grid = channels_first(grid, height, width)
        if grid is not None and len(grid) == batch:
            return LayerMap(summary=grid.mean((2, 3)), grid=grid)
    elif grid is not None and grid.ndim == 3:
        tokens = grid.reshape(batch, -1, grid.shape[2])  # Pixtral puts all images of a batch into one row
        tokens = tokens[:, : tokens.shape[1] - getattr(config, "num_detection_tokens", 0)]
        found = token_grid(config, maps, tokens.shape[1], height, width)
        if found is not None:
            rows, columns, before = found
            patches = tokens[:, before:]
            registers = number_of_registers(config)
            classes = min(before - registers, number_of_classes(config)) if has_class_token(encoder) else 0
            summary = tokens[:, :classes].mean(1) if classes > 1 else tokens[:, 0] if classes else patches.mean(1)
            return LayerMap(summary=summary, grid=patches.transpose(1, 2).unflatten(2, (rows, columns)))
    shape = list(states.shape) if isinstance(states, torch.Tensor) else "no tensor"
    raise UnusableEncoder(
        f"layer {layer} of encoder {type(encoder).__name__} gives {shape} for {batch} images of {height} x {width} px: "
        "patch tokens or a feature map are needed"
    )


def channels_first(states: torch.Tensor, height: int, width: int) -> torch.Tensor | None:
    """A feature map as `(batch, width, rows, columns)`, also if its channels come last; None if it is no such map."""
    if covers(*states.shape[2:], height, width):
        return states
    if covers(*states.shape[1:3], height, width):
        return states.permute(0, 3, 1, 2)
    return None


def covers(rows: int, columns: int, height: int, width: int) -> bool:
    """Whether cells of one stride in both directions make up the image, to a cell and a tenth at the edges."""
    most = min(side / max(0.9 * cells - 1, 0.1) for side, cells in ((height, rows), (width, columns)))
    return all(side / (1.1 * cells + 1) <= most for side, cells in ((height, rows), (width, columns)))


def has_class_token(encoder: nn.Module) -> bool:
    """Whether the first token may be that of the class; some models of timm have registers alone."""
    wrapped = getattr(encoder, "timm_model", None)
    return getattr(wrapped, "reg_token", None) is None or getattr(wrapped, "cls_token", None) is not None


def number_of_registers(config) -> int:
    return getattr(config, "num_register_tokens", 0) or getattr(config, "num_registers", 0)


def number_of_classes(config) -> int:
    return getattr(config, "n_cls_tokens", None) or getattr(config, "num_cls_tokens", None) or 1


def token_grid(config, maps, count: int, height: int, width: int) -> tuple[int, int, int] | None:
    """Rows and columns of the patches among `count` tokens, and the number of tokens before them; None if unknown."""
    most = number_of_registers(config) + max(number_of_classes(config), 2)  # 2: class and distillation token (DeiT)
    if one_patch_size(config):
        grids = [patch_grid(config, height, width)]
    else:
        known = [one for one in maps if isinstance(one, torch.Tensor) and one.ndim == 4]
        known = [channels_first(one, height, width) for one in known]
        grids = [tuple(one.shape[2:]) for one in reversed(known) if one is not None]
        most = max(most, MOST_BEFORE) if grids else most  # the maps have told the grid, all else stands before it
    if not grids:
        strides = range(1, max(height, width) + 1)
        grids = [(height // s, width // s) for s in strides if height % s == 0 and width % s == 0]
        grids += [(math.ceil(height / s), math.ceil(width / s)) for s in strides]
    for before in range(number_of_registers(config), most + 1):
        for rows, columns in grids:
            if rows * columns + before == count:
                return rows, columns, before
    return None


__all__ = [
    "LayerMap",
    "check_encoder",
    "layer_maps",
    "layer_widths",
    "layers_by_depth",
    "native_image_size",
    "pooled_features",
    "prepare_encoder",
]
