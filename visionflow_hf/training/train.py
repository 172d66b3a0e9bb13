"""`visionflow train`: read the corpus, build the model, run the Trainer, save the model folder."""

import copy
import logging
import math
import os
import shutil
import time
from dataclasses import asdict, dataclass, fields
from enum import Enum
from pathlib import Path

import numpy as np
import torch
import yaml
from accelerate import PartialState
from accelerate.utils import broadcast
from datasets import Dataset, DatasetDict
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

from visionflow_hf.corpus.responses import images_alone, pairs_of, without
from visionflow_hf.corpus.schema import open_corpus
from visionflow_hf.corpus.splits import split_stimuli
from visionflow_hf.errors import UserError
from visionflow_hf.folders import refuse_existing
from visionflow_hf.hub import load_model, push, save_model
from visionflow_hf.memory import keep_freed_memory
from visionflow_hf.modeling import VisionFlowModel, VisionFlowProcessor
from visionflow_hf.training.arguments import (
    IMAGE_STAGE,
    LONG_IMAGE_STAGE,
    ModelArguments,
    VisionFlowTrainingArguments,
)
from visionflow_hf.training.build import build_model, build_processor, continue_model
from visionflow_hf.training.finish import finish
from visionflow_hf.training.learning_encoder import merge_adapters
from visionflow_hf.training.linear_path import fit_linear_decoder
from visionflow_hf.training.new_subjects import fit_new_subjects
from visionflow_hf.training.rehearsal import best_shares, rehearse, remaining, validate
from visionflow_hf.training.stimuli import Stimuli
from visionflow_hf.training.trainer import run_trainer

logger = logging.getLogger(__name__)

MARKER = "arguments.yaml"  # written first: what the run was told, in the form that --config reads
STEPS, MOST_STEPS, EPOCHS = 1000, 30_000, 10
SPARES_VALIDATION = 300  # train stimuli
LARGE = 10_000_000  # weights of an encoder; a small one gains nothing by bfloat16
WORTH_BFLOAT16 = 0.8  # of the time that float32 takes


@dataclass
class Trained:
    """A trained model, its processor, and the Trainer's log history."""

    model: VisionFlowModel
    processor: VisionFlowProcessor
    history: list[dict]


def train(
    corpus: str | os.PathLike,
    run: str | os.PathLike,
    model_args: ModelArguments,
    training_args: VisionFlowTrainingArguments,
    allow_leakage: bool = False,
    streaming: bool = False,
) -> Trained:
    """Train on the train split of `corpus`, and leave in `run` a model folder that `AutoModel` loads.

    Several processes (`accelerate launch`) share the Trainer's work; the first one does the rest and writes the folder.

    Args:
        corpus: folder, or ORG/NAME on the Hub.
        allow_leakage: train even where a stimulus is in two splits; the card then says so.
        streaming: read a corpus of the Hub into memory, with no copy on disk.

    Raises:
        UserError: a corpus, a folder, a checkpoint or an encoder that cannot be used; `run` is untouched then.
    """
    run = Path(run)
    opened = open_corpus(corpus, allow_leakage, streaming)
    checkpoint = find_checkpoint(run, training_args.resume_from_checkpoint)
    if checkpoint is None:
        refuse_existing(run, training_args.overwrite, MARKER)
    first = training_args.process_index == 0
    PartialState().wait_for_everyone()  # until all have seen what is there
    trained = train_on(opened.splits, run, model_args, training_args, checkpoint)
    PartialState().destroy_process_group()  # the first process goes on alone
    if not first:
        return trained
    seen, images = pairs_of(opened.splits["train"]), images_alone(opened.splits["train"])
    vision = trained.model.config.vision_config
    origin = "trained from scratch"
    if model_args.from_model is not None:
        origin = f"that of {Path(model_args.from_model).name}"
    save_model(
        trained.model,
        trained.processor,
        run,
        {
            "encoder": vision._name_or_path or f"{vision.model_type}, {origin}",
            "unit": opened.unit,
            "n_stimuli": len(set(seen["stimulus_id"])),
            "n_trials": len(seen),
            "n_images_alone": len(set(images["stimulus_id"])),
            "leakage": opened.leakage,
            "data_license": opened.license,
            "steps": trained.history[-1]["step"] if trained.history else 0,
            "seed": training_args.seed,
        },
    )
    if training_args.push_to_hub:
        push(run, training_args.hub_model_id or run.name, training_args.hub_private_repo or False)
    return trained


