"""`train --from_model OLD --freeze_shared`: new subjects of a trained model, by `modeling/subject_fit.py`."""

import logging
import os

import torch
from datasets import Dataset

from visionflow_hf.corpus.responses import pairs_of
from visionflow_hf.errors import UserError
from visionflow_hf.modeling import VisionFlowModel, VisionFlowProcessor
from visionflow_hf.modeling.alignment import IMAGES, image_latents
from visionflow_hf.modeling.subject_fit import fit_maps, known_voxels, latents_of_the_prior
from visionflow_hf.modeling.trials import Trials
from visionflow_hf.stimuli import Stimuli
from visionflow_hf.training.build import build_processor

logger = logging.getLogger(__name__)


@torch.no_grad()
def fit_new_subjects(
    model: VisionFlowModel,
    processor: VisionFlowProcessor,
    train: Dataset,
    seed: int,
    cache: str | os.PathLike | None = None,
) -> None:
    """Fit the subjects of `train` to a trained model; one with the name of a known subject takes its place.

    Responses are simulated to the stimuli, to augmented copies of them, and to images decoded from the prior.

    Raises:
        UserError: a model without subjects, or a subject with too few stimuli.
    """
    if not processor.subjects:
        raise UserError("the model knows no subject to whose voxels new ones could be compared: train it first")
    pairs = pairs_of(train)
    own = build_processor(train)
    known = known_voxels(model, seed, own.subjects)
    stimuli = Stimuli(processor, [pairs], cache=cache)
    torch.manual_seed(seed)
    seen, prior = image_latents(model, stimuli, list(stimuli.keys), IMAGES), latents_of_the_prior(model, seed)
    place = {stimulus: row for row, stimulus in enumerate(stimuli.keys)}
    simulated = tuple(torch.cat(parts) for parts in zip((seen.learned.mean, seen.linear.mean), prior, strict=True))
    for name in own.subjects:
        if name in processor.subjects:
            logger.warning(f"{name} is a subject of the model already, and is fitted anew")
            model.remove_subject(name)
            processor.remove_subject(name)
        processor.add_subject(name, own.fmri_mean[name], own.fmri_std[name])
        model.add_subject(name, len(own.fmri_mean[name]))
    trials = Trials(pairs, processor)
    for name in own.subjects:
        names = trials.stimulus_ids(name)
        fmri = trials.fmri(name).to(model.device)
        rows = [place[stimulus] for stimulus in names]
        latents = seen.learned.mean[rows], seen.linear.mean[rows]
        try:
            fit_maps(model, name, fmri, latents, names, simulated, known)
        except ValueError as error:
            raise UserError(str(error)) from error
        logger.info(f"{name}: {fmri.shape[1]} voxels fitted to {len(fmri)} trials of {len(set(names))} stimuli")
