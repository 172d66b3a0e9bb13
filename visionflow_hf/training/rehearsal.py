"""How much of decoding the MLP and the linear path are given: as much as serves stimuli best that nothing learned from.

Where the corpus spares no stimuli for validation, a copy of the model learns without some of them first, up to the same
finish as the model itself.
"""

import copy
import tempfile
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from transformers.trainer_utils import SaveStrategy
from transformers.utils import logging

from visionflow_hf.corpus.responses import responses_of, without
from visionflow_hf.corpus.splits import stimulus_folds
from visionflow_hf.evaluation.metrics import pixel_correlation, ssim
from visionflow_hf.modeling import VisionFlowModel, VisionFlowProcessor
from visionflow_hf.modeling.image_decoder import blend
from visionflow_hf.training.arguments import VisionFlowTrainingArguments
from visionflow_hf.training.finish import finish
from visionflow_hf.training.linear_path import fit_linear_decoder, pixels_of
from visionflow_hf.training.trainer import run_trainer

logger = logging.get_logger("visionflow_hf")

MLP_SHARES = np.linspace(0, 1, 5)
LINEAR_SHARES = np.linspace(0, 1, 11)
FOLDS = 5  # by stimulus
ENOUGH = 8  # held-out stimuli: with so many, the rehearsals end
MOST_ASKED = 128  # stimuli by which the shares are chosen


@dataclass
class Shares:
    """What is chosen, each from 0 to 1.

    Attributes:
        mlp: of the correction that the MLP from fMRI to latent makes.
        linear: of the linear path from latent to pixels.
    """

    mlp: float
    linear: float


@torch.no_grad()
def quality_by_share(
    model: VisionFlowModel,
    processor: VisionFlowProcessor,
    seen: Dataset,
    unseen: Dataset,
    features: dict[str, torch.Tensor],
    gain: float,
) -> np.ndarray:
    """Mean pixcorr + ssim, `(MLP_SHARES, LINEAR_SHARES)`, of the images that are read from the fMRI in `unseen`.

    The model must be finished, and have learned from `seen` alone. Repeats are averaged before they are read.
    """
    quality = []
    subjects = sorted(set(unseen["subject"]))
    linear = [fit_linear_decoder(model, processor, seen, features, remaining(gain, share)) for share in MLP_SHARES]
    for subject in subjects:
        average, _ = responses_of(unseen, subject).averaged()
        rows = np.random.default_rng(0).permutation(len(average.fmri))[: max(1, MOST_ASKED // len(subjects))]
        asked = [average.stimulus_ids[row] for row in rows]
        real = as_array(pixels_of(processor, unseen, asked, model.config.image_size))
        fmri = processor(fmri=average.fmri[rows], subject=subject)["fmri"].to(model.device, model.dtype)
        h = model.fmri_to_latent.linear(fmri, {processor.subjects.index(subject): slice(None)})
        scores = []
        for share, straight in zip(MLP_SHARES, linear, strict=True):
            latent = model.fmri_to_latent.posterior(h, share).mean
            images = model.image_decoder(latent).float(), straight(latent).float()
            blends = (as_array(blend(*images, part)) for part in LINEAR_SHARES)
            scores.append([pixel_correlation(real, one) + ssim(real, one) for one in blends])
        quality.append(scores)
    return np.concatenate(quality, axis=2).mean(2)


def best_shares(quality: np.ndarray) -> Shares:
    """Those with the highest quality, which is logged."""
    mlp, linear = np.unravel_index(quality.argmax(), quality.shape)
    shares = Shares(float(MLP_SHARES[mlp]), float(LINEAR_SHARES[linear]))
    logger.info(
        f"pixcorr + ssim of what nothing learned from: {quality[0, 0]:.3f} by the linear map and the decoder, "
        f"{quality.max():.3f} with {shares.mlp:.0%} of the MLP and {shares.linear:.0%} of the linear path"
    )
    return shares


def remaining(gain: float, mlp_share: float) -> float:
    """The gain that latents from fMRI have left: the MLP takes its share of it back."""
    return 1 + (gain - 1) * (1 - mlp_share)


def validate(
    model: VisionFlowModel,
    processor: VisionFlowProcessor,
    seen: Dataset,
    unseen: Dataset,
    features: dict[str, torch.Tensor],
    wavelet_dim: int,
    args: VisionFlowTrainingArguments,
) -> np.ndarray:
    """`quality_by_share` of a copy of the model that is finished on `seen`."""
    model, gain = finish(copy.deepcopy(model), processor, seen, features, wavelet_dim, 1.0, args)
    return quality_by_share(model, processor, seen, unseen, features, gain)


def rehearse(
    model: VisionFlowModel,
    processor: VisionFlowProcessor,
    rows: Dataset,
    images: Dataset,
    features: dict[str, torch.Tensor],
    wavelet_dim: int,
    args: VisionFlowTrainingArguments,
) -> Shares:
    """The shares that serve best where a part of the stimuli is kept from a copy of the model.

    Args:
        images: rows without fMRI, from which the image side learns as well.
    """
    image_stage = copy.copy(args)
    image_stage.max_steps, image_stage.image_stage = max(1, round(args.max_steps * args.image_stage)), 1.0
    image_stage.save_strategy, image_stage.report_to = SaveStrategy.NO, []
    distinct = len(set(rows["stimulus_id"]))
    if distinct < 2:
        return Shares(0.0, 0.0)
    quality, asked = 0, 0
    for seen, unseen in stimulus_folds(rows["stimulus_id"], min(FOLDS, distinct), args.seed):
        seen, unseen = rows.select(seen), rows.select(unseen)
        held_out = len(set(unseen["stimulus_id"]))
        logger.info(f"rehearsal: the model learns without {held_out} of {distinct} stimuli")
        with tempfile.TemporaryDirectory(prefix="visionflow-rehearsal-") as image_stage.output_dir:
            more = without(images, unseen)
            trainer = run_trainer(copy.deepcopy(model), processor, seen, None, features, image_stage, images=more)
        rehearsed = trainer.accelerator.unwrap_model(trainer.model)
        quality = quality + held_out * validate(rehearsed, processor, seen, unseen, features, wavelet_dim, args)
        asked += held_out
        if asked >= ENOUGH:
            break
    return best_shares(quality / asked)


def as_array(images: torch.Tensor) -> np.ndarray:
    """`(images, channels, height, width)` as `(images, height, width)`, with a last axis of 3 for RGB."""
    return images.permute(0, 2, 3, 1).squeeze(-1).cpu().numpy()
