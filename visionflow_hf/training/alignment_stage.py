"""The alignment stage: the MLP from fMRI to latent learns from trials that the model itself makes up.

    image'  ->  q(z | image')                                          as the image side sees it
    image'  ->  fMRI' = predicted fMRI + noise  ->  h = W fMRI'        as a scanner might
    loss     =  KL(q(z | image') || q(z | fMRI')) + CONTRASTIVE (which image' was it?)

Few pairs do not tell how to get from voxels to images, but they do tell what each voxel sees; and where that is known,
pairs can be made without end, from the stimuli and from images made of them. The noise is what held-out trials have. It
is drawn behind the linear maps, where it is a Gaussian of `latent_dim` dimensions:

    cov = W' (SHARED R'R / n + (1 - SHARED) diag(noise)) W      R (n, voxels) being what predictions miss of n trials

A wrong idea of the voxels makes wrong pairs. So the MLP counts only as much as a rehearsal has shown it to be worth.
"""

from collections import Counter

import numpy as np
import torch
from datasets import Dataset
from tqdm import tqdm

from visionflow_hf.corpus.responses import responses_of
from visionflow_hf.modeling import VisionFlowModel, VisionFlowProcessor
from visionflow_hf.modeling.latent_gaussian import LatentGaussian
from visionflow_hf.modeling.losses import alignment_loss, contrastive_loss
from visionflow_hf.training.arguments import VisionFlowTrainingArguments
from visionflow_hf.training.augmentation import FEW_STIMULI, augment
from visionflow_hf.training.image_latents import posterior_of
from visionflow_hf.training.stimuli import BATCH, Stimuli

IMAGES = 4000  # about as many as trials are made of, fewer where the stage is short
STEPS, TRIALS = 2000, 256  # trials a step
LEARNING_RATE = 1e-3
CONTRASTIVE = 0.3  # weight of the contrastive loss beside the alignment loss
SHARED = 0.3  # of the noise variance, that voxels have in common
MOST_TRIALS = 2000  # of a subject, that tell what they have in common


