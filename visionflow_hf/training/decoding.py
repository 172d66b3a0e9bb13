"""How a model decodes: the shares of the linear decoder and of the MLP from fMRI to latent, gradient steps, brightness.

Where distinct stimuli are few, a decoder trained on them makes new images too much like them, and a linear map from the
latent to pixels does better. An MLP that was trained on simulated trials, and gradient steps on the latent
(`refinement`), help only as far as the encoding model behind them is right. Reconstructions can be brighter than the
images: the latent that fMRI predicts is nearer to the mean than an image's. So all of it is chosen on held-out train
stimuli; of fewer than 50 the MLP gets half at most.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from visionflow_hf.metrics import pixel_correlation, ssim
from visionflow_hf.modeling import VisionFlowModel
from visionflow_hf.modeling.image_decoder import blend
from visionflow_hf.modeling.refinement import refined
from visionflow_hf.modeling.trials import Trials

logger = logging.getLogger(__name__)

MLP_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
MLP_SHARES_OF_FEW = MLP_SHARES[:3]  # where distinct stimuli are few
LINEAR_SHARES = tuple(np.linspace(0, 1, 11).tolist())
MOST_ASKED = 128  # held-out stimuli by which all this is chosen
REFINE_STEPS = 10  # more change little
BRIGHTNESS = (1.0, 0.95, 0.9)
AT_ONCE = 32  # images


class Decoding(NamedTuple):
    """How a model decodes; by default without all of it."""

    mlp_share: float = 0.0
    linear_share: float = 0.0
    refine_steps: int = 0
    brightness: float = 1.0

    def set_in(self, model: VisionFlowModel) -> None:
        """Let the model decode so, for all of its subjects."""
        model.fmri_to_latent.mlp_share.data.fill_(self.mlp_share)
        config = model.config
        config.linear_share, config.refine_steps, config.brightness = self[1:]


@torch.no_grad()
def choose_decoding(
    model: VisionFlowModel, held_out: Trials, stimuli, seed: int, mlp_shares: Sequence[float] = MLP_SHARES
) -> Decoding:
    """The shares of the MLP and of the linear decoder with the highest quality on held-out stimuli, repeats averaged;
    the number of gradient steps: none where the quality would fall by more than its standard error; then the brightness
    with the highest quality.

    No steps are tried with layers of a pretrained encoder or with an autoencoder, which each step would run forward and
    backward.

    Args:
        model: fitted without these stimuli.
        stimuli: as in `modeling.refit.RowImages`.
        mlp_shares: among which is chosen.
    """
    learned, linear, images, responses, places = [], [], [], [], []
    for name in held_out.subjects:
        own = held_out.some_stimuli(name, max(1, MOST_ASKED // len(held_out.subjects)), seed)
        fmri = held_out.mean_responses(name, own).to(model.device)
        ids = torch.full((len(own),), model.config.subjects.index(name), device=model.device)
        h, v = model.eval().fmri_to_latent.voxels_to_latent(fmri, ids)
        learned.append(h)
        linear.append(v)
        images.append(stimuli.pixel_values(own))
        responses.append(nn.functional.pad(fmri, (0, max(model.config.num_voxels) - fmri.shape[1])))
        places.append(ids)
    h, v, images = torch.cat(learned), torch.cat(linear), as_array(torch.cat(images))
    found = {}
    for mlp in mlp_shares:
        posterior = model.fmri_to_latent.correct(h, v, mlp)
        decoded = model.image_decoder(posterior.learned.mean).float()
        straight = model.linear_decoder(posterior.learned.mean, posterior.linear.mean).float()
        for share in LINEAR_SHARES:
            found[mlp, share] = quality(images, as_array(blend(decoded, straight, share))).mean()
    mlp, share = max(found, key=found.get)
    logger.info(
        f"shares chosen on {len(images)} held-out stimuli: MLP {mlp:.0%}, linear decoder {share:.0%} "
        f"(quality {found[mlp, share]:.3f}; {found[0.0, 0.0]:.3f} without both)"
    )
    fmri, ids, plain, better = torch.cat(responses), torch.cat(places), [], []
    costly = bool(model.config.linear_layers) or model.config.decoder_type == "autoencoder_kl"
    model.config.linear_share = share  # of `decode`
    for rows in torch.arange(len(h)).split(AT_ONCE):
        posterior = model.fmri_to_latent.correct(h[rows], v[rows], mlp)
        plain.append(as_array(model.decode(posterior.learned.mean, posterior.linear.mean).float()))
        if not costly:
            latents = refined(model, posterior, fmri[rows], ids[rows], REFINE_STEPS)
            better.append(as_array(model.decode(*latents).float()))
    model.config.linear_share = 0.0  # the image stage trains the image decoder alone
    made, steps = np.concatenate(plain), 0
    if not costly:
        without, refined_by = quality(images, made), quality(images, np.concatenate(better))
        gain = refined_by - without
        standard_error = gain.std() / max(len(gain) - 1, 1) ** 0.5
        if gain.mean() >= -standard_error:
            made, steps = np.concatenate(better), REFINE_STEPS
        logger.info(
            f"gradient steps on the latent: {steps} "
            f"(quality {refined_by.mean():.3f} with {REFINE_STEPS}, {without.mean():.3f} without, "
            f"standard error of the difference {standard_error:.3f})"
        )
    else:
        logger.info("gradient steps on the latent: 0 (not tried: each would run the encoder or the autoencoder)")
    found = {brightness: quality(images, brightness * made).mean() for brightness in BRIGHTNESS}
    brightness = max(found, key=found.get)
    logger.info(f"brightness: {brightness:.0%} (quality {found[brightness]:.3f}; {found[1.0]:.3f} with 100%)")
    return Decoding(mlp, share, steps, brightness)


def quality(images: np.ndarray, made: np.ndarray) -> np.ndarray:
    """ssim + (pixcorr + R^2) / 2 of each image, R^2 being 1 - its squared error over the variance of all images.

    ssim alone would choose what is sharp, the squared error alone what is soft.
    """
    missed = np.square(images - made).reshape(len(images), -1).mean(1)
    variance = np.square(images - images.mean(0)).mean() or images.var()  # where all show the same stimulus
    return ssim(images, made) + (pixel_correlation(images, made) + 1 - missed / max(variance, 1e-12)) / 2


def as_array(images: torch.Tensor) -> np.ndarray:
    """`(images, channels, height, width)` as `(images, height, width)`, with a last axis of 3 for RGB."""
    return images.permute(0, 2, 3, 1).squeeze(-1).cpu().numpy()
