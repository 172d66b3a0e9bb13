"""What `visionflow train` can be told: the model's arguments, and TrainingArguments with defaults of our own."""

import argparse
import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

from visionflow_hf.errors import UserError

SCRATCH = "scratch"
PRETRAINED = "google/vit-base-patch16-224-in21k"
IMAGE_STAGE, LONG_IMAGE_STAGE = 0.6, 0.75
LEAST_WARMUP, SHORT_WARMUP = 10, 0.3  # steps; of a run too short for them


@dataclass
class ModelArguments:
    """The architecture and its losses. What is None is chosen from the corpus, see `visionflow_hf.training.build`."""

    encoder: str | None = field(
        default=None,
        metadata={
            "help": f"Image encoder: name or folder of a pretrained vision model, or '{SCRATCH}' for a small ViT. "
            f"Default: {PRETRAINED} for images of 64 px and more, {SCRATCH} below."
        },
    )
    freeze_encoder: bool | None = field(
        default=None,
        metadata={"help": "Keep the encoder's weights. Default: those of a pretrained one, not with --from-model."},
    )
    unfreeze_blocks: int = field(
        default=0, metadata={"help": "How many of the last blocks of a pretrained encoder learn, and no others."}
    )
    lora_rank: int = field(
        default=0,
        metadata={"help": "Rank of LoRA adapters that learn beside a pretrained encoder's weights; needs peft."},
    )
    from_model: str | None = field(
        default=None,
        metadata={
            "help": "A trained model, a folder or a name on the Hub, whose image side and sizes to begin with; "
            "it learns on, and knows the subjects of the new corpus."
        },
    )
    freeze_shared: bool = field(
        default=False,
        metadata={
            "help": "With --from-model: keep all that subjects share, and the subjects that the model knows. Only the "
            "maps of the new subjects are fitted, for which some tens of trials do."
        },
    )
    feature_layers: list[int] | None = field(
        default=None,
        metadata={"help": "Layers of the encoder that the latent reads, such as 3 6 9 -1. Default: -1, its output."},
    )
    image_size: int | None = field(
        default=None,
        metadata={"help": "Longer side in px of what is taken and reconstructed. Default: the stimuli's, at most 224."},
    )
    latent_dim: int | None = field(default=None, metadata={"help": "Learned dimensions of the shared latent Gaussian."})
    wavelet_dim: int = field(
        default=256, metadata={"help": "Further dimensions, linear in the image's Gabor-wavelet energies; 0 for none."}
    )
    bridge_hidden_size: int | None = field(
        default=None, metadata={"help": "Width of the MLPs between latent and fMRI."}
    )
    bridge_dropout: float = field(default=0.3, metadata={"help": "Dropout in these MLPs."})
    voxel_dropout: float = field(default=0.5, metadata={"help": "Share of voxels left out of a training step's fMRI."})
    autoencoder: str | None = field(
        default=None,
        metadata={
            "help": "Name or folder of an AutoencoderKL of diffusers, whose frozen decoder makes the pixels. "
            "Default: none, the ConvTranspose2d stack makes them."
        },
    )
    decoder_channels: int = field(default=16, metadata={"help": "Channels of the image decoder at full resolution."})
    image_weight: float = field(default=0.3, metadata={"help": "Weight of the image reconstruction loss."})
    kl_weight: float = field(default=0.03, metadata={"help": "Weight of the KL divergence."})
    alignment_weight: float = field(
        default=0.1,
        metadata={
            "help": "Weight of the latent alignment loss where a plain Trainer fine-tunes the model; `train` has "
            "a stage for that loss alone."
        },
    )
    fmri_weight: float = field(default=1.0, metadata={"help": "Weight of the fMRI reconstruction loss."})


