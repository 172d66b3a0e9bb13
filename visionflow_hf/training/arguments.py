"""The flags of `visionflow train` and `crossvalidate`: ModelArguments and VisionFlowTrainingArguments."""

import argparse
import json
import math
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from visionflow_hf.errors import UserError
from visionflow_hf.modeling import VisionFlowConfig

SCRATCH = "scratch"
PRETRAINED = "google/vit-base-patch16-224-in21k"
LEAST_WARMUP, SHORT_WARMUP = 10, 0.3  # steps; share of a run that is too short for them


@dataclass
class ModelArguments:
    """The architecture and the weights of its losses.

    `visionflow_hf.training.build` chooses what is None from the corpus.
    """

    encoder: str | None = field(
        default=None,
        metadata={
            "help": f"Image encoder: name or folder of a pretrained vision model, or '{SCRATCH}' for a small ViT with "
            f"new weights. Default: {PRETRAINED} for images of 64 px and more, '{SCRATCH}' below."
        },
    )
    freeze_encoder: bool | None = field(
        default=None,
        metadata={
            "help": "Do not train the image encoder. Default: true for a pretrained one, false with --from_model."
        },
    )
    unfreeze_blocks: int = field(
        default=0, metadata={"help": "Train only this many of the last blocks of a pretrained encoder."}
    )
    lora_rank: int = field(
        default=0,
        metadata={"help": "Train LoRA adapters of this rank in a pretrained encoder; needs peft. 0 for none."},
    )
    from_model: str | None = field(
        default=None,
        metadata={
            "help": "Continue from a trained VisionFlow model, a folder or a name on the Hub; its encoder and sizes "
            "are kept, and the subjects of the corpus are added."
        },
    )
    freeze_shared: bool = field(
        default=False,
        metadata={
            "help": "With --from_model: fit only the maps of subjects that the model does not know, and keep all "
            "other weights."
        },
    )
    feature_layers: list[int] | None = field(
        default=None,
        metadata={"help": "Layers of the encoder whose features are used, such as 3 6 9 -1. Default: -1, its output."},
    )
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Longer side in px of the images that the model takes and reconstructs. Default: the size of the "
            "stimuli, at most 224."
        },
    )
    latent_dim: int | None = field(
        default=None,
        metadata={
            "help": "Dimensions of the latent Gaussian that the image encoder's head makes and the image decoder "
            "reads. Default: chosen by the encoder."
        },
    )
    linear_dim: int = field(
        default=256,
        metadata={
            "help": "Further latent dimensions that are linear in the Gabor energies and colours of the image; 0 for "
            "none."
        },
    )
    bridge_hidden_size: int | None = field(
        default=None,
        metadata={"help": "Width of the MLPs between latent and fMRI. Default: chosen from the corpus."},
    )
    bridge_dropout: float = field(
        default=VisionFlowConfig.bridge_dropout, metadata={"help": "Dropout in the MLPs between latent and fMRI."}
    )
    voxel_dropout: float = field(
        default=VisionFlowConfig.voxel_dropout,
        metadata={"help": "Share of the measured voxels that each training step leaves out."},
    )
    autoencoder: str | None = field(
        default=None,
        metadata={
            "help": "Name or folder of an AutoencoderKL of diffusers whose frozen decoder makes the images. Default: "
            "none, a ConvTranspose2d decoder is trained."
        },
    )
    decoder_channels: int = field(
        default=VisionFlowConfig.decoder_channels,
        metadata={"help": "Channels of the image decoder at full resolution."},
    )
    image_weight: float = field(
        default=VisionFlowConfig.image_weight, metadata={"help": "Weight of the image reconstruction loss."}
    )
    kl_weight: float = field(default=VisionFlowConfig.kl_weight, metadata={"help": "Weight of the KL divergence."})
    alignment_weight: float = field(
        default=VisionFlowConfig.alignment_weight, metadata={"help": "Weight of the latent alignment loss."}
    )
    fmri_weight: float = field(
        default=VisionFlowConfig.fmri_weight, metadata={"help": "Weight of the fMRI reconstruction loss."}
    )

    def __post_init__(self):
        check_numbers(self)


