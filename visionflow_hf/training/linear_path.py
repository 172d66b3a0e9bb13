"""The linear path from the latent to pixels, and how much of the image it makes.

    logit image  =  (1 - share) logit decoder(z)  +  share logit linear(z)

Where distinct stimuli are few, a decoder that has learned from them makes new images too much like them, and a linear
map does better. The linear map is fitted in closed form to the stimuli of train, so that behind the linear map from
fMRI to latent it is ridge regression from fMRI to pixels. The share is the one that serves stimuli best that the image
side has not learned from.
"""

import copy
import itertools
import tempfile

import numpy as np
import torch
from datasets import Dataset
from transformers.trainer_utils import SaveStrategy
from transformers.utils import logging

from visionflow_hf.corpus.responses import images_of, responses_of
from visionflow_hf.corpus.splits import stimulus_folds
from visionflow_hf.evaluation.metrics import pixel_correlation
from visionflow_hf.modeling import VisionFlowModel, VisionFlowProcessor
from visionflow_hf.modeling.image_decoder import LinearDecoder, blend
from visionflow_hf.training.arguments import VisionFlowTrainingArguments
from visionflow_hf.training.fit_bridges import fit_bridges
from visionflow_hf.training.image_latents import BATCH, image_latents
from visionflow_hf.training.trainer import run_trainer

logger = logging.get_logger("visionflow_hf")

SHARES = np.linspace(0, 1, 11)
REHEARSALS, REHEARSAL_FOLDS = 1, 5  # how many of how many folds by stimulus
PENALTY = 1e-3  # times the mean squared norm of a centred latent: next to none


@torch.no_grad()
def fit_linear_decoder(
    model: VisionFlowModel, processor: VisionFlowProcessor, train: Dataset, features: dict[str, torch.Tensor]
) -> LinearDecoder:
    """The linear map from the latents of the stimuli in `train` to their pixels."""
    stimuli = list(dict.fromkeys(train["stimulus_id"]))
    latents = image_latents(model, processor, train, stimuli, features)[:, : model.config.learned_dim].astype(
        np.float64
    )
    decoder = LinearDecoder(model.config)
    pixels = pixels_of(processor, train, stimuli)
    small = torch.nn.functional.interpolate(pixels, decoder.shape[1:], mode="bilinear", antialias=True)
    targets = small.flatten(1).double().numpy()
    mean, level = latents.mean(0), targets.mean(0)
    latents = latents - mean
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
) -> np.ndarray:
    """Mean pixel correlation, at each of SHARES, of the images that are read from the fMRI in `unseen`.

    Image side and maps must have learned from `seen` alone. Repeats are averaged before they are read.
    """
    linear = fit_linear_decoder(model, processor, seen, features)
    quality = []
    for subject in sorted(set(unseen["subject"])):
        average, _ = responses_of(unseen, subject).averaged()
        real = pixels_of(processor, unseen, average.stimulus_ids)
        for start in range(0, len(real), BATCH):
            batch = processor(fmri=average.fmri[start : start + BATCH], subject=subject).to(model.device)
            latent = model.encode_fmri(batch["fmri"], batch["subject_ids"]).mean
            image, straight = model.image_decoder(latent).float().cpu(), linear(latent).float().cpu()
            blends = [blend(image, straight, share).numpy() for share in SHARES]
            quality.append([pixel_correlation(real[start : start + BATCH].numpy(), blend) for blend in blends])
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
) -> float:
    """The share of the linear path that serves best where a part of the stimuli is kept from a copy of the model."""
    args = copy.copy(args)
    args.max_steps, args.image_stage = round(args.max_steps * args.image_stage), 1.0
    args.save_strategy, args.report_to = SaveStrategy.NO, []
    folds = stimulus_folds(rows["stimulus_id"], REHEARSAL_FOLDS, args.seed)
    quality = 0
    for number, (seen, unseen) in enumerate(itertools.islice(folds, REHEARSALS)):
        logger.info(f"rehearsal {number + 1} of {REHEARSALS}: the image side without {len(unseen)} rows")
        with tempfile.TemporaryDirectory(prefix="visionflow-rehearsal-") as args.output_dir:
            trainer = run_trainer(copy.deepcopy(model), processor, rows.select(seen), None, features, args)
        copied = trainer.accelerator.unwrap_model(trainer.model)
        fit_bridges(copied, processor, rows.select(seen), features)
        quality = quality + quality_by_share(copied, processor, rows.select(seen), rows.select(unseen), features)
    return best_share(quality)


def pixels_of(processor: VisionFlowProcessor, split: Dataset, stimuli: list[str]) -> torch.Tensor:
    """`(stimuli, channels, height, width)` on a 0..1 scale."""
    return torch.cat(
        [
            processor(images=images_of(split, stimuli[start : start + BATCH]))["pixel_values"]
            for start in range(0, len(stimuli), BATCH)
        ]
    )
