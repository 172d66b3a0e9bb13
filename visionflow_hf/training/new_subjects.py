"""`train --from-model OLD --freeze-shared`: new people read and written by a trained model, from few trials of each.

All that subjects share is kept. Only linear maps are fitted, in closed form. A new voxel is a weighted sum of what the
model predicts for the voxels that it knows, since many people's voxels see the same place,

    fmri_v  =  t_0 ridge_v(known voxels)  +  t_1 mean over known voxels k of (a_vk known_k + b_vk), by likelihood

where the second term looks for voxels that see what this one sees, as `encoding_models.fit_fields` looks for a place.
The fMRI is read into the latent by two ridges,

    z  =  t_2 ridge from the trials  +  t_3 ridge from made-up trials, images with the fMRI that the line above predicts

All t are non-negative least squares on stimuli that the terms were fitted without.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from datasets import Dataset
from scipy.optimize import nnls
from transformers.utils import logging

from visionflow_hf.corpus.responses import pairs_of, responses_of
from visionflow_hf.corpus.splits import stimulus_folds
from visionflow_hf.errors import UserError, count
from visionflow_hf.modeling import VisionFlowModel, VisionFlowProcessor
from visionflow_hf.ridge import FOLDS, linear_map, ridge_of
from visionflow_hf.training.alignment_stage import IMAGES, image_posteriors
from visionflow_hf.training.build import add_subjects
from visionflow_hf.training.encoding_models import fit_features
from visionflow_hf.training.field_ridges import BLOCK, WORKING_SET, FieldRidges, Linear, held_out_errors, shares
from visionflow_hf.training.fit_bridges import LEAST_NOISE, put, put_noise
from visionflow_hf.training.image_latents import image_latents
from visionflow_hf.training.stimuli import BATCH, Stimuli
from visionflow_hf.training.voxel_weights import voxel_weights

logger = logging.get_logger("visionflow_hf")

FEWEST_STIMULI = 4  # the least from which folds within folds within folds can be made
MOST_KNOWN = 2000  # voxels of the model that a new voxel is compared with, shared out among the subjects


@torch.no_grad()
def fit_new_subjects(
    model: VisionFlowModel, processor: VisionFlowProcessor, train: Dataset, seed: int, cache: str | None = None
) -> None:
    """Teach a trained model the subjects of `train`; who has the name of a known subject takes that subject's place.

    Raises:
        UserError: a model without subjects, or a subject of `train` who saw too few stimuli.
    """
    if not processor.subjects:
        raise UserError("the model knows no subject, of whose voxels those of a new one could be made: train it first")
    pairs = pairs_of(train)
    weights, levels = known_voxels(model, seed)
    stimuli = Stimuli(processor, [pairs], cache=cache)
    images = images_to_make_trials_of(model, stimuli, seed)
    made_up = images.cpu().numpy(), reads(model, images) @ weights + levels
    names = sorted(set(pairs["subject"]))
    for name in set(names) & set(processor.subjects):
        logger.warning(f"{name} is a subject of the model already, and is fitted anew")
        model.remove_subject(name)
        processor.remove_subject(name)
    add_subjects(processor, train)
    for name in names:
        trials = responses_of(pairs, name)
        distinct = list(dict.fromkeys(trials.stimulus_ids))
        if len(distinct) < FEWEST_STIMULI:
            raise UserError(
                f"{name} saw {count(distinct, 'stimulus')}: {FEWEST_STIMULI} distinct ones are needed at least"
            )
        fmri = (trials.fmri - processor.fmri_mean[name]) / processor.fmri_std[name]
        latents = image_latents(model, stimuli, distinct)
        position = {stimulus: row for row, stimulus in enumerate(distinct)}
        latents = latents[[position[stimulus] for stimulus in trials.stimulus_ids]]
        known = reads(model, torch.from_numpy(latents)) @ weights + levels
        model.add_subject(name, fmri.shape[1])
        linear, intercept, missed = fit_voxels(known, fmri, trials.stimulus_ids)
        put(model.latent_to_fmri.voxel_maps[-1], weights @ linear, levels @ linear + intercept)
        put_noise(model, len(model.config.subjects) - 1, missed)
        inward = fit_latents(fmri, latents, known, made_up, trials.stimulus_ids, model.config.learned_dim)
        put(model.fmri_to_latent.voxel_maps[-1], *inward)
        logger.info(f"{name}: {fmri.shape[1]} voxels fitted to {len(fmri)} trials of {len(distinct)} stimuli")


def images_to_make_trials_of(model: VisionFlowModel, stimuli: Stimuli, seed: int) -> torch.Tensor:
    """Latents `(images, latent_dim)` of the stimuli, of images made of them, and of what the model takes for images."""
    torch.manual_seed(seed)
    latents = [image_posteriors(model, stimuli, list(stimuli.keys)).mean]
    for _ in range(IMAGES // BATCH):
        dreamt = model.decode(torch.randn(BATCH, model.config.latent_dim, device=model.device, dtype=model.dtype))
        latents.append(model.encode_image(dreamt).mean.float())
    return torch.cat(latents)


def reads(model: VisionFlowModel, latents: torch.Tensor) -> np.ndarray:
    """What the voxels' linear maps read of latents, `(rows, read)`."""
    return model.latent_to_fmri.read(latents.to(model.device, model.dtype)).float().cpu().numpy()


