"""How much of decoding the MLP and the linear path are given, how far decoding spreads, and what it calls black.

Each as much as serves stimuli best that nothing learned from.

Where the corpus spares no stimuli for validation, the image side learns without some of them first, and a copy of the
model is finished then as the model itself will be. With the shares chosen, the image side goes on to learn from all.
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
from visionflow_hf.metrics import pixel_correlation, ssim
from visionflow_hf.modeling import VisionFlowModel, VisionFlowProcessor
from visionflow_hf.modeling.image_decoder import LinearDecoder, blacken, blend
from visionflow_hf.modeling.latent_gaussian import LatentGaussian
from visionflow_hf.training.arguments import VisionFlowTrainingArguments
from visionflow_hf.training.finish import finish
from visionflow_hf.training.linear_path import fit_linear_decoder
from visionflow_hf.training.stimuli import Stimuli
from visionflow_hf.training.trainer import run_trainer

logger = logging.get_logger("visionflow_hf")

MLP_SHARES = np.linspace(0, 1, 5)
LINEAR_SHARES = np.linspace(0, 1, 11)
SPREADS = np.linspace(0, 1, 6)
BLACK_POINTS = np.linspace(0, 0.02, 3)  # up to five grey levels of 256
FOLDS = 5  # by stimulus
ENOUGH = 8  # held-out stimuli: with so many, the rehearsals end
MOST_ASKED = 128  # stimuli by which the shares are chosen


@dataclass
class Shares:
    """What is chosen, on scales from 0 to 1.

    Attributes:
        mlp: of the correction that the MLP from fMRI to latent makes.
        linear: of the linear path from latent to pixels.
        spread: of the standard deviation of q(z | fMRI), over which decoding averages.
        black_point: of the images that decoding makes.
    """

    mlp: float = 0.0
    linear: float = 0.0
    spread: float = 0.0
    black_point: float = 0.0


@dataclass
class Unseen:
    """Stimuli that a finished model has not learned from, and what it reads from their fMRI, repeats averaged.

    Attributes:
        images (`np.ndarray` of shape `(responses, height, width[, 3])`): their stimuli, on a 0..1 scale.
        posteriors: q(z | fMRI), one for each of MLP_SHARES.
        linear: the linear path that belongs to each.
    """

    model: VisionFlowModel
    images: np.ndarray
    posteriors: list[LatentGaussian]
    linear: list[LinearDecoder]

    def quality(self, reconstructions: torch.Tensor) -> float:
        """ssim + (pixcorr + R^2) / 2, R^2 being the share of the images' variance that the squared error explains.

        Structure counts as much as pixels do. Each alone would choose another extreme: ssim what is sharp, the squared
        error what is soft.
        """
        made = as_array(reconstructions.float())
        missed, variance = np.square(self.images - made).mean(), np.square(self.images - self.images.mean(0)).mean()
        pixels = (pixel_correlation(self.images, made).mean() + 1 - missed / max(variance, 1e-12)) / 2
        return float(ssim(self.images, made).mean() + pixels)


@torch.no_grad()
def read_unseen(
    model: VisionFlowModel,
    processor: VisionFlowProcessor,
    seen: Dataset,
    unseen: Dataset,
    stimuli: Stimuli,
    gain: float,
) -> Unseen:
    """What `model`, which must be finished and have learned from `seen` alone, reads from the fMRI in `unseen`."""
    bridge, images, posteriors = model.fmri_to_latent, [], []
    subjects = sorted(set(unseen["subject"]))
    for subject in subjects:
        average, _ = responses_of(unseen, subject).averaged()
        rows = np.random.default_rng(0).permutation(len(average.fmri))[: max(1, MOST_ASKED // len(subjects))]
        asked = [average.stimulus_ids[row] for row in rows]
        images.append(as_array(stimuli.pixel_values(asked)))
        fmri = processor(fmri=average.fmri[rows], subject=subject)["fmri"].to(model.device, model.dtype)
        h = bridge.linear(fmri, {processor.subjects.index(subject): slice(None)})
        posteriors.append([bridge.posterior(h, share) for share in MLP_SHARES])
    return Unseen(
        model,
        np.concatenate(images),
        [
            LatentGaussian(torch.cat([one.mean for one in parts]), torch.cat([one.logvar for one in parts]))
            for parts in zip(*posteriors, strict=True)
        ],
        [fit_linear_decoder(model, seen, stimuli, remaining(gain, share)) for share in MLP_SHARES],
    )


@torch.no_grad()
def quality_by_share(unseen: Unseen) -> np.ndarray:
    """`(MLP_SHARES, LINEAR_SHARES)`, of the mean latents' images."""
    quality = []
    for posterior, straight in zip(unseen.posteriors, unseen.linear, strict=True):
        images = unseen.model.image_decoder(posterior.mean).float(), straight(posterior.mean).float()
        quality.append([unseen.quality(blend(*images, share)) for share in LINEAR_SHARES])
    return np.array(quality)


