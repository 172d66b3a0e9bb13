"""The latent's wavelet dimensions, added to a trained model in closed form.

    fMRI of subject s  =  t_0 W_s [z, MLP(z)]  +  t_1 pixels  +  t_2 wavelets  +  t_3 fields

The last three are linear in the image's wavelet maps (see `encoding_models`). The principal components of what they
predict for the train stimuli, over all subjects, become the wavelet dimensions of the latent: the image's by a linear
head, the voxels' by linear maps back, the fMRI's by ridge regression like all of its latent.
"""

import itertools

import numpy as np
import torch
from datasets import Dataset
from transformers.utils import logging

from visionflow_hf.corpus.responses import responses_of
from visionflow_hf.modeling import VisionFlowConfig, VisionFlowModel, VisionFlowProcessor
from visionflow_hf.modeling.gabor_wavelets import wavelet_maps
from visionflow_hf.ridge import fit_ridge, linear_map
from visionflow_hf.training.encoding_models import MODELS, trust
from visionflow_hf.training.fit_bridges import put
from visionflow_hf.training.image_latents import image_latents
from visionflow_hf.training.stimuli import BATCH, Stimuli

logger = logging.get_logger("visionflow_hf")

FEWEST_STIMULI = 6  # the least from which folds within folds can be made
MOST_STIMULI = 8000  # shared out among the subjects; the maps of so many take 1 GB


@torch.no_grad()
def add_wavelets(
    model: VisionFlowModel,
    processor: VisionFlowProcessor,
    train: Dataset,
    stimuli: Stimuli,
    wavelet_dim: int,
    seed: int,
) -> VisionFlowModel:
    """A model with up to `wavelet_dim` more latent dimensions, whose other weights are those of `model`.

    The maps from [z, MLP(z)] to voxels have to be fitted already.
    """
    most = MOST_STIMULI // len(processor.subjects)
    seen_by = [drawn(train, subject, most, seed) for subject in processor.subjects]
    if wavelet_dim == 0 or min(map(len, seen_by)) < FEWEST_STIMULI:
        return model
    distinct = list(dict.fromkeys(itertools.chain(*seen_by)))
    latents = image_latents(model, stimuli, distinct)
    maps = stimulus_maps(model, stimuli, distinct)
    flat = maps.reshape(len(maps), -1)
    place = {stimulus: row for row, stimulus in enumerate(distinct)}
    trials = [trials_of(train, subject, place, processor) for subject in processor.subjects]

    trusted, linear, predicted, noise = [], [], [], []
    for subject, (fmri, rows) in zip(processor.subjects, trials, strict=True):
        seen = [distinct[row] for row in rows]
        own = maps if rows == [*range(len(maps))] else maps[rows]  # large: not copied where it holds the same
        weights, left = trust(own, latents[rows], fmri, seen, seed)
        if not weights.any():  # nothing predicts new stimuli: what the latent reads stays
            weights[0], left = 1, 1.0
        noise.append(left)
        logger.info(f"{subject}: trust in latent, pixels, wavelets, fields: {np.round(weights, 2).tolist()}")
        trusted.append(weights[0])
        total = np.zeros((flat.shape[1], fmri.shape[1]), dtype=np.float32)  # large: one model's beside it at a time
        constant = np.zeros(fmri.shape[1], dtype=np.float32)
        for share, fit in zip(weights[1:].tolist(), MODELS, strict=True):
            if share:
                one, offset = fit(own, fmri, seen)
                total += np.multiply(one, share, out=one)
                constant += share * offset
        linear.append(total)
        predicted.append(flat @ total + constant)

    edges = np.cumsum([one.shape[1] for one in predicted])[:-1]
    together = np.concatenate(predicted, axis=1)
    level = together.mean(0)
    scores, sizes, components = np.linalg.svd(together - level, full_matrices=False)
    real = sizes > max(1e-6 * len(distinct), 1e-5 * sizes[0])  # what is less is rounding
    kept = min(wavelet_dim, int(real.sum()))
    if kept == 0:  # nothing but the latent is trusted
        return model
    scores = scores[:, :kept] * np.sqrt(len(distinct))  # each of variance 1 over the stimuli
    components = components[:kept] * (sizes[:kept, None] / np.sqrt(len(distinct)))
    inverse = components.T / np.square(components).sum(1)
    head = sum(one @ part for one, part in zip(linear, np.split(inverse, edges), strict=True))

    larger = grow(model, kept)
    put(larger.wavelet_head, head, scores.mean(0) - flat.mean(0) @ head)
    readouts, levels = np.split(components, edges, axis=1), np.split(level, edges)
    unexplained = []
    for index, (fmri, rows) in enumerate(trials):
        weights, constant = both(model.latent_to_fmri.voxel_maps[index])
        weights, constant = trusted[index] * weights, trusted[index] * constant
        put(
            larger.latent_to_fmri.voxel_maps[index],
            np.concatenate([weights, readouts[index]]),
            constant + levels[index],
        )
        targets = scores[rows]
        more, more_constant = linear_map(fit_ridge(fmri, targets, [distinct[row] for row in rows]), fmri)
        weights, constant = both(model.fmri_to_latent.voxel_maps[index])
        put(
            larger.fmri_to_latent.voxel_maps[index],
            np.concatenate([weights, more], axis=1),
            np.concatenate([constant, more_constant]),
        )
        unexplained.append(np.square(fmri @ more + more_constant - targets).mean(0))
    larger.latent_to_fmri.noise_logvar.add_(torch.tensor(noise, device=larger.device).log()[:, None])
    larger.fmri_to_latent.wavelet_logvar.copy_(torch.from_numpy(np.log(np.mean(unexplained, axis=0).clip(1e-3))))
    return larger


