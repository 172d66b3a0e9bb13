# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""VisionFlowConfig: every size and weight of the architecture."""

import copy
from collections.abc import Sequence

import transformers

try:
    from transformers import AutoConfig, PreTrainedConfig
    from transformers.configuration_utils import SubConfigSpec
except ImportError as error:
    raise ImportError(
        f"VisionFlow needs transformers>=5.20, and {transformers.__version__} is installed: pip install -U transformers"
    ) from error

from .sizes import bridge_width, small_vit
from .vision_encoder import PLAIN, layer_widths, layers_by_depth, native_image_size

TAGS = ("visionflow", "fmri", "visual-cortex", "brain-decoding", "brain-encoding")  # on the Hub
MOST_SIDE = 10_000  # px; the decoder of a damaged config could have a thousand layers
MOST_DIMENSIONS = 2000  # of the latent: what one ridge is judged by
MOST_LAYERS = 1000  # of the encoder, which are built one by one before any weight is read
PIPELINES = {
    "image-to-fmri": {"impl": "pipeline_visionflow.ImageToFmriPipeline", "pt": ["AutoModel"]},
    "fmri-to-image": {"impl": "pipeline_visionflow.FmriToImagePipeline", "pt": ["AutoModel"]},
    "image-feature-extraction": {"impl": "pipeline_visionflow.ImageFeaturesPipeline", "pt": ["AutoModel"]},
}