def known_voxels(model: VisionFlowModel, seed: int) -> Linear:
    """Weights (read, voxels) and levels (voxels,) of up to MOST_KNOWN of the model's voxels, drawn by chance."""
    rng = np.random.default_rng(seed)
    maps = model.latent_to_fmri.voxel_maps
    weights, levels = [], []
    for one in maps:
        drawn = np.sort(rng.permutation(one.out_features)[: max(1, MOST_KNOWN // len(maps))])
        weights.append(one.weight.float().cpu().numpy()[drawn].T)
        levels.append(one.bias.float().cpu().numpy()[drawn])
    return np.concatenate(weights, axis=1), np.concatenate(levels)


def fit_voxels(
    known: np.ndarray, fmri: np.ndarray, stimulus_ids: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights (known voxels, voxels) and intercepts (voxels,), and what they miss of held-out stimuli (voxels,)."""

    def models(rows: np.ndarray) -> list[Linear]:
        seen = [stimulus_ids[row] for row in rows]
        return [fit(known[rows], fmri[rows], seen) for fit in (fit_features, fit_twins)]

    linear, intercept, expected = trusted(models, known, fmri, stimulus_ids, fmri.shape[1])
    return linear, intercept, np.square(expected - fmri).mean(0)


def fit_latents(
    fmri: np.ndarray,
    latents: np.ndarray,
    known: np.ndarray,
    made_up: tuple[np.ndarray, np.ndarray],
    stimulus_ids: Sequence[str],
    learned_dim: int,
) -> Linear:
    """Weights (voxels, latent_dim) and intercept (latent_dim,) of the map from fMRI to the latents of the images.

    Args:
        made_up: latents of images, and what known voxels say to them.
    """

    def models(rows: np.ndarray) -> list[Linear]:
        seen = [stimulus_ids[row] for row in rows]
        weights = voxel_weights(fmri[rows], latents[rows, :learned_dim], seen)
        linear, intercept = fit_features(fmri[rows] * weights, latents[rows], seen)
        to_voxels, level, missed = fit_voxels(known[rows], fmri[rows], seen)
        certain = 1 / np.sqrt(missed.clip(min=LEAST_NOISE))
        trials = (made_up[1] @ to_voxels + level) * certain  # without noise, whose variance, now 1, is the penalty
        inverse, constant = linear_map(ridge_of(len(trials), trials, made_up[0]), trials)
        return [(weights[:, None] * linear, intercept), (certain[:, None] * inverse, constant)]

    linear, intercept, _ = trusted(models, fmri, latents, stimulus_ids, learned_dim)
    return linear, intercept


def trusted(
    models: Callable[[np.ndarray], list[Linear]],
    features: np.ndarray,
    targets: np.ndarray,
    stimulus_ids: Sequence[str],
    judged: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The sum of models that predicts new stimuli best, by non-negative least squares on the first `judged` targets.

    Args:
        models: makes them from the rows with these numbers.

    Returns:
        Weights (features, targets), intercept (targets,), and what is predicted of rows without their stimulus.
    """
    predicted, levels = [], np.empty_like(targets)
    for train, test in stimulus_folds(stimulus_ids, min(FOLDS, len(set(stimulus_ids))), seed=0):
        levels[test] = targets[train].mean(0)
        for at, (linear, constant) in enumerate(models(train)):
            if at == len(predicted):
                predicted.append(np.empty_like(targets))
            predicted[at][test] = features[test] @ linear + constant
    moved = np.stack([one - levels for one in predicted])
    trust, _ = nnls(moved[..., :judged].reshape(len(moved), -1).T, (targets - levels)[:, :judged].ravel())
    fitted = models(np.arange(len(targets)))
    linear = sum(share * one for share, (one, _) in zip(trust, fitted, strict=True))
    intercept = sum(share * one for share, (_, one) in zip(trust, fitted, strict=True))
    return linear, intercept + (1 - trust.sum()) * targets.mean(0), levels + np.tensordot(trust, moved, 1)


def fit_twins(known: np.ndarray, fmri: np.ndarray, stimulus_ids: Sequence[str]) -> Linear:
    """For each voxel the mean over the known voxels, each scaled to it by ridge, by their likelihood."""
    candidates = np.ascontiguousarray(known.T)[:, :, None]
    folds = list(stimulus_folds(stimulus_ids, min(FOLDS, len(set(stimulus_ids))), seed=0))
    weights, intercept = np.zeros((known.shape[1], fmri.shape[1]), np.float32), np.zeros(fmri.shape[1], np.float32)
    for start in range(0, fmri.shape[1], BLOCK):
        voxels = slice(start, start + BLOCK)
        chunk = max(1, WORKING_SET // fmri[:, voxels].size)
        parts = [candidates[at : at + chunk] for at in range(0, len(candidates), chunk)]
        errors = [held_out_errors(part, fmri[:, voxels], folds) for part in parts]
        share = shares(np.concatenate(errors), len(fmri))
        linear, constant = FieldRidges(candidates, fmri[:, voxels]).mean_over_penalties(share)
        weights[:, voxels], intercept[voxels] = linear[:, 0], constant.sum(0)
    return weights, intercept
