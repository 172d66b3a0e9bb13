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
from visionflow_hf.training.voxel_weights import voxel_weights


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
        known = latents.numpy()[rows]
        weights = voxel_weights(fmri, known, trials.stimulus_ids)
        for layer, inputs, targets, scale in (
            (model.fmri_to_latent.voxel_maps[index], fmri * weights, known, weights),
            (model.latent_to_fmri.voxel_maps[index], read[rows], fmri, np.ones(read.shape[1], dtype=np.float32)),
        ):
            linear, intercept = linear_map(fit_ridge(inputs, targets, trials.stimulus_ids), inputs)
            layer.weight.copy_(torch.from_numpy(np.ascontiguousarray((linear * scale[:, None]).T)))
            layer.bias.copy_(torch.from_numpy(intercept))
