# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""The alignment stage: the MLP from fMRI to latent learns from simulated trials.

    image  ->  q(z | image)                                           as the image encoder sees it
    image  ->  predicted fMRI + noise  ->  h, v by the linear maps    as a scanner might
    loss    =  KL(q(z | image) || q(z | fMRI))

Few pairs are not enough to train an MLP from voxels to images, but they show what each voxel responds to. With that,
any number of trials can be simulated, from the stimuli and from augmented copies of them. The noise has the covariance
of what predictions miss in real trials. It is drawn behind the linear maps, where it has few dimensions:

    cov = W' (SHARED R'R / n + (1 - SHARED) diag(noise)) W      R (n, voxels) being the errors of n trials
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from transformers.utils import logging

from .augmentation import augment
from .feature_spaces import BATCH
from .latent_gaussian import Gaussian, LatentGaussian
from .ridge import eigh
from .trials import Trials

IMAGES = 4000  # augmented copies, at most about as many
STEPS, TRIALS = 500, 256  # trials a step
LEARNING_RATE = 1e-3
SHARED = 0.3  # of the noise variance, that voxels have in common
MOST_TRIALS = 2000  # of a subject, by which the noise is measured


@torch.no_grad()
def align(model, trials: Trials, stimuli, max_steps: int, seed: int, unpaired: Sequence[str] = ()) -> None:
    """Train the MLP of `model.fmri_to_latent` to the mean and variance of z; all else is fitted already and stays.

    Args:
        stimuli: as in `refit.RowImages`; no augmented copies are made where a frozen encoder has made features of them:
            it would have to run.
        max_steps: the Trainer's; this stage has 500 steps, or twice as many as the Trainer where that is less.
        unpaired: images without fMRI, to which trials are simulated, too.
    """
    torch.manual_seed(seed)
    steps = min(STEPS, 2 * max_steps)
    bridge = model.train(False).fmri_to_latent
    images = image_latents(model, stimuli, [*trials.stimuli, *unpaired], min(IMAGES, 8 * steps))
    places = {stimulus: row for row, stimulus in enumerate(trials.stimuli)}
    simulated = [SimulatedTrials(model, trials, name, images, places) for name in trials.subjects]
    bridge.hidden.weight.normal_(std=bridge.hidden.in_features**-0.5)
    for part in (bridge.hidden.bias, *bridge.head.parameters()):
        part.zero_()
    missed = [(images.learned.mean - one.learned).square() + images.learned.logvar.exp() for one in simulated]
    bridge.head.bias[model.config.latent_dim :] = torch.cat(missed).mean(0).log()  # as wide as the maps are wrong
    weights = [*bridge.hidden.parameters(), *bridge.head.parameters()]
    learned = [weight.requires_grad for weight in weights]
    optimizer = torch.optim.AdamW([weight.requires_grad_() for weight in weights], lr=LEARNING_RATE, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    bridge.train()
    for step in logging.tqdm(range(steps), desc="alignment stage", unit="step", leave=False, disable=None):
        posterior, h, v = simulated[step % len(simulated)].draw(TRIALS)
        with torch.enable_grad():
            loss = posterior.kl_to(bridge.correct(h, v).learned).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    optimizer.zero_grad()  # a Trainer that goes on would add its own to what is left
    bridge.train(False)
    for weight, before in zip(weights, learned, strict=True):
        weight.requires_grad_(before)


class SimulatedTrials:
    """Trials of one subject, simulated behind the linear maps from its voxels to the latent.

    Args:
        images: q(z, w | image) of all images to which trials are simulated.
        places: the row in `images` of each stimulus of the trials.

    Attributes:
        learned, linear: h and v of each image without noise, `(images, latent_dim)` and `(images, linear_dim)`.
        most: how many repeats a stimulus has at most.
        noise: the square root of the covariance of the noise of h and v, symmetric.
    """

    def __init__(self, model, trials: Trials, name: str, images: LatentGaussian, places: dict[str, int]):
        subject = model.config.subjects.index(name)
        voxel_map = model.latent_to_fmri.voxel_maps[subject]
        inward = model.fmri_to_latent.to_learned[subject], model.fmri_to_latent.to_linear[subject]
        self.images = images
        read = model.latent_to_fmri.read(images.learned.mean, images.linear.mean)
        self.learned, self.linear = (  # by one map: the responses to all images can fill memory
            read @ (one.weight @ voxel_map.weight).T + one(voxel_map.bias) for one in inward
        )
        names = trials.stimulus_ids(name)
        self.most = max(Counter(names).values())
        rows = np.random.default_rng(0).permutation(len(names))[:MOST_TRIALS]
        predicted = voxel_map(read[[places[names[row]] for row in rows]])
        errors = trials.fmri(name)[rows].to(predicted) - predicted
        std = (model.latent_to_fmri.noise_logvar[subject, : errors.shape[1]] / 2).exp()
        errors = errors * (std / errors.square().mean(0).sqrt().clamp(min=1e-6))  # held-out errors are larger
        maps = torch.cat([one.weight for one in inward]).T
        shared, own = errors @ maps / len(errors) ** 0.5, std[:, None] * maps
        cov = SHARED * shared.T @ shared + (1 - SHARED) * own.T @ own
        values, vectors = eigh(cov)
        self.noise = (vectors * values.clamp(min=0).sqrt()) @ vectors.T  # symmetric: no eigenvector's sign in it

    def draw(self, count: int) -> tuple[Gaussian, torch.Tensor, torch.Tensor]:
        """q(z | image), h and v of some trials, each the mean of as many repeats as a stimulus may have."""
        rows = torch.randint(len(self.learned), (count,), device=self.learned.device)
        repeats = torch.randint(1, self.most + 1, (count, 1), device=self.learned.device)
        noise = torch.randn(count, len(self.noise), device=self.noise.device) @ self.noise / repeats.sqrt()
        h, v = noise.split([self.learned.shape[1], self.linear.shape[1]], dim=1)
        learned = self.images.learned
        return Gaussian(learned.mean[rows], learned.logvar[rows]), self.learned[rows] + h, self.linear[rows] + v


@torch.no_grad()
def image_latents(
    model, stimuli, stimulus_ids: list[str], augmented: int = 0, with_linear: bool = True
) -> LatentGaussian:
    """q(z, w | image) of stimuli, then of about as many augmented copies, where the encoder is not frozen.

    Args:
        with_linear: as in `VisionFlowModel.encode_image`.
    """
    posteriors, copies = [], []
    for start in range(0, len(stimulus_ids), BATCH):
        names = stimulus_ids[start : start + BATCH]
        pixels, features = stimuli.pixel_values(names).to(model.device), stimuli.image_features(names, with_linear)
        if features is not None:
            posteriors.append(model.encode_image(pixels, features.to(model.device), with_linear=with_linear))
            continue
        posteriors.append(model.encode_image(pixels, with_linear=with_linear))
        for _ in range(augmented // len(stimulus_ids)):
            copies.append(model.encode_image(augment(pixels, len(stimulus_ids))))
    parts = posteriors + copies
    learned, linear = (
        Gaussian(
            torch.cat([one.mean for one in gaussians]).float(), torch.cat([one.logvar for one in gaussians]).float()
        )
        for gaussians in zip(*[(one.learned, one.linear) for one in parts], strict=True)
    )
    return LatentGaussian(learned, linear)
