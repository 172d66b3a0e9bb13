"""The linear decoder, and how much of decoding it and the MLP from fMRI to latent are given.

Where distinct stimuli are few, a decoder trained on them makes new images too much like them, and a linear map from the
latent to pixels does better; and an MLP that was trained on simulated trials helps only as far as the encoding model
behind these is right. So both shares are chosen on held-out train stimuli; of fewer than 50 the MLP gets half at most.
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch

from visionflow_hf.metrics import pixel_correlation, ssim
from visionflow_hf.modeling import VisionFlowModel
from visionflow_hf.modeling.fmri_bridges import put
from visionflow_hf.modeling.image_decoder import blend
from visionflow_hf.modeling.ridge import Ridge, RidgePath, squared_norm
from visionflow_hf.stimuli import BATCH, Stimuli
from visionflow_hf.training.alignment import image_latents
from visionflow_hf.training.trials import Trials

logger = logging.getLogger(__name__)

PENALTY = 1e-3  # times the mean squared norm of a centred latent: next to none
LEAST_PREDICTED = 1e-3  # of the variance of a latent dimension
MLP_SHARES = (0.0, 0.5, 1.0)
MLP_SHARES_OF_FEW = (0.0, 0.5)  # stimuli
LINEAR_SHARES = tuple(np.linspace(0, 1, 11).tolist())
MOST_ASKED = 128  # held-out stimuli by which the shares are chosen


@torch.no_grad()
def fit_linear_decoders(
    model: VisionFlowModel, stimulus_ids: list[str], stimuli: Stimuli, errors: torch.Tensor
) -> None:
    """Fit the linear maps from the latents of images to their pixels, of 32 px a side at most, and to their embedding.

        pixels, embedding ~ (s [z, w]) M        s = 1 - error / variance, of each latent dimension

    There are mostly more dimensions than images. The image is read from those that fMRI predicts.

    Args:
        stimulus_ids: of images with and without fMRI.
        errors (`torch.Tensor` of shape `(latent_dim + linear_dim,)`):
            Mean squared error with which the latent is predicted from fMRI on held-out stimuli.
    """
    latents, decoder = image_latents(model, stimuli, stimulus_ids).mean, model.linear_decoder
    predicted = (1 - errors / latents.var(0, correction=0).clamp(min=1e-12)).clamp(min=LEAST_PREDICTED)
    targets = []
    for start in range(0, len(stimulus_ids), BATCH):  # all at full size can fill memory
        names = stimulus_ids[start : start + BATCH]
        pixels, features = stimuli.pixel_values(names), stimuli.image_features(names, with_linear=False)
        small = pixels
        if list(pixels.shape[2:]) != decoder.shape[1:]:
            small = torch.nn.functional.interpolate(pixels, decoder.shape[1:], mode="bilinear", antialias=True)
        embedding = model.embed_image(pixels.to(model.device), features)
        targets.append(torch.cat([small.flatten(1).to(model.device), embedding.float().to(model.device)], dim=1))
    scaled = latents * predicted
    ridge = RidgePath(scaled, torch.cat(targets)).solve(PENALTY * squared_norm(scaled))
    weights = predicted[:, None] * ridge.weights
    parts = [weights.shape[1] - len(model.embedding_decoder.bias), len(model.embedding_decoder.bias)]
    (to_pixels, to_embedding), (level, embedding_level) = weights.split(parts, dim=1), ridge.intercept.split(parts)
    from_learned, from_linear = to_pixels.split([model.config.latent_dim, model.config.linear_dim])
    put(decoder.from_learned, Ridge(from_learned, level, ridge.penalty))
    decoder.from_linear.weight.copy_(from_linear.T)
    put(model.embedding_decoder, Ridge(to_embedding, embedding_level, ridge.penalty))


@torch.no_grad()
def choose_shares(
    model: VisionFlowModel,
    held_out: Trials,
    stimuli: Stimuli,
    seed: int,
    mlp_shares: Sequence[float] = MLP_SHARES,
) -> tuple[float, float]:
    """The shares of the MLP and of the linear decoder with the highest quality on held-out stimuli, repeats averaged.

    Args:
        model: fitted without these stimuli.
        mlp_shares: among which is chosen.
    """
    learned, linear, images = [], [], []
    for name in held_out.subjects:
        own = held_out.some_stimuli(name, max(1, MOST_ASKED // len(held_out.subjects)), seed)
        if not own:
            continue
        fmri = held_out.mean_responses(name, own).to(model.device)
        ids = torch.full((len(own),), model.config.subjects.index(name), device=model.device)
        h, v = model.eval().fmri_to_latent.voxels_to_latent(fmri, ids)
        learned.append(h)
        linear.append(v)
        images.append(stimuli.pixel_values(own))
    h, v, images = torch.cat(learned), torch.cat(linear), as_array(torch.cat(images))
    found = {}
    for mlp in mlp_shares:
        posterior = model.fmri_to_latent.correct(h, v, mlp)
        decoded = model.image_decoder(posterior.learned.mean).float()
        straight = model.linear_decoder(posterior.learned.mean, posterior.linear.mean).float()
        for share in LINEAR_SHARES:
            found[mlp, share] = quality(images, as_array(blend(decoded, straight, share)))
    mlp, share = max(found, key=found.get)
    logger.info(
        f"shares chosen on {len(images)} held-out stimuli: MLP {mlp:.0%}, linear decoder {share:.0%} "
        f"(quality {found[mlp, share]:.3f}; {found[0.0, 0.0]:.3f} without both)"
    )
    return mlp, share


def quality(images: np.ndarray, made: np.ndarray) -> float:
    """ssim + (pixcorr + R^2) / 2, R^2 being the share of the images' variance that the squared error explains.

    ssim alone would choose what is sharp, the squared error alone what is soft.
    """
    missed, variance = np.square(images - made).mean(), np.square(images - images.mean(0)).mean()
    pixels = (pixel_correlation(images, made).mean() + 1 - missed / max(variance, 1e-12)) / 2
    return float(ssim(images, made).mean() + pixels)


def as_array(images: torch.Tensor) -> np.ndarray:
    """`(images, channels, height, width)` as `(images, height, width)`, with a last axis of 3 for RGB."""
    return images.permute(0, 2, 3, 1).squeeze(-1).cpu().numpy()
