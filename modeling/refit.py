# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""The fMRI side of a model, fitted anew to what its image side has become: `VisionFlowModel.refit`.

    image side    encoder, head of z, image decoder, which gradient descent trains
    fMRI side     head of w, maps between latent and voxels, noise, MLP from fMRI to latent, linear decoder

Gradient descent on few trials makes the fMRI side worse, and what it makes of the image side no longer fits. So all of
the fMRI side is fitted when gradient descent has ended: ridges, but for the MLP, which learns from simulated trials.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.utils import logging

from .alignment import STEPS, align, image_latents
from .linear_decoder import fit_linear_decoders
from .linear_latent import fit_encoding
from .precision import without_tf32
from .processing_visionflow import VisionFlowProcessor
from .shared_fit import Processes
from .trials import Trials

logger = logging.get_logger(__name__)
# Warnings obey the verbosity of transformers; what `visionflow train` tells is of a lower level.
logger.addFilter(lambda record: record.levelno < logging.WARNING or record.levelno >= logging.get_verbosity())

COLUMNS = ("image", "fmri", "subject", "stimulus_id")
ROWS = 1000  # read at once
FMRI_SIDE = ("fmri_to_latent", "latent_to_fmri", "linear_head", "linear_decoder", "embedding_decoder")


class RowImages:
    """The distinct stimuli of some rows, by `stimulus_id`. Their images are decoded when they are asked for.

    Args:
        rows (`datasets.Dataset`): with an image each.
    """

    def __init__(self, rows, processor: VisionFlowProcessor):
        self.rows, self.processor = rows, processor
        self.first: dict[str, int] = {}
        for row, stimulus in enumerate(rows["stimulus_id"]):
            self.first.setdefault(stimulus, row)

    def pixel_values(self, stimulus_ids: Sequence[str]) -> torch.Tensor:
        """`(stimuli, channels, height, width)` on a 0..1 scale, from the first row that shows each."""
        images = self.rows.select([self.first[name] for name in stimulus_ids])["image"]
        return self.processor(images=images)["pixel_values"]

    def image_features(self, stimulus_ids: Sequence[str], with_linear: bool = True) -> None:
        """What a frozen encoder made of each, `(stimuli, features)`; None, since this one may learn."""


def refit(model, rows, processor: VisionFlowProcessor, seed: int, from_learned: bool | None = None) -> None:
    """Fit the fMRI side of `model` to rows, as `VisionFlowModel.refit` says."""
    rows = rows_to_fit(model, rows, processor)
    if from_learned is None:
        from_learned = reads_learned(model)
    trials, images = Trials(rows, processor), RowImages(rows, processor)
    with Undisturbed(model):
        fit_fmri_side(model, trials, images, STEPS, seed, from_learned=from_learned)


def reads_learned(model) -> bool:
    """Whether the maps to voxels were fitted, so that their columns for MLP(z) are zero, and read z."""
    config, maps = model.config, model.latent_to_fmri.voxel_maps
    parts = [config.latent_dim, config.bridge_hidden_size, config.linear_dim]
    learned, hidden, _ = zip(*(one.weight.split(parts, dim=1) for one in maps), strict=True)
    return any(one.any() for one in learned) and not any(one.any() for one in hidden)


def rows_to_fit(model, rows, processor: VisionFlowProcessor):
    """The rows that have an image and fMRI.

    Raises:
        ValueError: rows to which the model cannot be fitted, as `VisionFlowModel.refit` says.
    """
    if not hasattr(rows, "select") or not hasattr(rows, "column_names"):
        raise ValueError(f"the rows are a {type(rows).__name__}: a datasets.Dataset is expected, which is not streamed")
    missing = [name for name in COLUMNS if name not in rows.column_names]
    if missing:
        raise ValueError(f"the rows have no column {', '.join(missing)}: {', '.join(COLUMNS)} are expected")
    processor.check_subjects(model.config)
    rows = pairs_of(rows.with_format(None))  # without a transform, which may give another image each time
    subjects = set(rows["subject"])
    if subjects != set(processor.subjects):
        raise ValueError(
            f"the rows with an image and fMRI are of {', '.join(sorted(subjects)) or 'no subject'}: "
            f"those of {', '.join(processor.subjects) or 'no subject'} are expected, all that the model knows"
        )
    distinct = Counter(name for name, _ in set(zip(rows["subject"], rows["stimulus_id"], strict=True)))
    for name in processor.subjects:
        if distinct[name] < 2:
            raise ValueError(f"{name} has 1 distinct stimulus: at least 2 are needed")
    return rows


class Undisturbed:
    """For fits: `with Undisturbed(model)` is evaluation mode, without dropout, and a random state of their own.

    Afterwards the modes of all modules and torch's random state are as before; new modules have the mode of the model.
    """

    def __init__(self, model):
        self.model, self.modes = model, {module: module.training for module in model.modules()}
        device = model.device
        self.random = torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type)

    def __enter__(self):
        self.random.__enter__()
        self.model.train(False)

    def __exit__(self, *error):
        for module in self.model.modules():
            module.training = self.modes.get(module, self.modes[self.model])
        self.random.__exit__(*error)


