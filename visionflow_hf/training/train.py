"""`visionflow train`: read the corpus, build the model, train its image side, fit its fMRI side, save it."""

import copy
import io
import logging
import math
import os
import shutil
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import yaml
from accelerate import PartialState
from datasets import DatasetDict
from transformers import set_seed
from transformers.trainer_utils import SaveStrategy, get_last_checkpoint

from visionflow_hf.checkpoints import find_checkpoint, is_checkpoint, refuse_other_sizes
from visionflow_hf.corpus.leakage import SEEN, seen_by, to_be_seen, write_seen
from visionflow_hf.corpus.responses import images_alone, pairs_of
from visionflow_hf.corpus.schema import Corpus, join_tables, open_corpus
from visionflow_hf.corpus.splits import split_stimuli
from visionflow_hf.errors import UserError
from visionflow_hf.folders import alone, put_back, refuse_existing, refuse_fixed, take_name, writing
from visionflow_hf.hub import hub_name, load_model, prepare_push, push, save_model
from visionflow_hf.modeling import VisionFlowModel, VisionFlowProcessor
from visionflow_hf.modeling.augmentation import FEW_STIMULI, MANY_STIMULI
from visionflow_hf.modeling.refit import fit_fmri_side
from visionflow_hf.modeling.shared_fit import Processes
from visionflow_hf.modeling.trials import Trials
from visionflow_hf.modeling.voxel_table import VoxelTable
from visionflow_hf.stimuli import Stimuli
from visionflow_hf.training.arguments import ModelArguments, VisionFlowTrainingArguments
from visionflow_hf.training.build import OF_TRAINING, build_model, build_processor, continue_model, merge_adapters
from visionflow_hf.training.decoding import MLP_SHARES, MLP_SHARES_OF_FEW, Decoding, choose_decoding
from visionflow_hf.training.new_subjects import fit_new_subjects
from visionflow_hf.training.trainer import ImageBatches, ImageTrainer
from visionflow_hf.training_flags import told

logger = logging.getLogger(__name__)

MARKER = "arguments.yaml"  # written first: the flags of the run, in the form that --config reads
OF_WEIGHTS = (  # training flags on which the weights of a step depend
    *("seed", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "optim"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "validation_fraction"),
)
WATCHING = ("reduce_lr_on_plateau", "greedy")  # schedules that follow the validation loss
STEPS, MOST_STEPS, EPOCHS = 750, 30_000, 10
FEWEST_TO_CHOOSE, ENOUGH_TO_CHOOSE = 4, 8  # train stimuli; held-out stimuli by which the shares are chosen


@dataclass
class Trained:
    """A trained model, its processor, the log history of the last image stage, the number of all steps, and whether the
    encoder is the one from which the training began."""

    model: VisionFlowModel
    processor: VisionFlowProcessor
    history: list[dict]
    steps: int
    encoder_is_frozen: bool = True


