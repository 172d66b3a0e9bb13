"""The linear maps between voxels and the latent, fitted in closed form.

With few trials and many voxels, gradient descent on these maps overfits within a hundred steps, while ridge regression
with a penalty chosen on held-out stimuli does not (docs/experiments.md). So they are fitted, not trained:

    fMRI to latent    z of the image       ~ W fmri + b
    latent to fMRI    fmri                 ~ W [z, MLP(z)] + b, the MLP being the bridge's own
"""

import numpy as np
import torch
from datasets import Dataset

from visionflow_hf.corpus.responses import responses_of
from visionflow_hf.modeling import VisionFlowModel, VisionFlowProcessor
from visionflow_hf.ridge import fit_ridge, linear_map
from visionflow_hf.training.image_latents import image_latents


@torch.no_grad()
def fit_bridges(
    model: VisionFlowModel, processor: VisionFlowProcessor, train: Dataset, features: dict[str, torch.Tensor]
) -> None:
    """Fit the maps of every subject on all of its trials in `train`, into the latents that the image side has now."""
    stimuli = list(dict.fromkeys(train["stimulus_id"]))
    latents = torch.from_numpy(image_latents(model, processor, train, stimuli, features))
    read = model.latent_to_fmri.read(latents.to(model.device, model.dtype)).float().cpu().numpy()
    position = {stimulus: row for row, stimulus in enumerate(stimuli)}
    for index, subject in enumerate(processor.subjects):
        trials = responses_of(train, subject)
        rows = [position[stimulus] for stimulus in trials.stimulus_ids]
        fmri = (trials.fmri - processor.fmri_mean[subject]) / processor.fmri_std[subject]
        for layer, inputs, targets in (
            (model.fmri_to_latent.voxel_maps[index], fmri, latents.numpy()[rows]),
            (model.latent_to_fmri.voxel_maps[index], read[rows], fmri),
        ):
            weights, intercept = linear_map(fit_ridge(inputs, targets, trials.stimulus_ids), inputs)
            layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(weights.T)))
            layer.bias.copy_(torch.from_numpy(intercept))