@torch.no_grad()
@without_tf32()
def fit_fmri_side(
    model,
    trials: Trials,
    stimuli,
    max_steps: int,
    seed: int,
    unpaired: Sequence[str] = (),
    shared: bool = False,
    from_learned: bool = False,
) -> None:
    """Fit all maps between the latent and fMRI to the trials, in closed form but for the MLP from fMRI to latent.

    Args:
        stimuli: as in `RowImages`.
        max_steps: as in `align`.
        seed: of the MLP, and of what is drawn where there is too much.
        unpaired: images without fMRI, from which the MLP and the linear decoders learn, too.
        shared: that all processes of `torch.distributed` are here for it. They share the subjects' maps; then the first
            one trains the MLP, while the second one fits the linear decoders. All but the first lack the MLP then.
        from_learned: as in `fit_encoding`.
    """
    model.train(False)
    logger.info(f"fitting the fMRI side (subjects: {len(trials.subjects)}, stimuli: {len(trials.stimuli)})")
    names = trials.stimuli
    processes = Processes(shared)
    voxel_weights = fit_encoding(model, trials, stimuli, seed, processes, from_learned)
    posterior = image_latents(model, stimuli, names)
    place = {stimulus: row for row, stimulus in enumerate(names)}
    to_latent, to_fmri, errors = model.fmri_to_latent, model.latent_to_fmri, []
    for name in processes.own(trials.subjects):
        own = trials.stimulus_ids(name)
        rows = [place[stimulus] for stimulus in own]
        subject = model.config.subjects.index(name)
        fmri = trials.fmri(name).to(model.device)
        latents = posterior.learned.mean[rows], posterior.linear.mean[rows]
        errors.append([one.cpu() for one in to_latent.fit(subject, fmri, *latents, own, voxel_weights[name])])
        voxel_map = to_fmri.voxel_maps[subject]
        to_fmri.set_shared_noise(subject, fmri - voxel_map(to_fmri.read(*latents)))
    for number, name in enumerate(trials.subjects):
        subject = model.config.subjects.index(name)
        maps = to_latent.to_learned[subject], to_latent.to_linear[subject], to_fmri.voxel_maps[subject]
        fitted = [*(one for part in maps for one in part.state_dict().values()), to_fmri.noise_logvar[subject]]
        processes.take_over(fitted, number)
    errors = [of_subject for some in processes.gather(errors) for of_subject in some]
    learned_error, linear_error = (torch.stack(parts).mean(0).to(model.device) for parts in zip(*errors, strict=True))
    used = model.linear_head.weight.any(dim=1)  # the others are 0 for all images and responses
    to_latent.linear_logvar.copy_(torch.where(used, linear_error.clamp(min=1e-3).log(), model.linear_logvar))
    if processes.rank == 0:
        logger.info("training the MLP from fMRI to latent on simulated trials")
        align(model, trials, stimuli, max_steps, seed, unpaired)
    second = 1 % processes.count
    if processes.rank == second:
        fit_linear_decoders(model, [*names, *unpaired], stimuli, torch.cat([learned_error, linear_error]))
    decoders = [*model.linear_decoder.state_dict().values(), *model.embedding_decoder.state_dict().values()]
    processes.take_over(decoders, second)


def pairs_of(rows):
    """The rows that have an image and fMRI."""
    kept = []
    for batch in rows.select_columns(["image", "fmri"]).with_format("arrow").iter(ROWS):
        kept += (batch["image"].is_valid().to_numpy() & batch["fmri"].is_valid().to_numpy()).tolist()
    return rows if all(kept) else rows.select(np.flatnonzero(kept))


def refuse_adapters(model) -> None:
    """Adapters (PEFT) are for the image side.

    Raises:
        ValueError: there are some on the fMRI side, whose layers are fitted.
    """
    found = [name for name, _ in model.named_modules() if name.endswith(".lora_A")]
    sides = [side for side in FMRI_SIDE if any(f"{side}." in name for name in found)]
    if sides:
        raise ValueError(
            f"adapters in {', '.join(sides)}, which a refit fits in closed form: give LoraConfig target_modules of the "
            r"encoder alone, such as r'encoder\..*(q_proj|query)'"
        )
    if found:
        logger.warning(
            "a refit changes weights that an adapter's file does not hold: save model.merge_and_unload() after training"
        )


class RefitCallback(TrainerCallback):
    """Refits the model to the train rows before each evaluation and each checkpoint, and when training ends.

    Trainer needs `remove_unused_columns=False` and the model's processor as its `processing_class`; a model that was
    loaded has its own.

    Args:
        from_learned: as in `VisionFlowModel.refit`; None for what the model does as training begins.
    """

    def __init__(self, from_learned: bool | None = None):
        self.given = self.from_learned = from_learned
        self.fitted = -1  # the step after which the model was refitted
        self.processor = None  # the model's, once training has begun

    def on_train_begin(self, args, state, control, model, processing_class, train_dataloader, **kwargs):
        self.fitted = -1
        self.processor = self._processor(model, processing_class)
        refuse_adapters(model)
        rows_to_fit(model, train_dataloader.dataset, self.processor)  # refused now, not after all steps
        self.from_learned = reads_learned(model) if self.given is None else self.given

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_evaluate or control.should_save:
            self._refit(state, **kwargs)

    on_epoch_end = on_step_end

    def on_train_end(self, args, state, control, **kwargs):
        self._refit(state, **kwargs)

    def _processor(self, model, processing_class) -> VisionFlowProcessor:
        if processing_class is None:
            return model._own_processor()
        if not hasattr(processing_class, "check_subjects"):
            raise ValueError(
                f"processing_class is a {type(processing_class).__name__}: the model's VisionFlowProcessor is expected"
            )
        return processing_class

    def _refit(self, state, model, train_dataloader, **kwargs):
        if self.fitted != state.global_step:
            model.refit(train_dataloader.dataset, self.processor, from_learned=self.from_learned)
            Processes(shared=True).take_over(model.state_dict().values(), 0)  # DDP synchronises gradients alone
            self.fitted = state.global_step