def train(
    corpus: str | os.PathLike,
    run: str | os.PathLike,
    model_args: ModelArguments,
    training_args: VisionFlowTrainingArguments,
    allow_leakage: bool = False,
    streaming: bool = False,
) -> Trained:
    """Train on the train split of `corpus`, and leave in `run` a model folder that `AutoModel` loads.

    A model that is in `run` already stays there until the new one is finished. Several processes (`accelerate launch`)
    share the Trainer's work and the fits; the first one chooses how to decode, and writes the folder.

    Args:
        corpus: folder, or ORG/NAME on the Hub.
        allow_leakage: train even where a stimulus is in two splits; the card then says so.
        streaming: read a corpus of the Hub into memory, with no copy on disk.

    Raises:
        UserError: a corpus, a folder, a checkpoint or an encoder that cannot be used, or a repository that is not
            to be written; `run` is untouched then. Or the push of the finished model failed.
    """
    run = Path(run).absolute()
    refuse_fixed(run)
    opened = open_corpus(corpus, allow_leakage, streaming)
    put_back(run)
    folder = in_progress(run) if (run / "config.json").exists() else run
    seen = to_be_seen(opened.pictures) | (seen_by(model_args.from_model) if model_args.from_model else set())
    checkpoint = checkpoint_to_resume(folder, run, seen, model_args, training_args)
    first = training_args.process_index == 0
    name, private = training_args.hub_model_id or run.name, bool(training_args.hub_private_repo)
    if training_args.push_to_hub and first:
        prepare_push(name, private)
    there = [path for path in folder.glob("*") if path.name not in (MARKER, SEEN)]
    PartialState().wait_for_everyone()  # until all have seen what is there
    with alone(run) if first else nullcontext():
        try:
            trained = train_on(opened.splits, folder, model_args, training_args, checkpoint, seen)
            PartialState().destroy_process_group()  # the first process goes on alone
            if not first:
                return trained
            trained.model.voxels = voxels_known(trained.model, opened)
            about = description(trained, corpus, opened, model_args, training_args)
            save_model(trained.model, trained.processor, folder, about, model_id=run, seen=seen)
        except BaseException:
            own = first and (folder != run or not any(path.exists() for path in there)) and (folder / MARKER).is_file()
            if own and folder.is_dir() and get_last_checkpoint(folder) is None:  # nothing to resume from
                shutil.rmtree(folder, ignore_errors=True)
            raise
        if folder != run:
            if not training_args.overwrite:
                with writing(run):
                    copy_others(run, folder)
            take_name(folder, run)
    if training_args.push_to_hub:
        try:
            push(run, name, private)
        except UserError as error:
            raise UserError(
                f"the model is in {run}, but was not pushed ({error}): repeat with `visionflow push {run} {name}`"
            ) from error
    return trained