def align(
    model: VisionFlowModel,
    processor: VisionFlowProcessor,
    train: Dataset,
    stimuli: Stimuli,
    share: float,
    args: VisionFlowTrainingArguments,
) -> None:
    """Train the MLP of `model.fmri_to_latent`; all else has to be finished, and stays as it is.

    Args:
        train: trials are made of its stimuli.
        stimuli: where they have features of a frozen encoder no other images are made, since the encoder would have
            to look at them all.
        share: of the MLP's correction of the mean that is to count, from 0 to 1.
        args: complete; the stage has as many steps as STEPS says, or twice as many as the Trainer had if that is less.
    """
    torch.manual_seed(args.seed)
    steps = min(STEPS, 2 * args.max_steps)
    bridge, learned_dim = model.eval().fmri_to_latent, model.config.learned_dim
    with torch.no_grad():
        distinct = list(dict.fromkeys(train["stimulus_id"]))
        images = image_posteriors(model, stimuli, distinct, min(IMAGES, 2 * steps))
        read = model.latent_to_fmri.read(images.mean)
        read_of = dict(zip(distinct, read, strict=False))  # what follows are images made of them
        voxel_maps = zip(bridge.voxel_maps, model.latent_to_fmri.voxel_maps, strict=True)
        linear = [inward(outward(read)) for inward, outward in voxel_maps]
        noise = [trial_noise(model, processor, train, read_of, subject) for subject in processor.subjects]

    def made_up(subject: int) -> tuple[LatentGaussian, torch.Tensor]:
        """q(z | image') and h of some trials of a subject, means over as many repeats as a stimulus of train has."""
        rows = torch.randint(len(read), (TRIALS,), device=read.device)
        factor, most = noise[subject]
        repeats = torch.randint(1, most + 1, (TRIALS, 1), device=read.device)
        drawn = torch.randn(TRIALS, len(factor), device=read.device) @ factor / repeats.sqrt()
        return LatentGaussian(images.mean[rows], images.logvar[rows]), linear[subject][rows] + drawn

    with torch.no_grad():  # it begins as the linear maps, as wide as they are wrong
        bridge.hidden.weight.normal_(std=bridge.hidden.in_features**-0.5)
        bridge.hidden.bias.zero_()
        bridge.head.weight.zero_()
        bridge.head.bias.zero_()
        trials = [made_up(subject) for subject in range(len(linear))]
        bridge.head.bias[learned_dim:] = best_variance(bridge, 0.0, trials).log()
    everything = torch.ones(TRIALS, dtype=torch.bool, device=read.device)
    level = images.mean[:, :learned_dim].mean(0)
    weights = [*bridge.hidden.parameters(), *bridge.head.parameters()]
    learned = [weight.requires_grad for weight in weights]
    optimizer = torch.optim.AdamW([weight.requires_grad_() for weight in weights], lr=LEARNING_RATE, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    bridge.train()
    for step in tqdm(range(steps), desc="alignment stage", unit="step", leave=False, disable=None):
        posterior, h = made_up(step % len(linear))
        from_fmri = bridge.posterior(h)
        loss = alignment_loss(posterior, from_fmri, everything)
        means = [one.mean[:, :learned_dim] - level for one in (posterior, from_fmri)]
        loss = loss + CONTRASTIVE * contrastive_loss(*means)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    bridge.eval()
    for weight, before in zip(weights, learned, strict=True):
        weight.requires_grad_(before)
    with torch.no_grad():
        bridge.mlp_share.fill_(share)
        trials = [made_up(subject) for subject in range(len(linear))]
        bridge.head.bias[learned_dim:] += (
            best_variance(bridge, share, trials) / best_variance(bridge, 1.0, trials)
        ).log()


@torch.no_grad()
def best_variance(bridge, share: float, trials: list[tuple[LatentGaussian, torch.Tensor]]) -> torch.Tensor:
    """The variance of q(z | fMRI), `(learned_dim,)`, at which the loss is least: that of q(z | image), and the error.

    The mean is h with `share` of the MLP's correction.
    """
    learned_dim = bridge.head.out_features // 2
    spread = [(bridge.posterior(h, share).mean - images.mean).square() + images.logvar.exp() for images, h in trials]
    return torch.cat(spread)[:, :learned_dim].mean(0)


def image_posteriors(
    model: VisionFlowModel, stimuli: Stimuli, stimulus_ids: list[str], images: int = IMAGES
) -> LatentGaussian:
    """q(z | image) of stimuli, then of about as many `images` made of them where the encoder is not frozen."""
    posteriors, made = [], []
    for start in range(0, len(stimulus_ids), BATCH):
        names = stimulus_ids[start : start + BATCH]
        posteriors.append(posterior_of(model, stimuli, names))
        if stimuli.features is not None:
            continue
        pixels = stimuli.pixel_values(names).to(model.device)
        for _ in range(images // len(stimulus_ids)):
            made.append(model.encode_image(augment(pixels, len(stimulus_ids) < FEW_STIMULI)))
    posteriors += made
    return LatentGaussian(
        torch.cat([one.mean for one in posteriors]).float(), torch.cat([one.logvar for one in posteriors]).float()
    )


def trial_noise(
    model: VisionFlowModel,
    processor: VisionFlowProcessor,
    train: Dataset,
    read_of: dict[str, torch.Tensor],
    name: str,
) -> tuple[torch.Tensor, int]:
    """What standard normal numbers have to be multiplied by to be the noise of h, `(latent_dim, latent_dim)`.

    And how often the subject saw one stimulus at most.

    Args:
        read_of: what the map to voxels reads of each stimulus.
    """
    subject = processor.subjects.index(name)
    trials = responses_of(train, name)
    most = max(Counter(trials.stimulus_ids).values())
    rows = np.random.default_rng(0).permutation(len(trials.fmri))[:MOST_TRIALS]
    read = torch.stack([read_of[trials.stimulus_ids[row]] for row in rows])
    predicted = model.latent_to_fmri.voxel_maps[subject](read).float().cpu()
    fmri = (trials.fmri[rows] - processor.fmri_mean[name]) / processor.fmri_std[name]
    residuals = torch.from_numpy(fmri) - predicted
    std = (model.latent_to_fmri.noise_logvar[subject, : residuals.shape[1]] / 2).exp().float().cpu()
    fitted = residuals.square().mean(0).sqrt().clamp(min=1e-6)  # to these rows: less than what new ones would have
    residuals = residuals * (std / fitted)
    inward = model.fmri_to_latent.voxel_maps[subject].weight.float().cpu().T
    shared, own = residuals @ inward / len(residuals) ** 0.5, std[:, None] * inward
    cov = SHARED * shared.T @ shared + (1 - SHARED) * own.T @ own
    values, vectors = torch.linalg.eigh(cov.double())
    factor = ((vectors * values.clamp(min=0).sqrt()) @ vectors.T).float()  # symmetric: no eigenvector's sign in it
    return factor.to(model.device), most