def drawn(train: Dataset, subject: str, most: int, seed: int) -> list[str]:
    """The subject's stimuli, `most` of them by chance where there are more."""
    rows = np.flatnonzero(np.asarray(train["subject"]) == subject)
    distinct = list(dict.fromkeys(train.select_columns("stimulus_id").select(rows)["stimulus_id"]))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(distinct))[:most])
    return [distinct[row] for row in chosen]


def trials_of(
    train: Dataset, subject: str, place: dict[str, int], processor: VisionFlowProcessor
) -> tuple[np.ndarray, list[int]]:
    """Standardised responses of a subject to the stimuli that have a place, and that place for each."""
    trials = responses_of(train, subject)
    kept = [row for row, stimulus in enumerate(trials.stimulus_ids) if stimulus in place]
    fmri = (trials.fmri[kept] - processor.fmri_mean[subject]) / processor.fmri_std[subject]
    return fmri, [place[trials.stimulus_ids[row]] for row in kept]


def stimulus_maps(model: VisionFlowModel, stimuli: Stimuli, stimulus_ids: list[str]) -> np.ndarray:
    """Wavelet maps of each stimulus, float32 array of shape (stimuli, channels, GRID * GRID)."""
    maps = []
    for start in range(0, len(stimulus_ids), BATCH):
        pixels = stimuli.pixel_values(stimulus_ids[start : start + BATCH])
        maps.append(wavelet_maps(pixels.to(model.device)).flatten(2).cpu().numpy())
    return np.concatenate(maps)


def grow(model: VisionFlowModel, wavelet_dim: int) -> VisionFlowModel:
    """The same model with room for more latent dimensions."""
    config = VisionFlowConfig.from_dict(model.config.to_dict())
    config.latent_dim, config.wavelet_dim = config.latent_dim + wavelet_dim, wavelet_dim
    larger = VisionFlowModel(config).to(model.device, model.dtype)
    own = larger.state_dict()  # voxel maps and wavelet head are put in afterwards
    kept = {name: values for name, values in model.state_dict().items() if values.shape == own[name].shape}
    hidden = "fmri_to_latent.hidden.weight"  # what it reads of the new dimensions, it ignores until it learns
    kept[hidden] = torch.nn.functional.pad(model.state_dict()[hidden], (0, wavelet_dim))
    larger.load_state_dict(own | kept)
    return larger.eval()


def both(layer: torch.nn.Linear) -> tuple[np.ndarray, np.ndarray]:
    """Weights (inputs, outputs) and intercept (outputs,) of a layer."""
    return layer.weight.float().cpu().numpy().T, layer.bias.float().cpu().numpy()