def train_on(
    splits: DatasetDict,
    run: str | os.PathLike,
    model_args: ModelArguments,
    training_args: VisionFlowTrainingArguments,
    checkpoint: str | None = None,
    seen: Collection[str] = (),
) -> Trained:
    """The training itself, on rows at hand; `run` takes checkpoints and the Trainer's state, but no model folder.

    1. The processor takes the means and standard deviations of the train split; the model gets sizes to fit.
    2. Some train stimuli are held out: the validation split, a tenth of many, or a fifth of few.
    3. The image stage (`ImageTrainer`) trains the image side without them, and the fMRI side is fitted to it.
    4. On the held-out stimuli the shares of the MLP and of the linear decoder are chosen, whether gradient steps refine
       reconstructions, and the brightness.
    5. Where none are held out for good, the image side is trained on with all stimuli, or, of fewer than 50, anew. The
       fMRI side is fitted to all trials.

    Several processes share the fits of the fMRI side, see `fit_fmri_side`. The first one alone chooses how to decode;
    the others return models that are not finished.

    Args:
        seen: hashes of the images, which a run that goes on later is compared with.
    """
    run = Path(run)
    refuse_contradictions(model_args)
    refuse_shards(training_args)
    set_seed(training_args.seed)
    seen_gpus = torch.cuda.device_count() if training_args.device.type == "cuda" else 0
    if seen_gpus > 1 and training_args.world_size == 1:
        logger.warning(
            f"one of {seen_gpus} GPUs is used; for all: `accelerate launch --multi_gpu -m visionflow_hf.cli train`"
        )
    first = training_args.process_index == 0
    if model_args.freeze_shared:
        model, processor = load_model(model_args.from_model)
        model.float().to(training_args.device)  # it may have been saved in another precision
        fit_new_subjects(model, processor, splits["train"], training_args.seed, training_args.stimulus_cache)
        if first:
            begin(run, model_args, training_args, seen=seen)
        return Trained(model, processor, [], 0)
    pairs, images = pairs_of(splits["train"]), images_alone(splits["train"])
    if model_args.from_model is None:
        processor = build_processor(splits["train"], model_args.image_size)
        model = build_model(processor, model_args, pairs)
    else:
        model, processor = continue_model(model_args.from_model, splits["train"], model_args)
    if checkpoint is not None:
        refuse_other_sizes(checkpoint, model)
    model.to(training_args.device)
    trials = Trials(pairs, processor)
    for name in trials.subjects:
        if len(set(trials.stimulus_ids(name))) < 2:
            raise UserError(f"{name} has 1 distinct stimulus with an image in train: at least 2 are needed")
    if "validation" in splits:
        held_out, validated = Trials(pairs_of(splits["validation"]), processor), True
        fitted = trials
    else:
        held_out_stimuli, validated = choose_held_out(trials, training_args)
        held_out = trials.without(set(trials.stimuli) - held_out_stimuli)
        fitted = trials.without(held_out_stimuli)
    args = complete(training_args, run, len(fitted.stimuli), validated)
    anew = checkpoint is None or Path(checkpoint).resolve().parent != run.resolve()
    if first and (anew or not (run / MARKER).is_file()):
        begin(run, model_args, training_args, anew, seen)

    frozen = not any(parameter.requires_grad for parameter in model.encoder.parameters())
    PartialState().wait_for_everyone()
    if not (run / MARKER).is_file():
        raise UserError(f"{run} of the first machine is not seen here: name a folder on a disk that all machines share")
    stimuli = Stimuli(processor, [pairs, images, held_out.rows], model if frozen else None, args.stimulus_cache)
    paired = {stimuli.keys[name] for name in (*trials.stimuli, *held_out.stimuli)}  # also under another name
    unpaired = sorted(name for name in set(images["stimulus_id"]) if stimuli.keys[name] not in paired)
    validation = ImageBatches(stimuli, held_out.stimuli) if validated else None
    fmri_side = [model.fmri_to_latent, model.latent_to_fmri, model.linear_head, model.linear_decoder]
    for part in fmri_side:  # no gradient reaches them in the image stage
        part.requires_grad_(False)
    model.linear_logvar.requires_grad_(False)
    blind = model_args.from_model is None  # else its image side may have been trained on these responses
    stages = [fitted] if validated or not held_out.stimuli else [fitted, trials]
    few = len(trials.stimuli) < FEW_STIMULI
    begun = copy.deepcopy(model.state_dict()) if few and len(stages) == 2 else None
    history, steps, decoding = [], 0, Decoding()  # where nothing is held out to choose it
    for number, own in enumerate(stages, start=1):
        which = f"image stage {number} of {len(stages)}"
        logger.info(f"{which}: {args.max_steps} steps on {len(own.stimuli)} of {len(trials.stimuli)} stimuli")
        if begun is not None and own is trials:
            model.load_state_dict(begun)  # half of few stimuli has left its mark on the decoder
        size = args.train_batch_size * args.world_size
        batches = ImageBatches(stimuli, own.stimuli, unpaired, size, with_linear=False)
        settings, resumed = (args, checkpoint) if own is stages[-1] else (unsaved(args), None)
        trainer = run_trainer(model, processor, batches, validation, settings, resumed)
        model = unprepared(trainer)
        Processes(shared=True).take_over(model.state_dict().values(), 0)  # another machine may lack the best checkpoint
        history = trainer.state.log_history
        steps += trainer.state.global_step
        if own is fitted and held_out.stimuli:
            fit_fmri_side(model, fitted, stimuli, args.max_steps, args.seed, unpaired, shared=True, from_learned=blind)
            if first:
                decoding = choose_decoding(
                    model, held_out, stimuli, args.seed, MLP_SHARES_OF_FEW if few else MLP_SHARES
                )
    merge_adapters(model)
    if fitted is not trials or not held_out.stimuli:
        fit_fmri_side(model, trials, stimuli, args.max_steps, args.seed, unpaired, shared=True, from_learned=blind)
    if not first:
        return Trained(model, processor, history, steps, frozen)
    trainer.save_state()
    decoding.set_in(model)
    for part in fmri_side:
        part.requires_grad_(True)
    model.linear_logvar.requires_grad_(True)
    return Trained(model, processor, history, steps, frozen)


