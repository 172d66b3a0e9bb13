"""`train --from_model OLD --freeze_shared`: new subjects of a trained model, from few trials of each.

All that subjects share is kept. Only linear maps are fitted, in closed form. The responses of a new voxel are predicted
from those that the model predicts for the voxels that it knows, since many subjects' voxels respond to the same things:

    fmri_v  =  t_0 ridge_v(known voxels)  +  t_1 mean over known voxels k of (a_vk known_k + b_vk), by likelihood

The fMRI is mapped to the latent by two ridges,

    z, w  =  t_2 ridge from the trials  +  t_3 ridge from simulated trials, images with the fMRI predicted above

All t are fitted by non-negative least squares to held-out stimuli.
"""

import logging
import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from datasets import Dataset

from visionflow_hf.corpus.responses import pairs_of
from visionflow_hf.errors import UserError, count
from visionflow_hf.modeling import VisionFlowModel, VisionFlowProcessor
from visionflow_hf.modeling.fmri_bridges import put
from visionflow_hf.modeling.ridge import FOLDS, Ridge, RidgePath, fit_ridge, group_folds, likely_mean
from visionflow_hf.stimuli import BATCH, Stimuli
from visionflow_hf.training.alignment import IMAGES, image_latents
from visionflow_hf.training.build import build_processor
from visionflow_hf.training.linear_latent import BLOCK, WORKING_SET, stack
from visionflow_hf.training.trials import Trials

logger = logging.getLogger(__name__)

FEWEST_STIMULI = 4  # the least from which folds within folds within folds can be made
MOST_KNOWN = 2000  # known voxels with which a new one is compared, shared out among the subjects
LEAST_NOISE = 1e-3  # of a voxel's variance


@torch.no_grad()
def fit_new_subjects(
    model: VisionFlowModel,
    processor: VisionFlowProcessor,
    train: Dataset,
    seed: int,
    cache: str | os.PathLike | None = None,
) -> None:
    """Fit the subjects of `train` to a trained model; one with the name of a known subject takes its place.

    Raises:
        UserError: a model without subjects, or a subject with too few stimuli.
    """
    if not processor.subjects:
        raise UserError("the model knows no subject to whose voxels new ones could be compared: train it first")
    pairs = pairs_of(train)
    own = build_processor(train)
    known = known_voxels(model, seed)
    stimuli = Stimuli(processor, [pairs], cache=cache)
    simulated = images_to_simulate(model, stimuli, seed)
    simulated_known = known.predict(simulated[0])
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
        distinct = list(dict.fromkeys(names))
        if len(distinct) < FEWEST_STIMULI:
            raise UserError(f"{name} has {count(distinct, 'stimulus')}: at least {FEWEST_STIMULI} are needed")
        fmri = trials.fmri(name).to(model.device)
        posterior = image_latents(model, stimuli, distinct)
        place_of = {stimulus: row for row, stimulus in enumerate(distinct)}
        rows = [place_of[stimulus] for stimulus in names]
        learned, linear = posterior.learned.mean[rows], posterior.linear.mean[rows]
        responses = known.predict(model.latent_to_fmri.read(learned, linear))
        to_voxels, missed = fit_voxels(responses, fmri, names)
        place = model.config.subjects.index(name)
        weights, level = known.weights @ to_voxels.weights, known.intercept @ to_voxels.weights + to_voxels.intercept
        put(model.latent_to_fmri.voxel_maps[place], Ridge(weights, level, 0.0))
        model.set_noise(name, missed)
        model.latent_to_fmri.set_shared_noise(place, fmri - to_voxels.predict(responses))
        to_latent = fit_latents(fmri, learned, linear, responses, (simulated_known, simulated[1]), names)
        sizes = [model.config.latent_dim, model.config.linear_dim]
        parts = zip(to_latent.weights.split(sizes, dim=1), to_latent.intercept.split(sizes), strict=True)
        bridge = model.fmri_to_latent
        for layer, (own_weights, own_level) in zip(
            (bridge.to_learned[place], bridge.to_linear[place]), parts, strict=True
        ):
            put(layer, Ridge(own_weights, own_level, 0.0))
        logger.info(f"{name}: {fmri.shape[1]} voxels fitted to {len(fmri)} trials of {len(distinct)} stimuli")


