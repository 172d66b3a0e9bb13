"""Perceptual metrics: similarity of an image and its reconstruction in the features of pretrained networks.

    alexnet2, alexnet5, inception, clip     two-way identification by the activations of a layer; chance is 0.5
    efficientnet, swav                      mean over stimuli of the correlation distance 1 - r; lower is better

Source: MindEye (Scotti et al. 2023), after Brain-Diffuser (Ozcelik & VanRullen 2023). Images of the stimulus's own size
are resized to the input size of the network without cropping, and with antialiasing (torchvision's default since 0.17).
Images that are not square are squeezed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from torch import nn
from torch.nn.functional import interpolate
from tqdm import tqdm
from transformers import CLIPConfig, CLIPVisionModelWithProjection

from visionflow_hf.errors import UserError
from visionflow_hf.evaluation.rows import of_rows
from visionflow_hf.metrics import cross_correlation, two_way

IDENTIFICATION = ("alexnet2", "alexnet5", "inception", "clip")
DISTANCE = ("efficientnet", "swav")
FIGURES = IDENTIFICATION + DISTANCE
DECODERS = {"model": "", "ridge": "ridge/"}
CLIP = "openai/clip-vit-large-patch14"
SWAV = "https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar"
BATCH = 32


def imagenet_network(name: str, weights: str, **options) -> nn.Module:
    """A network of torchvision with the weights of that name."""
    from torchvision.models import get_model, get_model_weights

    module = get_model(name, **options)
    module.load_state_dict(download(get_model_weights(name)[weights].url))
    return module


def swav_network() -> nn.Module:
    """SwAV's ResNet-50 (Caron et al. 2020) with its official weights, without the projection head of training."""
    from torchvision.models import resnet50

    module = resnet50()
    module.fc = nn.Identity()
    weights = {name.removeprefix("module."): values for name, values in download(SWAV).items()}
    module.load_state_dict({name: weights[name] for name in module.state_dict()})
    return module


class ClipImageSide(CLIPVisionModelWithProjection):
    """CLIP's vision tower with projection; the text tower in the published weights is ignored."""

    _keys_to_ignore_on_load_unexpected = ["^text_model", "^text_projection", "^logit_scale"]


def clip_network() -> nn.Module:
    """OpenAI's CLIP ViT-L/14 (Radford et al. 2021)."""
    try:
        whole = CLIPConfig.from_pretrained(CLIP)
        config = whole.vision_config
        config.projection_dim = whole.projection_dim
        return ClipImageSide.from_pretrained(CLIP, config=config, dtype=torch.float32, use_safetensors=True)
    except OSError as error:
        raise UserError(
            f"no weights of {CLIP} ({' '.join(str(error).split())}): run `hf download {CLIP}` with network access"
        ) from error


def download(url: str) -> dict[str, torch.Tensor]:
    """Weights from the cache of torch.hub, or from their official URL."""
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except (OSError, EOFError, RuntimeError, UnpicklingError) as error:  # missing, truncated, or another file
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"no weights from {url} ({str(error)[:200]}): download them with network access to {folder}"
        ) from error


@dataclass(frozen=True)
class Network:
    """One of the networks and its input format.

    Attributes:
        load: builds the module with its published weights.
        size: height and width of the input in px.
        layers: for each figure the submodule whose output is compared.
        mean, std: normalisation of the channels on a 0..1 scale; that of ImageNet by default.
    """

    name: str
    load: Callable[[], nn.Module]
    size: int
    layers: dict[str, str]
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


NETWORKS = (
    Network(
        "AlexNet",
        partial(imagenet_network, "alexnet", "IMAGENET1K_V1"),
        256,
        {"alexnet2": "features.4", "alexnet5": "features.11"},
    ),
    Network(
        "Inception v3",
        partial(imagenet_network, "inception_v3", "IMAGENET1K_V1", transform_input=True, init_weights=False),
        342,
        {"inception": "avgpool"},
    ),
    Network(
        "CLIP ViT-L/14",
        clip_network,
        224,
        {"clip": "visual_projection"},
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),
    Network(
        "EfficientNet-B1",
        partial(imagenet_network, "efficientnet_b1", "IMAGENET1K_V2"),
        255,
        {"efficientnet": "avgpool"},
    ),
    Network("SwAV ResNet-50", swav_network, 224, {"swav": "avgpool"}),
)