def run_trainer(
    model: VisionFlowModel,
    processor: VisionFlowProcessor,
    batches: ImageBatches,
    validation: ImageBatches | None,
    args: VisionFlowTrainingArguments,
    checkpoint: str | None = None,
) -> ImageTrainer:
    """The Trainer of the image stage, after its training."""
    trainer = ImageTrainer(
        model=model, args=args, train_dataset=batches, eval_dataset=validation, processing_class=processor
    )
    try:
        trainer.create_optimizer_and_scheduler(args.max_steps)
    except (ValueError, TypeError, ImportError, KeyError) as error:
        raise UserError(f"no optimizer or learning rate can be made of these flags: {error}") from error
    trainer.optimizer = trainer.lr_scheduler = None  # the Trainer makes them again when its devices are ready
    torch.manual_seed(args.seed + args.process_index)  # processes draw different noise and augmentations
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


def unprepared(trainer: ImageTrainer) -> VisionFlowModel:
    """The model as it was before the Trainer; what accelerate leaves in it would keep the next stage from autocast."""
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
        vars(model).pop(name, None)
    return model


def choose_held_out(trials: Trials, args: VisionFlowTrainingArguments) -> tuple[set[str], bool]:
    """The stimuli by which the shares are chosen, and whether they stay held out of the image stage for good.

    300 stimuli and more can spare a tenth for good (`--validation_fraction`). Of fewer a fifth, but eight at least and
    half at most, are held out at first; of fewer than four none. Every subject keeps two stimuli at least.
    """
    stimulus_ids = trials.stimuli
    distinct = len(stimulus_ids)
    fraction = args.validation_fraction
    if fraction is None:
        fraction = 0.1 if distinct >= MANY_STIMULI else 0
    for_good = fraction > 0
    if not for_good and distinct >= FEWEST_TO_CHOOSE:
        fraction = min(max(0.2, ENOUGH_TO_CHOOSE / distinct), 0.5)
    held_out = split_stimuli(stimulus_ids, fraction, args.seed) if fraction else set()
    for name in trials.subjects:
        own = set(trials.stimulus_ids(name))
        if len(own - held_out) < 2:
            held_out -= own
    return held_out, for_good and bool(held_out)


def unsaved(args: VisionFlowTrainingArguments) -> VisionFlowTrainingArguments:
    """The same for a stage that leaves no checkpoints; a resumed run repeats it."""
    args = copy.copy(args)
    args.save_strategy, args.report_to = SaveStrategy.NO, []
    return args


def refuse_contradictions(args: ModelArguments) -> None:
    """Raise `UserError` where two flags exclude one another."""
    ways = ("freeze_encoder", "unfreeze_blocks", "lora_rank", "freeze_shared")
    given = [f"--{name}" for name in ways if getattr(args, name) != getattr(ModelArguments, name)]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} each say which weights of the encoder are trained: give one of them")
    if args.from_model is None:
        if args.freeze_shared:
            raise UserError("--freeze_shared keeps the weights of a trained model: name it with --from_model")
        return
    given = [f"--{name}" for name in (*OF_TRAINING, "linear_dim") if getattr(args, name) is not None]
    if args.freeze_shared and given:
        raise UserError(f"--freeze_shared fits the maps of new subjects alone: leave out {', '.join(given)}")
    sizes = ("encoder", "feature_layers", "autoencoder", "image_size", "latent_dim")
    sizes += ("bridge_hidden_size", "decoder_channels")
    given = [f"--{name}" for name in sizes if getattr(args, name) is not None]
    if given:
        raise UserError(f"--from_model brings its own {', '.join(given)}: leave out one or the other")