def images_to_simulate(model: VisionFlowModel, stimuli: Stimuli, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the voxels' maps read, and z and w, of the stimuli, augmented copies, and images decoded from the prior.

    `(images, read)` and `(images, latent_dim + linear_dim)`.
    """
    torch.manual_seed(seed)
    posteriors = [image_latents(model, stimuli, list(stimuli.keys), IMAGES)]
    for _ in range(IMAGES // BATCH):
        learned = torch.randn(BATCH, model.config.latent_dim, device=model.device)
        posteriors.append(model.encode_image(model.image_decoder(learned.to(model.dtype))))
    learned = torch.cat([one.learned.mean.float() for one in posteriors])
    linear = torch.cat([one.linear.mean.float() for one in posteriors])
    return model.latent_to_fmri.read(learned, linear), torch.cat([learned, linear], dim=1)


def known_voxels(model: VisionFlowModel, seed: int) -> Ridge:
    """The maps to up to MOST_KNOWN of the model's voxels, drawn at random: weights `(read, voxels)`."""
    rng = np.random.default_rng(seed)
    maps = model.latent_to_fmri.voxel_maps
    drawn = [np.sort(rng.permutation(one.out_features)[: max(1, MOST_KNOWN // len(maps))]) for one in maps]
    weights = torch.cat([one.weight[rows] for one, rows in zip(maps, drawn, strict=True)]).float().T
    return Ridge(weights, torch.cat([one.bias[rows] for one, rows in zip(maps, drawn, strict=True)]).float(), 0.0)


def fit_voxels(known: torch.Tensor, fmri: torch.Tensor, stimulus_ids: Sequence[str]) -> tuple[Ridge, torch.Tensor]:
    """Known voxels `(trials, known)` to new ones, and the mean squared error on held-out stimuli `(voxels,)`."""

    def models(rows: torch.Tensor) -> list[Ridge]:
        names = [stimulus_ids[row] for row in rows]
        return [fit(known[rows], fmri[rows], names) for fit in (fit_ridge, fit_similar_voxels)]

    ridge, expected = stacked(models, known, fmri, stimulus_ids)
    return ridge, (expected - fmri).square().mean(0)


def fit_latents(
    fmri: torch.Tensor,
    learned: torch.Tensor,
    linear: torch.Tensor,
    known: torch.Tensor,
    simulated: tuple[torch.Tensor, torch.Tensor],
    stimulus_ids: Sequence[str],
) -> Ridge:
    """fMRI `(trials, voxels)` to z and w `(trials, latent_dim + linear_dim)`.

    Args:
        simulated: responses of known voxels to images, and their z and w.
    """
    latents = torch.cat([learned, linear], dim=1)

    def models(rows: torch.Tensor) -> list[Ridge]:
        names = [stimulus_ids[row] for row in rows]
        to_voxels, missed = fit_voxels(known[rows], fmri[rows], names)
        certain = 1 / missed.clamp(min=LEAST_NOISE).sqrt()
        trials = to_voxels.predict(simulated[0]) * certain  # without noise, whose variance, now 1, is the penalty
        inverse = RidgePath(trials, simulated[1]).solve(float(len(trials)))
        inverse.weights = certain[:, None] * inverse.weights
        return [fit_ridge(fmri[rows], latents[rows], names), inverse]

    ridge, _ = stacked(models, fmri, latents, stimulus_ids, judged=learned.shape[1])
    return ridge


def stacked(
    models: Callable[[torch.Tensor], list[Ridge]],
    features: torch.Tensor,
    targets: torch.Tensor,
    stimulus_ids: Sequence[str],
    judged: int | None = None,
) -> tuple[Ridge, torch.Tensor]:
    """The weighted sum of models that predicts held-out stimuli best in the first `judged` targets.

    Args:
        models: fits them to the trials with these numbers.

    Returns:
        The sum, and its predictions `(trials, targets)` of the stimuli that the models were fitted without.
    """
    predicted, levels = [torch.empty_like(targets), torch.empty_like(targets)], torch.empty_like(targets)
    for train, test in group_folds(stimulus_ids, FOLDS, seed=0):
        levels[test] = targets[train].mean(0)
        for whole, ridge in zip(predicted, models(train), strict=True):
            whole[test] = ridge.predict(features[test]) - levels[test]
    weights = stack([one[:, :judged] for one in predicted], (targets - levels)[:, :judged]).tolist()
    fitted = models(torch.arange(len(targets)))
    linear = sum(t * one.weights for t, one in zip(weights, fitted, strict=True))
    level = sum(t * one.intercept for t, one in zip(weights, fitted, strict=True)) + (1 - sum(weights)) * targets.mean(
        0
    )
    return Ridge(linear, level, 0.0), levels + sum(t * one for t, one in zip(weights, predicted, strict=True))


def fit_similar_voxels(known: torch.Tensor, fmri: torch.Tensor, stimulus_ids: Sequence[str]) -> Ridge:
    """For each voxel the mean over the known voxels, each scaled to it by ridge, by their likelihood."""
    candidates = known.T[:, :, None].contiguous()
    weights = []
    for start in range(0, fmri.shape[1], BLOCK):
        responses = fmri[:, start : start + BLOCK]
        parts = candidates.split(max(1, WORKING_SET // responses.numel()))
        own, intercept = (
            responses.new_zeros(known.shape[1], responses.shape[1]),
            responses.new_zeros(responses.shape[1]),
        )
        ridges = likely_mean([lambda part=part: part for part in parts], responses)
        for rows, ridge in zip(torch.arange(len(candidates)).split(len(parts[0])), ridges, strict=True):
            if ridge is not None:
                own[rows] = ridge.weights[:, 0]
                intercept += ridge.intercept.sum(0)
        weights.append((own, intercept))
    return Ridge(*(torch.cat(parts, dim=-1) for parts in zip(*weights, strict=True)), 0.0)
