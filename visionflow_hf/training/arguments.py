"""The arguments of training: ModelArguments and VisionFlowTrainingArguments."""

import math
import os
from dataclasses import dataclass, field, fields
from datetime import timedelta

import torch
from torch import distributed
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from visionflow_hf.errors import UserError
from visionflow_hf.modeling import VisionFlowConfig
from visionflow_hf.modeling.configuration_visionflow import MOST_DIMENSIONS

SCRATCH = "scratch"
PRETRAINED = "google/vit-base-patch16-224-in21k"
IN_STEP = ("save_strategy", "eval_strategy", "save_steps", "eval_steps")  # what is not given follows the other one
REGULAR = ("steps", "epoch")  # the strategies that it follows
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
            "help": "Continue from a trained VisionFlow model, a folder or a name on the Hub; its encoder, decoder and "
            "sizes are kept. Its subjects are replaced by those of the corpus, or kept with --freeze_shared."
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
        metadata={
            "help": "Layers of the encoder that are read, such as 3 6 9 -1. Default: its output, and up to five at "
            "different depths of a pretrained one for the linear dimensions."
        },
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
            "help": "Learned dimensions of the latent, which the image decoder reads. Default: 128 with a small ViT, "
            "else 256."
        },
    )
    linear_dim: int | None = field(
        default=None,
        metadata={
            "help": "Further latent dimensions that are linear in the image's Gabor energies, its colours and layers "
            "of a pretrained encoder; no more than there are train stimuli. 0 for none. "
            f"Default: {VisionFlowConfig.linear_dim}."
        },
    )
    bridge_hidden_size: int | None = field(
        default=None,
        metadata={
            "help": "Width of the MLPs between latent and fMRI. Default: between 128 and 1,024, smaller the more "
            "voxels there are."
        },
    )
    bridge_dropout: float | None = field(
        default=None,
        metadata={"help": f"Dropout in the MLPs between latent and fMRI. Default: {VisionFlowConfig.bridge_dropout}."},
    )
    voxel_dropout: float | None = field(
        default=None,
        metadata={
            "help": "Share of the measured voxels left out of a step where the model is fine-tuned in code. "
            f"Default: {VisionFlowConfig.voxel_dropout}."
        },
    )
    autoencoder: str | None = field(
        default=None,
        metadata={
            "help": "Name or folder of an AutoencoderKL of diffusers whose frozen decoder makes the images. Default: "
            "none, a ConvTranspose2d decoder is trained."
        },
    )
    decoder_channels: int | None = field(
        default=None,
        metadata={
            "help": f"Channels of the image decoder at full resolution. Default: {VisionFlowConfig.decoder_channels}."
        },
    )
    image_weight: float | None = field(
        default=None,
        metadata={"help": f"Weight of the image reconstruction loss. Default: {VisionFlowConfig.image_weight}."},
    )
    kl_weight: float | None = field(
        default=None,
        metadata={"help": f"Weight of the KL divergence. Default: {VisionFlowConfig.kl_weight}."},
    )
    alignment_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the latent alignment loss, for fine-tuning in code. "
            f"Default: {VisionFlowConfig.alignment_weight}."
        },
    )
    fmri_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the fMRI reconstruction loss, for fine-tuning in code. "
            f"Default: {VisionFlowConfig.fmri_weight}."
        },
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
    eval_strategy: str | None = field(
        default=None,
        metadata={"help": "When to validate: no, steps or epoch. Default: as --save_strategy, or steps."},
    )
    save_strategy: str | None = field(
        default=None,
        metadata={"help": "When to save checkpoints: no, steps, epoch or best. Default: as --eval_strategy, or steps."},
    )
    eval_steps: float | None = field(
        default=None,
        metadata={"help": "Steps between validations, or a share of all steps below 1. Default: as --save_steps."},
    )
    save_steps: float | None = field(
        default=None,
        metadata={
            "help": "Steps between checkpoints, or a share of all steps below 1. Default: as --eval_steps, or 0.1."
        },
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
    remove_unused_columns: bool = field(default=False, metadata={"help": "Kept false: the batches have no columns."})
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "Pin batches in memory for a GPU."})
    label_names: list[str] | None = field(
        default_factory=lambda: ["pixel_values"], metadata={"help": "Kept: the input that a loss is computed for."}
    )
    ddp_timeout: int = field(
        default=7 * 24 * 3600,
        metadata={"help": "Seconds that processes wait for one another: fits of one subject can take hours."},
    )
    validation_fraction: float | None = field(
        default=None,
        metadata={
            "help": "Share of the train stimuli used for validation where the corpus has no validation split. "
            "Default: 0.1 if there are 300 train stimuli or more, otherwise 0."
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
        if self.metric_for_best_model not in JUDGES:
            raise UserError(
                f"--metric_for_best_model is {self.metric_for_best_model}: loss, loss_image or loss_kl is expected"
            )
        of_workers = (
            "dataloader_persistent_workers",
            "dataloader_prefetch_factor",
            "dataloader_multiprocessing_context",
        )
        of_workers = [name for name in of_workers if getattr(self, name, None)]
        if of_workers and not self.dataloader_num_workers:
            raise UserError(f"--{of_workers[0]} is for workers: give --dataloader_num_workers, too")
        there_is_a_gpu = torch.cuda.is_available() or torch.accelerator.is_available()
        if self.fp16 and (self.use_cpu or not there_is_a_gpu):
            raise UserError("--fp16 true needs a GPU, and the CPU is used: give --bf16 true, or neither")
        self.use_cpu = self.use_cpu or (bool(self.bf16) and not there_is_a_gpu)
        if self.torch_compile_mode not in COMPILE_MODES:
            raise UserError(
                f"--torch_compile_mode is {self.torch_compile_mode}: one of {', '.join(COMPILE_MODES[1:])} is expected"
            )
        of_push = [f"--{name}" for name in ("hub_model_id", "hub_private_repo") if getattr(self, name)]
        if of_push and not self.push_to_hub:
            raise UserError(f"{' and '.join(of_push)} without --push_to_hub: give that too, or leave it out")
        self.not_given = {name for name in IN_STEP if getattr(self, name) is None}
        if self.metric_for_best_model is not None and self.greater_is_better is None:
            self.greater_is_better = False  # transformers takes what does not end in "loss" for a score
            self.not_given.add("greater_is_better")
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = True  # such as an encoder's pooler; Trainer's default depends
            self.not_given.add("ddp_find_unused_parameters")
        steps = [one for one in (self.save_steps, self.eval_steps, 0.1) if one is not None]
        self.save_steps = steps[0] if self.save_steps is None else self.save_steps
        self.eval_steps = steps[0] if self.eval_steps is None else self.eval_steps
        saved, validated = self.save_strategy, self.eval_strategy
        self.save_strategy = saved or (validated if validated in REGULAR else "steps")
        self.eval_strategy = validated or (saved if saved in REGULAR else "steps")
        if "no" in (self.save_strategy, self.eval_strategy):
            self.load_best_model_at_end = False
            self.not_given.add("load_best_model_at_end")
        if self.save_strategy == "best" and (self.eval_strategy == "no" or not self.load_best_model_at_end):
            raise UserError(
                "--save_strategy best needs validation, and --load_best_model_at_end true: give other flags"
            )
        refuse_missing_loggers(self.report_to)
        bf16, fp16 = default_precision(self.use_cpu)
        undecided = not self.bf16 and not self.fp16
        self.precision_told = self.bf16 is not None or self.fp16 is not None
        self.bf16 = bf16 and undecided if self.bf16 is None else self.bf16
        self.fp16 = fp16 and undecided if self.fp16 is None else self.fp16
        several = int(os.environ.get("WORLD_SIZE", 1)) > 1 and not distributed.is_initialized()
        if self.use_cpu and several:  # transformers heeds --ddp_timeout on GPUs alone, and gloo waits for 30 minutes
            waits = timedelta(seconds=self.ddp_timeout)
            distributed.init_process_group(self.ddp_backend or "gloo", timeout=waits)
        super().__post_init__()

    @property
    def n_gpu(self) -> int:
        """One GPU at most: Trainer would divide each batch among several by `nn.DataParallel`, in float32."""
        return min(super().n_gpu, 1)

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
JUDGES = (None, *(f"{prefix}{name}" for prefix in ("", "eval_") for name in ("loss", "loss_image", "loss_kl")))
COMPILE_MODES = (None, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
BELOW_ONE = ("bridge_dropout", "voxel_dropout", "validation_fraction", "adam_beta1", "adam_beta2")
MOST = {"seed": 2**32 - 1, "latent_dim": MOST_DIMENSIONS, "linear_dim": MOST_DIMENSIONS}  # what numpy takes


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
            if number > MOST.get(item.name, number):
                raise UserError(f"--{item.name} is {number}: at most {MOST[item.name]} is expected")


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
