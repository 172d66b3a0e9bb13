"""The linear path from the latent to pixels, and how much of the image it makes.

    logit image  =  (1 - share) logit decoder(z)  +  share logit linear(z)

Where distinct stimuli are few, a decoder that has learned from them makes new images too much like them, and a linear
map does better. The linear map is fitted in closed form to the stimuli of train, so that behind the linear map from
fMRI to latent it is ridge regression from fMRI to pixels. The share is the one that serves stimuli best that the image
side has not learned from.
"""

import copy
import tempfile

import numpy as np
import torch
from datasets import Dataset
from transformers.trainer_utils import SaveStrategy
from transformers.utils import logging

from visionflow_hf.corpus.responses import images_of, responses_of, without
from visionflow_hf.corpus.splits import stimulus_folds
from visionflow_hf.evaluation.metrics import pixel_correlation, ssim
from visionflow_hf.modeling import VisionFlowModel, VisionFlowProcessor
from visionflow_hf.modeling.image_decoder import LinearDecoder, blend
from visionflow_hf.training.arguments import VisionFlowTrainingArguments
from visionflow_hf.training.fit_bridges import fit_bridges
from visionflow_hf.training.image_latents import BATCH, image_latents
from visionflow_hf.training.trainer import run_trainer

logger = logging.get_logger("visionflow_hf")

SHARES = np.linspace(0, 1, 11)
FOLDS = 5  # by stimulus
ENOUGH = 8  # held-out stimuli: with so many, the rehearsals end
MOST_ASKED = 256  # stimuli by which the share is chosen
PENALTY = 1e-3  # times the mean squared norm of a centred latent: next to none


@torch.no_grad()
def fit_linear_decoder(
    model: VisionFlowModel,
    processor: VisionFlowProcessor,
    train: Dataset,
    features: dict[str, torch.Tensor],
    gain: float,
) -> LinearDecoder:
    """The linear map from the latents of the stimuli in `train` to their pixels, for latents from fMRI with `gain`."""
    stimuli = list(dict.fromkeys(train["stimulus_id"]))
    latents = np.float64(image_latents(model, processor, train, stimuli, features)[:, : model.config.learned_dim])
    decoder = LinearDecoder(model.config)
    targets = pixels_of(processor, train, stimuli, decoder.shape[1:]).flatten(1).double().numpy()
    mean, level = latents.mean(0), targets.mean(0)
    latents = (latents - mean) * gain
    penalty = PENALTY * np.square(latents).sum(1).mean()
    weights = np.linalg.solve(latents.T @ latents + penalty * np.eye(len(mean)), latents.T @ (targets - level))
    decoder.pixels.weight.copy_(torch.from_numpy(weights.T))
    decoder.pixels.bias.copy_(torch.from_numpy(level - mean @ weights))
    return decoder.to(model.device, model.dtype)


@torch.no_grad()
def quality_by_share(
    model: VisionFlowModel,
    processor: VisionFlowProcessor,
    seen: Dataset,
    unseen: Dataset,
    features: dict[str, torch.Tensor],
    gain: float,
) -> np.ndarray:
    """Mean pixcorr + ssim, at each of SHARES, of the images that are read from the fMRI in `unseen`.

    Image side and maps must have learned from `seen` alone. Repeats are averaged before they are read.
    """
    linear = fit_linear_decoder(model, processor, seen, features, gain)
    subjects = sorted(set(unseen["subject"]))
    quality = []
    for subject in subjects:
        average, _ = responses_of(unseen, subject).averaged()
        rows = np.random.default_rng(0).permutation(len(average.fmri))[: max(1, MOST_ASKED // len(subjects))]
        asked = [average.stimulus_ids[row] for row in rows]
        real = as_array(pixels_of(processor, unseen, asked, model.config.image_size))
        batch = processor(fmri=average.fmri[rows], subject=subject).to(model.device)
        latent = model.encode_fmri(batch["fmri"], batch["subject_ids"]).mean
        image, straight = model.image_decoder(latent).float(), linear(latent).float()
        blends = (as_array(blend(image, straight, share)) for share in SHARES)
        quality.append([pixel_correlation(real, one) + ssim(real, one) for one in blends])
    return np.concatenate(quality, axis=1).mean(1)


def best_share(quality: np.ndarray) -> float:
    """The one of SHARES with the highest quality."""
    return float(SHARES[quality.argmax()])


def rehearse(
    model: VisionFlowModel,
    processor: VisionFlowProcessor,
    rows: Dataset,
    features: dict[str, torch.Tensor],
    args: VisionFlowTrainingArguments,
    images: Dataset,
) -> float:
    """The share of the linear path that serves best where a part of the stimuli is kept from a copy of the model.

    Args:
        images: rows without fMRI, from which the image side learns as well.
    """
    args = copy.copy(args)
    args.max_steps, args.image_stage = max(1, round(args.max_steps * args.image_stage)), 1.0
    args.save_strategy, args.report_to = SaveStrategy.NO, []
    distinct = len(set(rows["stimulus_id"]))
    if distinct < 2:
        return 0.0
    quality, asked = 0, 0
    for seen, unseen in stimulus_folds(rows["stimulus_id"], min(FOLDS, distinct), args.seed):
        seen, unseen = rows.select(seen), rows.select(unseen)
        held_out = len(set(unseen["stimulus_id"]))
        logger.info(f"rehearsal: the image side learns without {held_out} of {distinct} stimuli")
        with tempfile.TemporaryDirectory(prefix="visionflow-rehearsal-") as args.output_dir:
            trainer = run_trainer(
                copy.deepcopy(model), processor, seen, None, features, args, images=without(images, unseen)
            )
        rehearsed = trainer.accelerator.unwrap_model(trainer.model)
        gain = fit_bridges(rehearsed, processor, seen, features)
        quality = quality + held_out * quality_by_share(rehearsed, processor, seen, unseen, features, gain)
        asked += held_out
        if asked >= ENOUGH:
            break
    logger.info(f"pixcorr + ssim by share of the linear path: {np.round(quality / asked, 3).tolist()}")
    return best_share(quality)


def pixels_of(processor: VisionFlowProcessor, split: Dataset, stimuli: list[str], size: list[int]) -> torch.Tensor:
    """`(stimuli, channels, *size)` on a 0..1 scale; shrunk batch by batch, since all at full size can fill memory."""
    pixels = []
    for start in range(0, len(stimuli), BATCH):
        batch = processor(images=images_of(split, stimuli[start : start + BATCH]))["pixel_values"]
        if list(batch.shape[2:]) != size:
            batch = torch.nn.functional.interpolate(batch, size, mode="bilinear", antialias=True)
        pixels.append(batch)
    return torch.cat(pixels)


def as_array(images: torch.Tensor) -> np.ndarray:
    """`(images, channels, height, width)` as `(images, height, width)`, with a last axis of 3 for RGB."""
    return images.permute(0, 2, 3, 1).squeeze(-1).cpu().numpy()