def require_networks() -> None:
    """Load each network once, so that missing weights are downloaded or reported before any long computation.

    Raises:
        UserError: torchvision is not installed, or weights are missing and cannot be downloaded.
    """
    for network in NETWORKS:
        try:
            network.load()
        except ImportError as error:
            raise UserError(
                f"--perceptual needs {error.name}, which is not installed: pip install 'visionflow-hf[perceptual]'"
            ) from error


def perceptual_figures(
    predictions: dict[str, np.ndarray], weights: np.ndarray, device: torch.device
) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """The figures of the model and of ridge for each subject; each an array of shape (draws,).

    Args:
        predictions: the arrays named in `visionflow_hf.evaluation.predictions`. Repeats are averaged before decoding.
        weights: how often each row counts, array of shape (draws, rows).
        device: where the networks run.

    Raises:
        UserError: as `require_networks`.
    """
    stimuli, first, position = np.unique(predictions["stimulus_id"], return_index=True, return_inverse=True)
    found: dict[str, dict] = {
        subject: {decoder: {} for decoder in DECODERS} for subject in dict.fromkeys(predictions["subject"].tolist())
    }
    images = len(NETWORKS) * (len(stimuli) + len(DECODERS) * len(position))
    with tqdm(total=images, unit="image") as bar:
        for network in NETWORKS:
            bar.set_description(network.name)
            module = network.load().to(device).eval()
            seen = features(module, network, of_rows(predictions["image"], first), bar)
            for subject, decoders in found.items():
                rows = np.flatnonzero(predictions["subject"] == subject)
                other = position[rows][:, None] != position[rows][None, :]
                for decoder, prefix in DECODERS.items():
                    made = features(module, network, of_rows(predictions[f"{prefix}reconstruction"], rows), bar)
                    for figure in network.layers:
                        correlation = cross_correlation(seen[figure][position[rows]], made[figure])
                        if figure in IDENTIFICATION:
                            decoders[decoder][figure] = two_way(correlation, other, weights[:, rows])
                        else:
                            distance = 1 - np.diag(correlation)
                            decoders[decoder][figure] = weights[:, rows] @ distance / weights[:, rows].sum(1)
    return found


def features(module: nn.Module, network: Network, images: np.ndarray, bar: tqdm) -> dict[str, np.ndarray]:
    """Outputs of the network's layers: for each figure a float32 array of shape (images, features).

    Args:
        images: uint8 array of shape (images, height, width[, 3]).
    """
    kept: dict[str, list[np.ndarray]] = {figure: [] for figure in network.layers}

    def keep(figure: str, _module, _inputs, output: torch.Tensor) -> None:
        kept[figure].append(output.flatten(1).cpu().numpy().copy())  # the next layer may work in place

    hooks = [
        module.get_submodule(layer).register_forward_hook(partial(keep, figure))
        for figure, layer in network.layers.items()
    ]
    device = next(module.parameters()).device
    for start in range(0, len(images), BATCH):
        batch = to_pixels(images[start : start + BATCH], network)
        with torch.no_grad():
            module(batch.to(device))
        bar.update(len(batch))
    for hook in hooks:
        hook.remove()
    return {figure: np.concatenate(parts) for figure, parts in kept.items()}


def to_pixels(images: np.ndarray, network: Network) -> torch.Tensor:
    """Images in the input format of the network, grey ones as RGB: (images, 3, size, size), normalised."""
    pixels = torch.from_numpy(images).float() / 255
    pixels = pixels.movedim(-1, 1) if images.ndim == 4 else pixels[:, None].expand(-1, 3, -1, -1)
    pixels = interpolate(pixels, (network.size, network.size), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values)[:, None, None] for values in (network.mean, network.std))
    return (pixels - mean) / std