def refuse_shards(args: VisionFlowTrainingArguments) -> None:
    """Raise `UserError` where FSDP or DeepSpeed would divide the weights: the fits in closed form need whole ones."""
    launched = [os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true" for name in ("FSDP", "DEEPSPEED")]
    if args.fsdp or any(launched):
        raise UserError(
            "FSDP and DeepSpeed divide the weights among GPUs, but the fits between voxels and latent need whole "
            "weights: launch with --multi_gpu, where each GPU holds the model"
        )


def complete(
    args: VisionFlowTrainingArguments, run: Path, stimuli: int, validated: bool
) -> VisionFlowTrainingArguments:
    """The arguments with what depends on the data filled in: the folder, the number of steps, whether to validate.

    Without --max_steps and --num_train_epochs a stage has 750 steps, or as many as 10 passes over the stimuli need, and
    30,000 at most.
    """
    args = copy.copy(args)
    args.output_dir = str(run)
    args.push_to_hub = False  # `train` pushes the finished model once; Trainer would push every checkpoint
    if args.max_steps <= 0:
        a_pass = math.ceil(stimuli / (args.train_batch_size * args.world_size * args.gradient_accumulation_steps))
        steps = math.ceil(args.num_train_epochs * a_pass)
        args.max_steps = steps or min(max(STEPS, EPOCHS * a_pass), MOST_STEPS)
    if not validated:
        if args.lr_scheduler_type.value in WATCHING:
            raise UserError(
                f"--lr_scheduler_type {args.lr_scheduler_type.value} follows the validation loss, and no stimuli are "
                "held out: give --validation_fraction 0.1, or another schedule"
            )
        if args.save_strategy == SaveStrategy.BEST:
            raise UserError(
                "--save_strategy best goes by the validation loss, and no stimuli are held out: give "
                "--validation_fraction 0.1, or another strategy"
            )
        args.eval_strategy, args.load_best_model_at_end, args.eval_on_start = "no", False, False
    return args


def description(
    trained: Trained,
    corpus: str | os.PathLike,
    opened,
    model_args: ModelArguments,
    training_args: VisionFlowTrainingArguments,
) -> dict:
    """What the model's card says of the training."""
    seen, images = pairs_of(opened.splits["train"]), images_alone(opened.splits["train"])
    vision = trained.model.config.vision_config
    origin = "trained from scratch"
    if model_args.from_model is not None:
        origin = f"that of {Path(model_args.from_model).name}"
    base, data = hub_name(model_args.from_model) or hub_name(vision._name_or_path), hub_name(corpus)
    named = ({"base_model": base} if base else {}) | ({"datasets": [data]} if data else {})
    return named | {
        "encoder": vision._name_or_path or f"{vision.model_type}, {origin}",
        "unit": opened.unit,
        "n_stimuli": len(set(seen["stimulus_id"])),
        "n_trials": len(seen),
        "n_images_alone": len(set(images["stimulus_id"])),
        "leakage": opened.leakage,
        "data_license": opened.license,
        "steps": trained.steps,
        "seed": training_args.seed,
    }


def voxels_known(model: VisionFlowModel, opened: Corpus) -> VoxelTable:
    """The voxel tables of the model's subjects: of the corpus, and of a model that it continues."""
    own = opened.voxels[opened.voxels["subject"].isin(model.config.subjects)]
    tables = [own]
    if model.voxels is not None:
        before = model.voxels.table.to_pandas()
        tables.append(before[~before["subject"].isin(list(opened.subjects))])
    return VoxelTable.read(io.BytesIO(join_tables(tables).to_parquet(index=False)))


def checkpoint_to_resume(
    folder: Path, run: Path, seen: set[str], model_args: ModelArguments, training_args: VisionFlowTrainingArguments
) -> str | None:
    """The checkpoint that `--resume_from_checkpoint` means; None to begin anew.

    Args:
        folder: where the model is trained; `run` itself, or `in_progress` beside a finished run.
        seen: hashes of the images that are trained on.

    Raises:
        UserError: an unfinished run was given otherwise, a checkpoint was trained on other images, or `run` holds
            something that is not to be replaced.
    """
    resume, folders = training_args.resume_from_checkpoint, list(dict.fromkeys([folder, run]))
    if resume == "auto":
        otherwise = {one: given_otherwise(one, seen, model_args, training_args) for one in folders}
        for one in folders:
            to_lose = otherwise[one] and is_unfinished(one) and find_checkpoint([one], resume)
            if to_lose and not training_args.overwrite:
                raise UserError(
                    f"{one} has an unfinished run with {', '.join(otherwise[one])}: repeat its command to go on, or "
                    "add --overwrite to begin anew"
                )
        folders = [one for one in folders if not otherwise[one]]
    checkpoint = find_checkpoint(folders, resume)
    if resume not in (None, "auto") and seen_by(Path(resume).resolve().parent) not in (set(), seen):
        raise UserError(
            f"{resume} was trained on other images than the train images of this corpus, of which some may be in its "
            "test split: name the earlier corpus, or leave out --resume_from_checkpoint"
        )
    of_run = checkpoint is not None and Path(checkpoint).absolute().parent in (run, in_progress(run))
    if not (of_run and (Path(checkpoint).parent / MARKER).is_file()) and not (resume == "auto" and is_unfinished(run)):
        refuse_existing(run, training_args.overwrite, MARKER)
    return checkpoint


def given_otherwise(
    folder: Path, seen: set[str], model_args: ModelArguments, training_args: VisionFlowTrainingArguments
) -> list[str]:
    """What the run in a folder was given otherwise, of that on which its weights depend; none where there is no run.

    Args:
        seen: hashes of the images, as `seen_by` gives those of a run.
    """
    file = folder / MARKER
    if not file.is_file():
        return []
    try:
        before = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        given = [name for name in asdict(model_args) if name in before]
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        return [f"a damaged {MARKER} ({' '.join(str(error).split())[:100]})"]
    if not before:  # it was killed as it began
        return []
    now = told(model_args, training_args)
    others = [f"another --{name}" for name in (*given, *OF_WEIGHTS) if before.get(name) != now.get(name)]
    return others if seen_by(folder) in (set(), seen) else ["other train images", *others]


def in_progress(run: Path) -> Path:
    """Where a model is trained that is to replace the one in `run`."""
    return run.with_name(f".{run.name}.training")


def copy_others(run: Path, folder: Path) -> None:
    """Copy what users have put into a finished run, all but weights and hidden files, to what takes its place."""
    for path in run.iterdir():
        ours = path.name.startswith(".") or path.suffix == ".safetensors" or is_checkpoint(path)
        if ours or os.path.lexists(folder / path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, folder / path.name, symlinks=True)
        else:
            shutil.copy2(path, folder / path.name, follow_symlinks=False)


def is_unfinished(run: Path) -> bool:
    """Whether a run was interrupted here before its model was written."""
    return (run / MARKER).is_file() and not (run / "config.json").exists()


def begin(
    run: Path,
    model_args: ModelArguments,
    training_args: VisionFlowTrainingArguments,
    empty: bool = True,
    seen: Collection[str] = (),
) -> None:
    """The folder of the run, with its flags in it.

    Where no checkpoint in it is resumed from it is emptied with --overwrite; else only its checkpoints are deleted.
    """
    run.mkdir(parents=True, exist_ok=True)
    for path in run.iterdir() if empty else ():
        if not training_args.overwrite and not is_checkpoint(path):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != MARKER:  # by which an interrupted run is known
            path.unlink()
    (run / MARKER).write_text(yaml.safe_dump(told(model_args, training_args), sort_keys=False))
    if seen:
        write_seen(run, seen)