class VisionFlowConfig(PreTrainedConfig):
    r"""
    Args:
        vision_config (`PreTrainedConfig` or `dict`, *optional*, defaults to a ViT-B/16):
            Configuration of the image encoder, of any vision family that `AutoModel` knows.
        image_size (`list[int]`, *optional*, defaults to `[224, 224]`):
            Height and width in px of the images that the model takes and reconstructs.
        encoder_image_size (`list[int]`, *optional*, defaults to the encoder's own `image_size`):
            Height and width in px to which the model resizes them for the encoder.
        num_channels (`int`, *optional*, defaults to 3):
            1 for grey stimuli, 3 for RGB.
        image_mean, image_std (`list[float]`, *optional*, defaults to 0.5 for each channel):
            Normalisation that the encoder was trained with, on a 0..1 scale.
        feature_grid (`int`, *optional*, defaults to 4):
            The encoder's patch tokens are averaged over a grid of this many cells a side and read beside its class
            token; 0 reads the class token alone.
        feature_layers (`list[int]`, *optional*, defaults to `[-1]`):
            The encoder's layers that are read so, by their place in its `hidden_states`; -1 is its final output.
        feature_widths (`list[int]`, *optional*, defaults to the width of each layer):
            The number of channels of each of these layers.
        latent_dim (`int`, *optional*, defaults to 256):
            Dimensions of the latent Gaussian that the image encoder's head makes and the image decoder reads.
        linear_dim (`int`, *optional*, defaults to 256):
            Further dimensions of the latent, linear in the image's Gabor energies and colours and in the maps of
            `linear_layers`; 0 for none. The image decoder does not read them, the linear path to pixels does.
        linear_layers (`list[int]`, *optional*, defaults to `[]`):
            The encoder's layers that they read, averaged over 7 x 7 cells, by their place in its `hidden_states`.
        linear_widths (`list[int]`, *optional*, defaults to the width of each layer):
            The number of channels of each of these layers.
        subjects (`list[str]`, *optional*, defaults to `[]`):
            Names of the subjects; a row's `subject_ids` is the place in this list.
        num_voxels (`list[int]`, *optional*, defaults to `[]`):
            Number of voxels of each subject.
        noise_rank (`int`, *optional*, defaults to 64):
            Directions in which the noise of each subject's voxels is shared; the rest is independent of other voxels'.
        bridge_hidden_size (`int`, *optional*, defaults to 256):
            Width of the two shared MLPs between latent and fMRI.
        bridge_dropout (`float`, *optional*, defaults to 0.3):
            Dropout in these MLPs.
        voxel_dropout (`float`, *optional*, defaults to 0.5):
            Share of the voxels that a training step leaves out of the measured fMRI.
        decoder_type (`str`, *optional*, defaults to `"conv_transpose"`):
            `"conv_transpose"`, a stack of ConvTranspose2d layers that ends at the pixels; or `"autoencoder_kl"`, where
            it ends at the latents of a frozen AutoencoderKL of diffusers, which makes pixels of them.
        autoencoder_config (`dict`, *optional*):
            Configuration of that AutoencoderKL.
        decoder_channels (`int`, *optional*, defaults to 16):
            Channels of the stack at full resolution; they double with every halving, up to `decoder_max_channels`.
        decoder_max_channels (`int`, *optional*, defaults to 256):
            Their upper bound.
        linear_share (`float`, *optional*, defaults to 0.0):
            Share of the decoded image that comes from a linear map of the latent to pixels, from 0 to 1; the rest comes
            from the image decoder.
        refine_steps (`int`, *optional*, defaults to 0):
            Gradient steps by which each reconstruction from fMRI is refined, as `reconstruct_image(..., refine=N)`
            does. `visionflow train` chooses it.
        brightness (`float`, *optional*, defaults to 1.0):
            By which every decoded image is multiplied, above 0 and at most 1. `visionflow train` chooses it.
        image_weight, kl_weight, alignment_weight, fmri_weight (`float`, *optional*, defaults to 0.3, 0.03, 0.1, 1.0):
            Weights of the four losses, each a mean per element (pixel, latent dimension, latent dimension, voxel).
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights of the linear layers.
    """

    model_type = "visionflow"
    keys_to_ignore_at_inference = [  # Trainer's `predictions` are then `reconstruction` and `fmri`
        *("loss_image", "loss_kl", "loss_alignment", "loss_fmri", "image_latent_mean", "image_latent_logvar"),
        *("fmri_latent_mean", "fmri_latent_logvar", "hidden_states", "attentions"),
    ]
    sub_configs_defaults = {"vision_config": SubConfigSpec(config_class=AutoConfig, model_type="vit")}

    vision_config: dict | PreTrainedConfig | None = None
    image_size: Sequence[int] = (224, 224)
    encoder_image_size: Sequence[int] | None = None
    num_channels: int = 3
    image_mean: Sequence[float] = (0.5, 0.5, 0.5)
    image_std: Sequence[float] = (0.5, 0.5, 0.5)
    feature_grid: int = 4
    feature_layers: Sequence[int] = (-1,)
    feature_widths: Sequence[int] | None = None
    latent_dim: int = 256
    linear_dim: int = 256
    linear_layers: Sequence[int] = ()
    linear_widths: Sequence[int] | None = None
    subjects: Sequence[str] = ()
    num_voxels: Sequence[int] = ()
    noise_rank: int = 64
    bridge_hidden_size: int = 256
    bridge_dropout: float = 0.3
    voxel_dropout: float = 0.5
    decoder_type: str = "conv_transpose"
    autoencoder_config: dict | None = None
    decoder_channels: int = 16
    decoder_max_channels: int = 256
    linear_share: float = 0.0
    refine_steps: int = 0
    brightness: float = 1.0
    image_weight: float = 0.3
    kl_weight: float = 0.03
    alignment_weight: float = 0.1
    fmri_weight: float = 1.0
    initializer_range: float = 0.02
    custom_pipelines: dict | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.custom_pipelines = copy.deepcopy(PIPELINES)  # `pipeline()` writes into it
        for name in ("image_size", "encoder_image_size"):
            if isinstance(getattr(self, name), int):
                setattr(self, name, [getattr(self, name)] * 2)
        lists = ("image_size", "image_mean", "image_std", "feature_layers", "linear_layers", "subjects", "num_voxels")
        for name in lists:
            setattr(self, name, list(getattr(self, name)))  # as JSON gives them back
        if self.encoder_image_size is None:  # an encoder that states no size takes any
            self.encoder_image_size = native_image_size(self.vision_config) or self.image_size
        self.encoder_image_size = list(self.encoder_image_size)
        if len(self.image_size) != 2 or not all(1 <= side <= MOST_SIDE for side in self.image_size):
            raise ValueError(
                f"image_size is {self.image_size}: [height, width] in px is expected, {MOST_SIDE:,} at most"
            )
        layers = stated_layers(self.vision_config)
        if layers > MOST_LAYERS:
            raise ValueError(f"vision_config states {layers:,} layers: {MOST_LAYERS:,} at most are expected")
        if not self.feature_layers:
            raise ValueError(
                "feature_layers is empty: places in the encoder's hidden_states are expected, such as [-1], its output"
            )
        if len(set(self.linear_layers)) < len(self.linear_layers):
            raise ValueError(f"linear_layers is {self.linear_layers}: each layer is expected once")
        if not self.linear_layers:
            self.linear_widths = []
        if self.feature_widths is None or self.linear_widths is None:
            widths = self.encoder_widths()
            self.feature_widths = self.feature_widths or widths[: len(self.feature_layers)]
            self.linear_widths = widths[len(self.feature_layers) :]
        self.feature_widths, self.linear_widths = list(self.feature_widths), list(self.linear_widths)
        if self.vision_config.model_type in PLAIN:  # another one is run for its widths, which takes a second
            self.check_widths()
        if self.latent_dim < 1 or self.linear_dim < 0:
            raise ValueError(
                f"latent_dim is {self.latent_dim}, linear_dim {self.linear_dim}: at least 1 and at least 0 are expected"
            )
        if max(self.latent_dim, self.linear_dim) > MOST_DIMENSIONS:
            raise ValueError(
                f"latent_dim is {self.latent_dim}, linear_dim {self.linear_dim}: at most {MOST_DIMENSIONS} are expected"
            )
        if self.num_channels not in (1, 3):
            raise ValueError(f"num_channels is {self.num_channels}: 1 (grey) or 3 (RGB) is expected")
        if not 0 <= self.linear_share <= 1:
            raise ValueError(f"linear_share is {self.linear_share}: a share from 0 to 1 is expected")
        if self.refine_steps < 0:
            raise ValueError(f"refine_steps is {self.refine_steps}: 0 or a number of steps is expected")
        if not 0 < self.brightness <= 1:
            raise ValueError(f"brightness is {self.brightness}: a number above 0, and at most 1, is expected")
        if self.decoder_type not in ("conv_transpose", "autoencoder_kl"):
            raise ValueError(f"decoder_type is {self.decoder_type}: conv_transpose or autoencoder_kl is expected")
        if (self.decoder_type == "autoencoder_kl") != (self.autoencoder_config is not None):
            raise ValueError("autoencoder_config belongs to decoder_type autoencoder_kl: give both or neither")
        if len(self.subjects) != len(self.num_voxels) or len(set(self.subjects)) != len(self.subjects):
            raise ValueError(
                f"subjects {self.subjects} and num_voxels {self.num_voxels}: distinct names and one "
                "voxel count for each are expected"
            )

    def encoder_widths(self) -> list[int]:
        """Width of each of `feature_layers`, then of each of `linear_layers`, as `layer_widths` gives them."""
        return layer_widths(self.vision_config, [*self.feature_layers, *self.linear_layers], self.encoder_image_size)

    def check_widths(self) -> None:
        """
        Raises:
            ValueError: The encoder has no such layers, or layers of other widths.
        """
        stated, widths = [*self.feature_widths, *self.linear_widths], self.encoder_widths()
        if stated != widths:
            raise ValueError(
                f"feature_widths and linear_widths are {stated}: the encoder's layers have {widths}; leave both out"
            )

    @classmethod
    def for_dataset(cls, rows, processor, **settings) -> "VisionFlowConfig":
        """The config for a train split, with sizes as in `visionflow train`.

        The encoder is a small ViT unless `vision_config` is given: `visionflow train` loads a pretrained one for larger
        images.

        Args:
            rows (`datasets.Dataset`): the train split. Its number of distinct `stimulus_id`, or of rows where it has no
                such column, bounds `linear_dim`.
            processor (`VisionFlowProcessor`): that of these rows, `VisionFlowProcessor.from_dataset(rows)`.
            settings: arguments of `VisionFlowConfig` that are not to be chosen.

        Raises:
            ValueError: settings that contradict one another, or an encoder whose layers give no feature maps.
        """
        num_voxels = [len(processor.fmri_mean[name]) for name in processor.subjects]
        stimuli = len(set(rows["stimulus_id"])) if "stimulus_id" in rows.column_names else len(rows)
        chosen = {
            "image_size": processor.image_size,
            "num_channels": processor.num_channels,
            "subjects": processor.subjects,
            "num_voxels": num_voxels,
            "bridge_hidden_size": bridge_width(num_voxels),
        }
        vision = settings.get("vision_config")
        if vision is None:
            vision = chosen["vision_config"] = small_vit(processor.image_size, processor.num_channels)
            chosen |= {"feature_grid": vision.image_size[0] // vision.patch_size, "latent_dim": 128}
        elif "linear_layers" not in settings:
            if isinstance(vision, dict):
                vision = settings["vision_config"] = AutoConfig.for_model(**vision)
            size = settings.get("encoder_image_size") or native_image_size(vision) or processor.image_size
            size = [size] * 2 if isinstance(size, int) else size
            chosen["linear_layers"] = layers_by_depth(vision, list(size))
        settings["linear_dim"] = min(settings.get("linear_dim", cls.linear_dim), stimuli)
        return cls(**(chosen | settings))

    def to_dict(self):
        return super().to_dict() | {"custom_pipelines": copy.deepcopy(PIPELINES)}


def stated_layers(vision_config) -> int:
    """Layers of an encoder, or of the deepest of its stages, as its config states them; 0 if it does not."""
    stated = [getattr(vision_config, name, None) for name in ("num_hidden_layers", "depths")]
    numbers = [one for value in stated for one in (value if isinstance(value, (list, tuple)) else [value])]
    return max((one for one in numbers if isinstance(one, int)), default=0)


__all__ = ["VisionFlowConfig"]