def train_on(
    splits: DatasetDict,
    run: str | os.PathLike,
    model_args: ModelArguments,
    training_args: VisionFlowTrainingArguments,
    checkpoint: str | None = None,
) -> Trained:
    """The training itself, on rows at hand; `run` takes checkpoints and the Trainer's state, but no model folder.

    Of several processes the first one finishes the model; the others return it as the Trainer leaves it.

    All is learned and fitted from pairs, but that images without fMRI are in the image stage, and that fMRI without an
    image counts for the means and standard deviations of the voxels.
    """
    run = Path(run)
    refuse_contradictions(model_args)
    refuse_shards(training_args)
    keep_freed_memory()
    set_seed(training_args.seed)
    first = training_args.process_index == 0
    if model_args.freeze_shared:
        model, processor = load_model(model_args.from_model)
        fit_new_subjects(
            model.to(training_args.device), processor, splits["train"], training_args.seed, training_args.stimulus_cache
        )
        if first:
            begin(run, model_args, training_args)
        return Trained(model, processor, [])
    if model_args.from_model is None:
        processor = build_processor(splits["train"], model_args.image_size)
        model = build_model(processor, model_args)
    else:
        model, processor = continue_model(model_args.from_model, splits["train"], model_args)
    images = images_alone(splits["train"])
    splits = DatasetDict({**splits, "train": pairs_of(splits["train"])})
    everything = splits["train"]
    fitted, validation = hold_out(splits, training_args)
    if validation is not None:
        images = without(images, validation)
    args = complete(training_args, run, len(fitted), validated=validation is not None)
    if checkpoint is None and first:
        begin(run, model_args, training_args)

    frozen = not any(parameter.requires_grad for parameter in model.to(args.device).encoder.parameters())
    if not frozen:
        suit_precision(args, model)
    shown = [everything, images] + [splits[name] for name in ("validation",) if name in splits]
    stimuli = Stimuli(processor, shown, model if frozen else None, args.stimulus_cache)
    wavelet_dim = model_args.wavelet_dim
    if validation is None:
        shares, model = rehearse(model, processor, fitted, images, stimuli, wavelet_dim, args)
        set_seed(args.seed)
    trainer = run_trainer(model, processor, fitted, validation, stimuli, args, checkpoint, images)
    trainer.save_state()
    model = trainer.accelerator.unwrap_model(trainer.model)
    merge_adapters(model)
    if not first:
        return Trained(model, processor, trainer.state.log_history)
    if validation is not None:
        shares = best_shares([validate(model, processor, fitted, validation, stimuli, wavelet_dim, args)])
    # The held-out stimuli have served: they may be seen.
    model, gain = finish(model, processor, everything, stimuli, wavelet_dim, shares.mlp, args)
    if shares.linear:
        gain = remaining(gain, shares.mlp)
        model.linear_decoder = fit_linear_decoder(model, everything, stimuli, gain)
        model.config.linear_share = shares.linear
    model.config.decoding_spread, model.config.black_point = shares.spread, shares.black_point
    return Trained(model, processor, trainer.state.log_history)


def refuse_contradictions(args: ModelArguments) -> None:
    """Raise `UserError` where two flags exclude one another."""
    ways = ("freeze_encoder", "unfreeze_blocks", "lora_rank", "freeze_shared")
    given = [f"--{name}" for name in ways if getattr(args, name) != getattr(ModelArguments, name)]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} each say what of the encoder learns: give one of them")
    if args.from_model is None:
        if args.freeze_shared:
            raise UserError("--freeze-shared keeps the weights of a trained model: name it with --from-model")
        return
    sizes = ("encoder", "feature_layers", "autoencoder", "image_size", "latent_dim", "bridge_hidden_size")
    given = [f"--{name}" for name in sizes if getattr(args, name) is not None]
    if given:
        raise UserError(f"--from-model brings its own {', '.join(given)}: leave out one or the other")