@torch.no_grad()
def quality_by_spread(unseen: Unseen, spreads: np.ndarray, mlp: int, linear_share: float) -> np.ndarray:
    """`(spreads, BLACK_POINTS)`, with the MLP share of this place and this linear share; the model is given them."""
    model = unseen.model
    model.linear_decoder, model.config.linear_share = unseen.linear[mlp], linear_share
    model.config.black_point, quality = 0.0, []
    for spread in spreads:
        model.config.decoding_spread = float(spread)
        images = model.decode_mean(unseen.posteriors[mlp])
        quality.append([unseen.quality(blacken(images, black_point)) for black_point in BLACK_POINTS])
    return np.array(quality)


def best_shares(held_out: list[Unseen]) -> Shares:
    """Those with the highest quality, which is logged; first the two shares, then what suits them.

    An autoencoder's images are not averaged: it was taken for what an average loses, and 16 passes through it are slow.
    """
    weights = [len(unseen.images) for unseen in held_out]
    by_share = np.average([quality_by_share(unseen) for unseen in held_out], axis=0, weights=weights)
    mlp, linear = np.unravel_index(by_share.argmax(), by_share.shape)
    linear_share = float(LINEAR_SHARES[linear])
    spreads = SPREADS if held_out[0].model.config.decoder_type == "conv_transpose" else SPREADS[:1]
    by_spread = [quality_by_spread(unseen, spreads, mlp, linear_share) for unseen in held_out]
    by_spread = np.average(by_spread, axis=0, weights=weights)
    spread, black = np.unravel_index(by_spread.argmax(), by_spread.shape)
    shares = Shares(float(MLP_SHARES[mlp]), linear_share, float(spreads[spread]), float(BLACK_POINTS[black]))
    logger.info(
        f"ssim + (pixcorr + R^2) / 2 of what nothing learned from: {by_share[0, 0]:.3f} by the linear map and decoder, "
        f"{by_share.max():.3f} with {shares.mlp:.0%} of the MLP and {shares.linear:.0%} of the linear path, "
        f"{by_spread.max():.3f} as a mean over {shares.spread:.0%} of the posterior's spread, what is darker than "
        f"{shares.black_point:.0%} being black"
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
    stimuli: Stimuli,
    wavelet_dim: int,
    args: VisionFlowTrainingArguments,
) -> Unseen:
    """What a copy of the model, finished on `seen`, reads from `unseen`."""
    model, gain = finish(copy.deepcopy(model), processor, seen, stimuli, wavelet_dim, 1.0, args)
    return read_unseen(model, processor, seen, unseen, stimuli, gain)


def rehearse(
    model: VisionFlowModel,
    processor: VisionFlowProcessor,
    rows: Dataset,
    images: Dataset,
    stimuli: Stimuli,
    wavelet_dim: int,
    args: VisionFlowTrainingArguments,
) -> tuple[Shares, VisionFlowModel]:
    """The shares that serve best where a part of the stimuli is kept from the model, and the model that has learned so.

    Where one rehearsal asks too few stimuli, others begin from the same weights without others; the last one's model
    is returned. Of several processes only the first one chooses.

    Args:
        images: rows without fMRI, from which the image side learns as well.
    """
    image_stage = copy.copy(args)
    image_stage.max_steps, image_stage.image_stage = max(1, round(args.max_steps * args.image_stage)), 1.0
    image_stage.save_strategy, image_stage.report_to = SaveStrategy.NO, []
    distinct = len(set(rows["stimulus_id"]))
    if distinct < 2:
        return Shares(), model
    rehearsals, asked = [], 0
    for seen, unseen in stimulus_folds(rows["stimulus_id"], min(FOLDS, distinct), args.seed):
        seen, unseen = rows.select(seen), rows.select(unseen)
        held_out = len(set(unseen["stimulus_id"]))
        logger.info(f"rehearsal: the model learns without {held_out} of {distinct} stimuli")
        with tempfile.TemporaryDirectory(prefix="visionflow-rehearsal-") as image_stage.output_dir:
            more = without(images, unseen)
            trainer = run_trainer(copy.deepcopy(model), processor, seen, None, stimuli, image_stage, images=more)
        rehearsed = trainer.accelerator.unwrap_model(trainer.model)
        if args.process_index == 0:
            rehearsals.append(validate(rehearsed, processor, seen, unseen, stimuli, wavelet_dim, args))
        asked += held_out
        if asked >= ENOUGH:
            break
    return best_shares(rehearsals) if rehearsals else Shares(), rehearsed


def as_array(images: torch.Tensor) -> np.ndarray:
    """`(images, channels, height, width)` as `(images, height, width)`, with a last axis of 3 for RGB."""
    return images.permute(0, 2, 3, 1).squeeze(-1).cpu().numpy()