@dataclass
class VisionFlowTrainingArguments(TrainingArguments):
    """TrainingArguments of transformers with defaults for pairs of images and fMRI.

    Raises:
        UserError: a number out of range, or a logger whose package is not installed.
    """

    bf16: bool | None = field(
        default=None, metadata={"help": "Compute in bfloat16. Default: true on a GPU that has bfloat16 units."}
    )
    fp16: bool | None = field(
        default=None, metadata={"help": "Compute in float16. Default: true on a CUDA GPU without bfloat16 units."}
    )
    num_train_epochs: float = field(
        default=0.0, metadata={"help": "Passes over the train stimuli. Default: see --max_steps."}
    )
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Train images per device and step."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Validation images per device and step."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate of the optimizer."})
    lr_scheduler_type: str = field(
        default="cosine", metadata={"help": "Learning rate schedule, such as cosine, linear or constant."}
    )
    warmup_steps: float = field(
        default=0.05,
        metadata={
            "help": "Steps in which the learning rate rises, or a share of all steps below 1. A share gives at least "
            "10 steps, or 30 %% of a run of fewer than 34 steps."
        },
    )
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of the optimizer."})
    logging_steps: float = field(
        default=0.02, metadata={"help": "Steps between logged losses, or a share of all steps below 1."}
    )
    eval_strategy: str = field(default="steps", metadata={"help": "When to validate: no, steps or epoch."})
    eval_steps: float | None = field(
        default=0.1, metadata={"help": "Steps between validations, or a share of all steps below 1."}
    )
    save_steps: float = field(
        default=0.1, metadata={"help": "Steps between checkpoints, or a share of all steps below 1."}
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Number of checkpoints to keep, the best and the last ones."}
    )
    load_best_model_at_end: bool = field(
        default=True,
        metadata={
            "help": "End with the checkpoint of the lowest validation loss; without validation, with the last step."
        },
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Kept false: the collator needs all columns."})
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "Pin batches in memory for a GPU."})
    label_names: list[str] | None = field(
        default_factory=lambda: ["fmri"], metadata={"help": "Kept: the input that a loss is computed for."}
    )
    validation_fraction: float | None = field(
        default=None,
        metadata={
            "help": "Share of the train stimuli used for validation where the corpus has no validation split. "
            "Default: 0.1 of 300 stimuli or more, 0 of fewer."
        },
    )
    stimulus_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder that keeps pixels and features of the stimuli for later runs. Default: visionflow/stimuli "
            "in HF_HOME."
        },
    )
    seed: int = field(
        default=0, metadata={"help": "Seed of initial weights, order of the images, dropout and held-out stimuli."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace an existing output folder."})

    def __post_init__(self):
        check_numbers(self)
        refuse_missing_loggers(self.report_to)
        bf16, fp16 = default_precision(self.use_cpu)
        undecided = not self.bf16 and not self.fp16
        self.precision_told = self.bf16 is not None or self.fp16 is not None
        self.bf16 = bf16 and undecided if self.bf16 is None else self.bf16
        self.fp16 = fp16 and undecided if self.fp16 is None else self.fp16
        super().__post_init__()

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Number of warm-up steps; a share gives at least 10, or 30 % of a run of fewer than 34 steps.

        AdamW's first updates have the size of the learning rate whatever the gradients are, so that a warm-up of one
        or two steps makes the losses jump.
        """
        steps = super().get_warmup_steps(num_training_steps)
        if 0 < self.warmup_steps < 1:
            steps = max(steps, min(LEAST_WARMUP, math.ceil(SHORT_WARMUP * num_training_steps)))
        return steps


def default_precision(use_cpu: bool) -> tuple[bool, bool]:
    """Whether to compute in bfloat16, and whether in float16; neither on CPU and MPS.

    V100, T4 and older GPUs emulate bfloat16, which is slower than float32.
    """
    if use_cpu or not torch.cuda.is_available():
        return False, False
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return native, not native


LEAST = {"max_steps": -1, "feature_layers": -1, "local_rank": -1} | dict.fromkeys(
    (
        *("image_size", "latent_dim", "bridge_hidden_size", "decoder_channels", "gradient_accumulation_steps"),
        *("per_device_train_batch_size", "per_device_eval_batch_size"),
    ),
    1,
)  # 0 for all others
BELOW_ONE = ("bridge_dropout", "voxel_dropout", "validation_fraction", "adam_beta1", "adam_beta2")
MOST_SEED = 2**32 - 1  # as numpy takes it


def check_numbers(args) -> None:
    """Raise `UserError` for a number that is not finite or out of its range.

    Args:
        args: either dataclass.
    """
    for item in fields(args):
        value, least = getattr(args, item.name), LEAST.get(item.name, 0)
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                continue
            if not math.isfinite(number) or number < least:
                raise UserError(f"--{item.name} is {number}: a finite number of at least {least} is expected")
            if item.name in BELOW_ONE and number >= 1:
                raise UserError(f"--{item.name} is {number}: a number from 0 to less than 1 is expected")
            if item.name == "seed" and number > MOST_SEED:
                raise UserError(f"--seed is {number}: at most {MOST_SEED} is expected")


def refuse_missing_loggers(report_to: str | list[str] | None) -> None:
    """Raise `UserError` for a logger that transformers does not know or whose package is not installed."""
    for name in [report_to] if isinstance(report_to, str) else report_to or []:
        if name in ("all", "none"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            raise UserError(
                f"--report_to is {name}: one of all, none, {', '.join(INTEGRATION_TO_CALLBACK)} is expected"
            )
        try:
            INTEGRATION_TO_CALLBACK[name]()  # the Trainer makes it again, after all the preparations
        except (ImportError, RuntimeError) as error:
            raise UserError(f"--report_to {name} cannot be used: {error}") from error


TEXT = "it is for language models, and this model reads images and fMRI"
LOSS_ALONE = "validation computes the loss alone"
RANDOM_ORDER = "the train images come in random order"
SHARDS = "it divides the weights among GPUs, but some are fitted in closed form to whole ones; launch with --multi_gpu"
HUB_ONCE = "the finished model is pushed once, to the main branch"
REFUSED = {
    "output_dir": "the output folder is RUN, the second argument of `train`",
    "do_train": "`visionflow train` always trains",
    "do_eval": "use `visionflow evaluate`",
    "do_predict": "use `visionflow encode` and `visionflow decode`",
    "hub_token": "log in with `hf auth login` or set HF_TOKEN: a token in a command line can be read by others",
    "hub_strategy": HUB_ONCE,
    "hub_always_push": HUB_ONCE,
    "hub_revision": HUB_ONCE,
    "train_sampling_strategy": RANDOM_ORDER,
    "length_column_name": RANDOM_ORDER,
    "remove_unused_columns": "the collator needs all columns",
    "label_names": "the inputs that losses are computed for are fixed",
    "label_smoothing_factor": "there are no class labels to smooth",
    "prediction_loss_only": LOSS_ALONE,
    "eval_do_concat_batches": LOSS_ALONE,
    "eval_use_gather_object": LOSS_ALONE,
    "eval_accumulation_steps": LOSS_ALONE,
    "include_for_metrics": LOSS_ALONE,
    "batch_eval_metrics": LOSS_ALONE,
    "bf16_full_eval": "validation is in the precision of training: use --bf16",
    "fp16_full_eval": "validation is in the precision of training: use --fp16",
    "average_tokens_across_devices": TEXT,
    "include_num_input_tokens_seen": TEXT,
    "neftune_noise_alpha": TEXT,
    "use_cache": TEXT,
    "use_liger_kernel": TEXT,
    "liger_kernel_config": TEXT,
    "fsdp": SHARDS,
    "fsdp_config": SHARDS,
    "deepspeed": SHARDS,
    "parallelism_config": SHARDS,
    "local_rank": "launchers state it by the environment variable LOCAL_RANK: use `torchrun` or `accelerate launch`",
}

# The flags that --help shows, by the title under which it does. --help-all shows the others, too.
OTHERS = "further settings of transformers' Trainer"
SHOWN = {
    "model": [item.name for item in fields(ModelArguments)],
    "length and optimizer": [
        *("max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps"),
        *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "seed"),
    ],
    "validation and checkpoints": [
        *("validation_fraction", "per_device_eval_batch_size", "eval_strategy", "eval_steps"),
        *("load_best_model_at_end", "save_strategy", "save_steps", "save_total_limit", "resume_from_checkpoint"),
        "overwrite",
    ],
    "logging": ["logging_steps", "report_to", "run_name", "disable_tqdm"],
    "device and data loading": ["bf16", "fp16", "use_cpu", "torch_compile", "dataloader_num_workers", "stimulus_cache"],
    "Hugging Face Hub": ["push_to_hub", "hub_model_id", "hub_private_repo"],
}
HELP = {  # of what TrainingArguments says at length
    "max_steps": "Number of optimizer steps. Default: 10 passes over the train stimuli, from 1,000 to 30,000 steps; "
    "three quarters of that without validation, where training runs twice.",
    "gradient_accumulation_steps": "Batches whose gradients are summed for one optimizer step.",
    "max_grad_norm": "Gradients with a larger norm are scaled down to it; 0 for no limit.",
    "save_strategy": "When to save checkpoints: no, steps, epoch or best.",
    "resume_from_checkpoint": "'auto' for the last checkpoint in RUN if there is one, or a checkpoint folder.",
    "report_to": "Where to log the losses, such as tensorboard or wandb; the package must be installed.",
    "run_name": "Name of the run in the logger.",
    "disable_tqdm": "Show no progress bars.",
    "use_cpu": "Train on the CPU even where there is a GPU.",
    "torch_compile": "Compile the model with torch.compile.",
    "dataloader_num_workers": "Processes that load batches; 0 to load them in the main process.",
    "push_to_hub": "Push the finished model to the Hugging Face Hub.",
    "hub_model_id": "Repository to push to, ORG/NAME. Default: the name of RUN, in your account.",
    "hub_private_repo": "Make a new repository private.",
}


class Refuse(argparse.Action):
    """A flag of TrainingArguments that cannot be given, and why."""

    def __call__(self, parser, namespace, values, option_string=None):
        raise UserError(f"--{self.dest} cannot be given: {REFUSED[self.dest]}")


class TrainingFlags(HfArgumentParser):
    """The flags of both dataclasses, as a parent of the parsers of `train` and `crossvalidate`.

    Args:
        show_all: whether help shows what is not in `SHOWN`, too.
    """

    def __init__(self, show_all: bool):
        self.show_all, self.titled = show_all, {}
        super().__init__((ModelArguments, VisionFlowTrainingArguments), add_help=False, allow_abbrev=False)

    def add_argument(self, *names, **kwargs):
        """Add the flag of one field, or refuse it; `HfArgumentParser` calls this for each."""
        if not self.titled:
            self.titled = {title: self.add_argument_group(title) for title in (*SHOWN, OTHERS)}
        name = kwargs.get("dest", names[0].removeprefix("--"))
        if name in REFUSED:
            kwargs = {"dest": name, "action": Refuse, "nargs": "?", "default": argparse.SUPPRESS}
            return super().add_argument(*names, help=argparse.SUPPRESS, **kwargs)
        title = next((title for title, members in SHOWN.items() if name in members), OTHERS)
        if kwargs.get("action") == "store_false" or (title == OTHERS and not self.show_all):
            kwargs["help"] = argparse.SUPPRESS
        else:
            default = kwargs.get("default")
            default = default.value if isinstance(default, Enum) else default
            kwargs["help"] = HELP.get(name, kwargs["help"])
            if default not in (None, "") and "Default: " not in kwargs["help"]:
                kwargs["help"] += f" (default: {str(default).lower() if isinstance(default, bool) else default})"
        if kwargs.get("type") is string_to_bool:
            kwargs |= {"nargs": "?", "const": True, "metavar": "true|false"}
        elif "choices" not in kwargs and "action" not in kwargs:
            kwargs["metavar"] = {int: "N", float: "X"}.get(kwargs["type"], "VALUE")
        return self.titled[title].add_argument(*names, **kwargs)


def dataclasses_of(flags: dict) -> tuple[ModelArguments, VisionFlowTrainingArguments]:
    """Both dataclasses from parsed flags, each under its field's name.

    Raises:
        UserError: a value that they refuse.
    """
    try:
        return tuple(
            part(**{item.name: flags[item.name] for item in fields(part) if item.name in flags})
            for part in (ModelArguments, VisionFlowTrainingArguments)
        )
    except (ValueError, TypeError, OSError) as error:
        raise UserError(str(error)) from error


def config_words(file: Path) -> list[str]:
    """The flags of a YAML file as words of a command line; a null leaves its flag at the default.

    Raises:
        UserError: no such file, or something else in it than known flags.
    """
    try:
        values = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"--config {file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {file} holds {type(values).__name__}: lines of the form `flag: value` are expected")
    known = {item.name for part in (ModelArguments, VisionFlowTrainingArguments) for item in fields(part)}
    unknown = sorted(map(str, set(values) - known))
    if unknown:
        raise UserError(f"--config {file} has unknown flags {', '.join(unknown)}: see `visionflow train --help-all`")
    words = []
    for name, value in values.items():
        if isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        elif value is not None:
            words += [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"]
    return words