@dataclass
class VisionFlowTrainingArguments(TrainingArguments):
    """TrainingArguments with defaults for pairs of images and fMRI; every flag of the parent can be given."""

    bf16: bool | None = field(
        default=None,
        metadata={
            "help": "Compute in bfloat16, on float32 weights. Default: where a GPU has it, and where a CPU is faster "
            "in it and a large encoder learns."
        },
    )
    num_train_epochs: float = field(
        default=0.0,
        metadata={"help": "Passes over the train rows. Default: chosen from the corpus, as --max_steps is."},
    )
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Pairs a device and step."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Pairs a device and step in validation."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Course of the learning rate."})
    warmup_steps: float = field(
        default=0.05,
        metadata={"help": "Warm-up in steps, or as a share of all: then 10 steps at least, or 30 %% of a short run."},
    )
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    logging_steps: float = field(default=0.02, metadata={"help": "Steps between logged losses, or a share of all."})
    eval_strategy: str = field(default="steps", metadata={"help": "When to validate: no, steps or epoch."})
    eval_steps: float | None = field(default=0.1, metadata={"help": "Steps between validations, or a share of all."})
    save_steps: float = field(default=0.1, metadata={"help": "Steps between checkpoints, or a share of all."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept: the best and the last."})
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "Keep the checkpoint with the lowest validation loss, not the last one."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay false: the collator reads them all."}
    )
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "Pin batches in memory for a GPU."})
    label_names: list[str] | None = field(
        default_factory=lambda: ["fmri"], metadata={"help": "Inputs that make a batch one with a loss."}
    )
    image_stage: float | None = field(
        default=None,
        metadata={
            "help": "Share of the steps in which the image side learns alone, before the fMRI side is fitted into it. "
            f"Default: {IMAGE_STAGE}; {LONG_IMAGE_STAGE} without validation, where the decoder learns nothing after it."
        },
    )
    validation_fraction: float | None = field(
        default=None,
        metadata={
            "help": "Share of the train stimuli held out for validation where the corpus has no such split. "
            "Default: 0.1 of 300 stimuli or more, none of fewer, which the model cannot spare."
        },
    )
    stimulus_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder for the stimuli's pixels and a frozen encoder's features, which all runs share. "
            "Default: visionflow/stimuli in HF_HOME."
        },
    )
    seed: int = field(default=0, metadata={"help": "One seed, one result: weights, order, sampling, held-out stimuli."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an existing folder."})

    def __post_init__(self):
        self.precision_told = self.bf16 is not None or self.fp16
        if self.bf16 is None:
            gpu = torch.cuda.is_available() and not self.use_cpu
            self.bf16 = gpu and torch.cuda.is_bf16_supported() and not self.fp16
        super().__post_init__()

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Steps of warm-up; where a share is asked for, 10 at least or, of a run of fewer than 34 steps, 30 %.

        AdamW's first updates have the size of the learning rate whatever the gradients are, so that steps at the peak
        before it has seen some gradients make the losses jump, and rounding differences with them.
        """
        steps = super().get_warmup_steps(num_training_steps)
        if 0 < self.warmup_steps < 1:
            steps = max(steps, min(LEAST_WARMUP, math.ceil(SHORT_WARMUP * num_training_steps)))
        return steps


class TrainingParser(HfArgumentParser):
    """A flag for every field of both dataclasses, and `--config FILE.yaml` for many of them at once."""

    def __init__(self, prog: str, **kwargs):
        super().__init__((ModelArguments, VisionFlowTrainingArguments), prog=prog, allow_abbrev=False, **kwargs)
        self.add_argument(
            "--config", type=Path, metavar="FILE.yaml", help="Flags in a file; the command line overrides."
        )

    def error(self, message: str):
        raise UserError(f"{message} (see `{self.prog} --help`)")

    def parse(self, argv: list[str]) -> tuple[ModelArguments, VisionFlowTrainingArguments, argparse.Namespace]:
        """Both dataclasses, and what else the command has asked for."""
        config = self.parse_args(argv).config
        if config is not None:
            self.set_defaults(**read_config(config))
        try:
            return self.parse_args_into_dataclasses(argv, look_for_args_file=False)
        except (ValueError, TypeError) as error:
            raise UserError(str(error)) from error


def read_config(file: Path) -> dict:
    """The flags of a YAML file, which those of the command line override."""
    try:
        values = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"--config {file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {file} holds {type(values).__name__}: lines of the form `flag: value` are expected")
    known = {item.name for part in (ModelArguments, VisionFlowTrainingArguments) for item in dataclasses.fields(part)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UserError(f"--config {file} has unknown flags {', '.join(unknown)}: see `visionflow train --help`")
    return values