def refuse_shards(args: VisionFlowTrainingArguments) -> None:
    """Raise `UserError` where FSDP or DeepSpeed would cut the weights up: half of them are fitted to whole ones."""
    launched = [os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true" for name in ("FSDP", "DEEPSPEED")]
    if args.fsdp or any(launched):
        raise UserError(
            "FSDP and DeepSpeed cut the weights up, but the maps between voxels and latent are fitted to whole ones: "
            "launch with --multi_gpu, where each GPU holds the model"
        )


def find_checkpoint(run: Path, resume: str | None) -> str | None:
    """The checkpoint folder that `--resume_from_checkpoint` means; None to begin anew.

    Args:
        resume: `auto` for the last one in `run`, if there is one; or a path.
    """
    if resume is None:
        return None
    if resume == "auto":
        return get_last_checkpoint(run) if run.is_dir() else None
    if not (Path(resume) / "trainer_state.json").is_file():
        raise UserError(f"{resume} is no checkpoint (no trainer_state.json in it): give a checkpoint-N folder, or auto")
    return str(resume)


def hold_out(splits: DatasetDict, args: VisionFlowTrainingArguments) -> tuple[Dataset, Dataset | None]:
    """The rows to fit and those to validate on: the corpus's own split, or some of the train stimuli if it has many."""
    rows = splits["train"]
    if "validation" in splits:
        return rows, splits["validation"]
    fraction = args.validation_fraction
    if fraction is None:
        fraction = 0.1 if len(set(rows["stimulus_id"])) >= SPARES_VALIDATION else 0
    if fraction == 0:
        return rows, None
    held_out = split_stimuli(rows["stimulus_id"], fraction, args.seed)
    mask = np.isin(rows["stimulus_id"], list(held_out))
    return rows.select(np.flatnonzero(~mask)), rows.select(np.flatnonzero(mask))


def complete(args: VisionFlowTrainingArguments, run: Path, rows: int, validated: bool) -> VisionFlowTrainingArguments:
    """The arguments with what depends on the data filled in: where, how long, in which stage, and whether validated.

    Without --max_steps and --num_train_epochs a run has 1,000 steps, or as many as 10 passes over the rows need, and
    30,000 at most.
    """
    args = copy.copy(args)
    args.output_dir = str(run)
    args.push_to_hub = False  # `train` pushes the finished model once; Trainer would push every checkpoint
    if args.max_steps <= 0:
        a_pass = math.ceil(rows / (args.train_batch_size * args.world_size * args.gradient_accumulation_steps))
        steps = math.ceil(args.num_train_epochs * a_pass)
        args.max_steps = steps or min(max(STEPS, EPOCHS * a_pass), MOST_STEPS)
    if args.image_stage is None:
        args.image_stage = IMAGE_STAGE if validated else LONG_IMAGE_STAGE
    if not validated:
        args.eval_strategy, args.load_best_model_at_end = "no", False
    return args


def suit_precision(args: VisionFlowTrainingArguments, model: VisionFlowModel) -> None:
    """bfloat16 on a CPU that is faster in it, where a large encoder learns and no precision was asked for."""
    large = sum(weights.numel() for weights in model.encoder.parameters()) >= LARGE
    if args.device.type != "cpu" or not large or args.precision_told:
        return
    faster = torch.tensor(product_seconds(torch.bfloat16) < WORTH_BFLOAT16 * product_seconds(torch.float32))
    if broadcast(faster.int()).item():  # what the first process found holds for all
        args.bf16, args.mixed_precision = True, "bf16"
        logger.info("a large encoder learns on this CPU in bfloat16: --bf16 false for float32")


def product_seconds(dtype: torch.dtype, size: int = 1024, repeats: int = 5) -> float:
    """How long this CPU takes for a matrix product, the median of some: that it has bfloat16 units does not tell."""
    one, other = torch.ones(2, size, size, dtype=dtype)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        one @ other
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def begin(run: Path, model_args: ModelArguments, training_args: VisionFlowTrainingArguments) -> None:
    """An empty folder that holds what the run was told."""
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    (run / MARKER).write_text(yaml.safe_dump(told(model_args, training_args), sort_keys=False))


def told(model_args: ModelArguments, training_args: VisionFlowTrainingArguments) -> dict:
    """All model arguments, and the training arguments that differ from their defaults."""
    changed = {
        item.name: getattr(training_args, item.name)
        for item in fields(training_args)
        if item.init and getattr(training_args, item.name) != item.default
    }
    if not training_args.precision_told:
        del changed["bf16"]
    changed = {name: value.value if isinstance(value, Enum) else value for name, value in changed.items()}
    plain = {name: value for name, value in changed.items() if isinstance(value, (bool, int, float, str))}
    return asdict(model_args) | {"seed": training_args.seed} | plain
