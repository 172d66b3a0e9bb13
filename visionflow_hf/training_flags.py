"""The flags of `visionflow train` and `crossvalidate`, made from the dataclasses of their arguments."""

import argparse
import json
from dataclasses import asdict, fields
from enum import Enum
from pathlib import Path

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from visionflow_hf.errors import UserError
from visionflow_hf.training.arguments import ModelArguments, VisionFlowTrainingArguments

TEXT = "it is for language models, and this model reads images and fMRI"
LOSS_ALONE = "validation computes the loss alone"
RANDOM_ORDER = "the train images come in random order"
SHARDS = "it divides the weights among GPUs, but the closed-form fits need whole weights; launch with --multi_gpu"
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
    "remove_unused_columns": "the batches have no columns",
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
    "local_rank": "a launcher sets it as the environment variable LOCAL_RANK: use `torchrun` or `accelerate launch`",
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
    "max_steps": "Number of optimizer steps of the image stage, which runs twice where no stimuli are kept for "
    "validation. Default: 10 passes over the stimuli, from 750 to 30,000 steps.",
    "gradient_accumulation_steps": "Batches whose gradients are summed for one optimizer step.",
    "max_grad_norm": "Gradients with a larger norm are scaled down to it; 0 for no limit.",
    "resume_from_checkpoint": "'auto' for the last checkpoint in RUN if there is one, or a checkpoint folder.",
    "report_to": "Where to log the losses, such as trackio, tensorboard or wandb; the package must be installed.",
    "run_name": "Name of the run in the logger.",
    "disable_tqdm": "Show no progress bars.",
    "use_cpu": "Train on the CPU even where there is a GPU.",
    "torch_compile": "Compile the model with torch.compile.",
    "dataloader_num_workers": "Processes that load batches; 0 to load them in the main process.",
    "push_to_hub": "Push the finished model to the Hugging Face Hub.",
    "hub_model_id": "Repository to push to, ORG/NAME. Default: the name of RUN, in your account.",
    "hub_private_repo": "Make a new repository private.",
}


STRATEGIES = ("save_strategy", "eval_strategy", "logging_strategy")
OF_THIS_RUN = ("overwrite", "resume_from_checkpoint")  # what a repeated run is to be asked again


NO_MODEL = "crossvalidate keeps no model: use `visionflow train`"
REFUSED_BY_CROSSVALIDATE = REFUSED | dict.fromkeys(
    ("resume_from_checkpoint", "push_to_hub", "hub_model_id", "hub_private_repo"), NO_MODEL
)


class Refuse(argparse.Action):
    """A flag of TrainingArguments that cannot be given, and why."""

    def __init__(self, *args, why: str, **kwargs):
        super().__init__(*args, **kwargs)
        self.why = why

    def __call__(self, parser, namespace, values, option_string=None):
        raise UserError(f"--{self.dest} cannot be given: {self.why}")


class TrainingFlags(HfArgumentParser):
    """The flags of both dataclasses, as a parent of the parsers of `train` and `crossvalidate`.

    Args:
        show_all: whether help shows what is not in `SHOWN`, too.
        refused: flags that cannot be given, and why.
    """

    def __init__(self, show_all: bool, refused: dict[str, str]):
        self.show_all, self.refused, self.titled = show_all, refused, {}
        super().__init__((ModelArguments, VisionFlowTrainingArguments), add_help=False, allow_abbrev=False)

    def add_argument(self, *names, **kwargs):
        """Add the flag of one field, or refuse it; `HfArgumentParser` calls this for each."""
        if not self.titled:
            self.titled = {title: self.add_argument_group(title) for title in (*SHOWN, OTHERS)}
        name = kwargs.get("dest", names[0].removeprefix("--"))
        if name in self.refused:
            kwargs = {"dest": name, "action": Refuse, "nargs": "?", "default": argparse.SUPPRESS}
            kwargs["why"] = self.refused[name]
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
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"--config {file} cannot be read: {' '.join(str(error).split())}") from error
    values = {} if values is None else values  # an empty file
    if not isinstance(values, dict):
        raise UserError(f"--config {file} holds {type(values).__name__}: lines of the form `flag: value` are expected")
    values = {str(name).replace("-", "_"): value for name, value in values.items()}
    known = {item.name for part in (ModelArguments, VisionFlowTrainingArguments) for item in fields(part)}
    unknown = sorted(map(str, set(values) - known))
    if unknown:
        raise UserError(f"--config {file} has unknown flags {', '.join(unknown)}: see `visionflow train --help-all`")
    words = []
    for name, value in values.items():
        if value is False and name in STRATEGIES:
            value = "no"  # which YAML takes for false
        if isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        elif value is not None:
            words += [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"]
    return words


def plain_value(value):
    """A value, or a list of them, without enums."""
    if isinstance(value, list):
        return [plain_value(one) for one in value]
    return value.value if isinstance(value, Enum) else value


def told(model_args: ModelArguments, training_args: VisionFlowTrainingArguments) -> dict:
    """All model arguments, and the training arguments that differ from their defaults."""
    changed = {
        item.name: getattr(training_args, item.name)
        for item in fields(training_args)
        if item.init and item.name not in REFUSED and getattr(training_args, item.name) != item.default
    }
    if not training_args.precision_told:  # where the run is repeated, the device may be another
        del changed["bf16"], changed["fp16"]
    changed = {name: plain_value(value) for name, value in changed.items()}
    for name in (*OF_THIS_RUN, *training_args.not_given):
        changed.pop(name, None)
    plain = {name: value for name, value in changed.items() if isinstance(value, (bool, int, float, str, dict, list))}
    plain = {name: value for name, value in plain.items() if value not in ([], {})}  # the default, as it is kept
    return asdict(model_args) | {"seed": training_args.seed} | plain
