# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""A new subject of a trained model, from few trials: `VisionFlowModel.fit_subject`.

All that subjects share is kept. Only linear maps are fitted, in closed form. The responses of a new voxel are predicted
from those that the model predicts for the voxels that it knows, since many subjects' voxels respond to the same things:

    fmri_v  =  t_0 ridge_v(known voxels)  +  t_1 mean over known voxels k of (a_vk known_k + b_vk), by likelihood

The fMRI is mapped to the latent by two ridges,

    z, w  =  t_2 ridge from the trials  +  t_3 ridge from simulated trials, images with the fMRI predicted above

All t are fitted by non-negative least squares to held-out stimuli.
"""

from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch

from .feature_spaces import BATCH
from .fmri_bridges import LEAST_NOISE, put
from .precision import without_tf32
from .ridge import BLOCK, FOLDS, Groups, Ridge, RidgePath, fit_ridge, group_folds, likely_mean, stack

FEWEST_STIMULI = 4  # the least from which folds within folds within folds can be made
MOST_KNOWN = 2000  # known voxels with which a new one is compared, shared out among the subjects
PRIOR = 4000  # images decoded from the prior

Latents = tuple[torch.Tensor, torch.Tensor]  # means of z `(rows, latent_dim)` and of w `(rows, linear_dim)`


@torch.no_grad()
@without_tf32()
def fit_maps(
    model,
    name: str,
    fmri: torch.Tensor,
    latents: Latents,
    stimulus_ids: Sequence[str],
    simulated: Latents,
    known: Ridge,
) -> None:
    """Fit the maps of a subject that the model has room for (`add_subject`).

    Args:
        fmri (`torch.Tensor` of shape `(trials, voxels)`): standardised.
        latents: of the image of each trial.
        stimulus_ids: the stimulus of each trial; its repeats are held out together.
        simulated: of images whose responses are simulated.
        known: `known_voxels`, from before the subject was added.

    Raises:
        ValueError: too few stimuli.
    """
    enough(name, stimulus_ids)
    to_fmri, to_latent = model.latent_to_fmri, model.fmri_to_latent
    responses = known.predict(to_fmri.read(*latents))
    to_voxels, missed = fit_voxels(responses, fmri, stimulus_ids)
    place = model.config.subjects.index(name)
    level = known.intercept @ to_voxels.weights + to_voxels.intercept
    put(to_fmri.voxel_maps[place], Ridge(known.weights @ to_voxels.weights, level, 0.0))
    model.set_noise(name, missed)
    to_fmri.set_shared_noise(place, fmri - to_voxels.predict(responses))
    images = known.predict(to_fmri.read(*simulated)), torch.cat(simulated, dim=1)
    ridge = fit_latents(fmri, *latents, responses, images, stimulus_ids)
    sizes = [model.config.latent_dim, model.config.linear_dim]
    layers = to_latent.to_learned[place], to_latent.to_linear[place]
    for layer, weights, own in zip(
        layers, ridge.weights.split(sizes, dim=1), ridge.intercept.split(sizes), strict=True
    ):
        put(layer, Ridge(weights, own, 0.0))


def enough(name: str, stimulus_ids: Sequence) -> None:
    """Raise `ValueError` for a subject with too few stimuli."""
    distinct = len(set(stimulus_ids))
    if distinct < FEWEST_STIMULI:
        raise ValueError(f"{name} has {distinct} distinct stimuli: at least {FEWEST_STIMULI} are needed")


@torch.no_grad()
def latents_of(model, pixel_values: torch.Tensor) -> Latents:
    """Means of q(z, w | image) of images `(images, channels, height, width)`."""
    posteriors = [model.encode_image(some.to(model.device)) for some in pixel_values.split(BATCH)]
    return tuple(
        torch.cat([part.mean.float() for part in parts])
        for parts in zip(*[(one.learned, one.linear) for one in posteriors], strict=True)
    )


@torch.no_grad()
def latents_of_the_prior(model, seed: int) -> Latents:
    """Of 4,000 images that are decoded from z ~ N(0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(PRIOR, model.config.latent_dim, generator=generator).to(model.device, model.dtype)
    parts = [latents_of(model, model.image_decoder(some)) for some in z.split(BATCH)]
    return tuple(torch.cat(of) for of in zip(*parts, strict=True))


def known_voxels(model, seed: int, fitted: Collection[str] = ()) -> Ridge:
    """The maps to up to MOST_KNOWN of the model's voxels, drawn at random: weights `(read, voxels)`.

    Args:
        fitted: subjects who are to be fitted anew. Their maps are left out where there are others: they may have been
            fitted to the same trials, of which none would then be held out.
    """
    rng = np.random.default_rng(seed)
    named = zip(model.config.subjects, model.latent_to_fmri.voxel_maps, strict=True)
    maps = [one for name, one in named if name not in fitted] or list(model.latent_to_fmri.voxel_maps)
    drawn = [np.sort(rng.permutation(one.out_features)[: max(1, MOST_KNOWN // len(maps))]) for one in maps]
    weights = torch.cat([one.weight[rows] for one, rows in zip(maps, drawn, strict=True)]).float().T
    return Ridge(weights, torch.cat([one.bias[rows] for one, rows in zip(maps, drawn, strict=True)]).float(), 0.0)


def fit_voxels(known: torch.Tensor, fmri: torch.Tensor, stimulus_ids: Sequence[str]) -> tuple[Ridge, torch.Tensor]:
    """Known voxels `(trials, known)` to new ones, and the mean squared error on held-out stimuli `(voxels,)`."""

    def models(rows: torch.Tensor) -> list[Ridge]:
        names = [stimulus_ids[row] for row in rows]
        return [fit_ridge(known[rows], fmri[rows], names), fit_similar_voxels(known[rows], fmri[rows])]

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
    """The weighted sum of two models that predicts held-out stimuli best in the first `judged` targets.

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
    level = sum(t * one.intercept for t, one in zip(weights, fitted, strict=True))
    level = level + (1 - sum(weights)) * targets.mean(0)
    return Ridge(linear, level, 0.0), levels + sum(t * one for t, one in zip(weights, predicted, strict=True))


def fit_similar_voxels(known: torch.Tensor, fmri: torch.Tensor) -> Ridge:
    """For each voxel the mean over the known voxels, each scaled to it by ridge, by their likelihood."""
    candidates = known.T[:, :, None].contiguous()
    each_alone = Groups(lambda: candidates)
    parts = []
    for responses in fmri.split(BLOCK, dim=1):
        (ridge,) = likely_mean([each_alone], responses)
        parts.append((ridge.weights[:, 0], ridge.intercept.sum(0)))
    return Ridge(*(torch.cat(some, dim=-1) for some in zip(*parts, strict=True)), 0.0)
