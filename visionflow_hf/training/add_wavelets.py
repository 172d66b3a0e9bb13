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
from visionflow_hf.ridge import fit_ridge, linear_map
from visionflow_hf.training.encoding_models import MODELS, EncodingModel, empty_map, trust
from visionflow_hf.training.field_ridges import BLOCK
from visionflow_hf.training.fit_bridges import put
from visionflow_hf.training.image_latents import image_latents
from visionflow_hf.training.principal_components import PrincipalComponents
from visionflow_hf.training.stimuli import Stimuli
from visionflow_hf.training.stimulus_maps import StimulusMaps

logger = logging.get_logger("visionflow_hf")

FEWEST_STIMULI = 6  # the least from which folds within folds can be made
MOST_STIMULI = 8000  # shared out among the subjects; their products take 256 MB


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
    place = {stimulus: row for row, stimulus in enumerate(distinct)}
    latents = image_latents(model, stimuli, distinct)
    maps = StimulusMaps(stimuli, distinct, model.config.num_channels, model.device)

    trusted, noise, levels = [], [], []
    components = PrincipalComponents(len(distinct), maps.values[:, 0].size, wavelet_dim)
    for subject in processor.subjects:
        fmri, rows = trials_of(train, subject, place, processor)
        seen = [distinct[row] for row in rows]
        weights, left = trust(maps, rows, latents[rows], fmri, seen, seed)
        if not weights.any():  # nothing predicts new stimuli: what the latent reads stays
            weights[0], left = 1, 1.0
        noise.append(left)
        logger.info(f"{subject}: trust in latent, pixels, wavelets, fields: {np.round(weights, 2).tolist()}")
        trusted.append(weights[0])
        shares = weights[1:].tolist()
        fits = [(share, fit(maps, rows, fmri, seen)) for share, fit in zip(shares, MODELS, strict=True) if share]
        levels.append(add_predictions(components, maps, fits, fmri.shape[1]))

    sizes = np.linalg.norm(components.scores, axis=0)
    kept = int((sizes > max(1e-6 * len(distinct), 1e-5 * sizes[0])).sum())  # what is less is rounding
    if kept == 0:  # nothing but the latent is trusted
        return model
    spread = sizes[:kept] / np.sqrt(len(distinct))
    scores = components.scores[:, :kept] / spread  # each of variance 1 over the stimuli
    head = components.head[:, :kept] / spread
    mean = maps.predict(head.reshape(*maps.values[:, 0].shape, kept)).mean(0)

    larger = grow(model, kept)
    put(larger.wavelet_head, head, -mean)
    readouts = np.concatenate(components.readouts, axis=1)[:kept] * spread[:, None]
    readouts = np.split(readouts, np.cumsum([len(level) for level in levels])[:-1], axis=1)
    unexplained = []
    for index, subject in enumerate(processor.subjects):
        fmri, rows = trials_of(train, subject, place, processor)
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


def add_predictions(
    components: PrincipalComponents, maps: StimulusMaps, fits: list[tuple[float, EncodingModel]], voxels: int
) -> np.ndarray:
    """What the weighted models predict of a subject, block by block into `components`; its means, `(voxels,)`."""
    means = []
    for start in range(0, voxels, BLOCK):
        block = slice(start, min(start + BLOCK, voxels))
        linear, constant = empty_map(maps, block.stop - start)
        for share, model in fits:
            model.add_to(linear, constant, block, share)
        predicted = maps.predict(linear) + constant
        means.append(predicted.mean(0))
        components.add(predicted, linear.reshape(-1, block.stop - start))
    return np.concatenate(means)


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


def grow(model: VisionFlowModel, wavelet_dim: int) -> VisionFlowModel:
    """The same model with room for more latent dimensions."""
    config = VisionFlowConfig.from_dict(model.config.to_dict())
    config.latent_dim, config.wavelet_dim = config.latent_dim + wavelet_dim, wavelet_dim
    larger = VisionFlowModel(config).to(model.device, model.dtype)
    own = larger.state_dict()  # voxel maps and wavelet head are put in afterwards
    kept = {name: values for name, values in model.state_dict().items() if values.shape == own[name].shape}
    for name in ("fmri_to_latent.hidden.weight", "linear_decoder.pixels.weight"):
        if name in own:  # what it reads of the new dimensions, it ignores until it learns
            kept[name] = torch.nn.functional.pad(model.state_dict()[name], (0, wavelet_dim))
    larger.load_state_dict(own | kept)
    return larger.eval()


def both(layer: torch.nn.Linear) -> tuple[np.ndarray, np.ndarray]:
    """Weights (inputs, outputs) and intercept (outputs,) of a layer."""
    return layer.weight.float().cpu().numpy().T, layer.bias.float().cpu().numpy()
