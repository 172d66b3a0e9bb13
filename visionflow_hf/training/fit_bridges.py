"""The linear maps between voxels and the latent, fitted in closed form.

With few trials and many voxels, gradient descent on these maps overfits within a hundred steps, while ridge regression
with a penalty chosen on held-out stimuli does not (docs/experiments.md). So they are fitted, not trained:

    fMRI to latent    z of the image - mean  ~ W fmri; the latent is mean + gain W fmri
    latent to fMRI    fmri                   ~ W [z, MLP(z)] + b, the MLP being the bridge's own

Ridge regression draws what it is unsure of towards the mean, and from latents near the mean the decoder makes what is
common to all images. So its predictions are given the spread that the images' own latents have:

    gain = min(std z / std of z as predicted for held-out stimuli, 1.5)

What the second map misses of held-out stimuli is kept as the noise of single trials.
"""

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset

from visionflow_hf.corpus.responses import responses_of
from visionflow_hf.modeling import VisionFlowModel, VisionFlowProcessor
from visionflow_hf.ridge import fit_ridge, linear_map, out_of_fold
from visionflow_hf.training.image_latents import image_latents
from visionflow_hf.training.stimuli import Stimuli
from visionflow_hf.training.voxel_weights import voxel_weights

MOST_GAIN = 1.5
LEAST_NOISE = 1e-3  # of a voxel's variance


@torch.no_grad()
def fit_bridges(model: VisionFlowModel, processor: VisionFlowProcessor, train: Dataset, stimuli: Stimuli) -> float:
    """Fit the maps of every subject on all of its trials in `train`, into the latents that the image side has now.

    Returns:
        The mean gain over subjects.
    """
    gains = []
    distinct = list(dict.fromkeys(train["stimulus_id"]))
    latents = torch.from_numpy(image_latents(model, stimuli, distinct))
    read = model.latent_to_fmri.read(latents.to(model.device, model.dtype)).float().cpu().numpy()
    position = {stimulus: row for row, stimulus in enumerate(distinct)}
    for index, subject in enumerate(processor.subjects):
        trials = responses_of(train, subject)
        rows = [position[stimulus] for stimulus in trials.stimulus_ids]
        fmri = (trials.fmri - processor.fmri_mean[subject]) / processor.fmri_std[subject]
        known = latents.numpy()[rows]
        linear, intercept, gain = fit_fmri_to_latent(fmri, known, trials.stimulus_ids)
        gains.append(gain)
        put(model.fmri_to_latent.voxel_maps[index], linear, intercept)
        ridge = fit_ridge(read[rows], fmri, trials.stimulus_ids)
        put(model.latent_to_fmri.voxel_maps[index], *linear_map(ridge, read[rows]))
        missed = np.square(out_of_fold(ridge, read[rows], fmri, trials.stimulus_ids) - fmri).mean(0)
        put_noise(model, index, missed)
    return float(np.mean(gains))


def fit_fmri_to_latent(
    fmri: np.ndarray, latents: np.ndarray, stimulus_ids: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, float]:
    """The linear map from standardised fMRI (trials, voxels) to the latents of the images (trials, latent_dim).

    Returns:
        Weights (voxels, latent_dim), intercept (latent_dim,), and gain.
    """
    weights = voxel_weights(fmri, latents, stimulus_ids)
    ridge = fit_ridge(fmri * weights, latents, stimulus_ids)
    expected = out_of_fold(ridge, fmri * weights, latents, stimulus_ids)
    gain = min(latents.std() / max(expected.std(), 1e-12), MOST_GAIN)
    mean = latents.mean(0)
    linear, intercept = linear_map(ridge, fmri * weights)
    return gain * linear * weights[:, None], mean + gain * (intercept - mean), float(gain)


def put_noise(model: VisionFlowModel, subject: int, missed: np.ndarray) -> None:
    """What predictions miss of held-out stimuli, a mean square (voxels,), as the noise of a subject's single trials."""
    noise = torch.from_numpy(np.log(missed.clip(min=LEAST_NOISE)))
    model.latent_to_fmri.noise_logvar[subject, : len(noise)].copy_(noise)


def put(layer: torch.nn.Linear, weights: np.ndarray, intercept: np.ndarray) -> None:
    """Weights (inputs, outputs) and intercept (outputs,) into a layer."""
    layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(weights.T)))
    layer.bias.copy_(torch.from_numpy(np.ascontiguousarray(intercept)))
