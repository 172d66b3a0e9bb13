"""ceiling_normalised: explained variance of each voxel as a share of what its noise lets any model reach."""

import evaluate
import numpy as np
from evaluate.utils.file_utils import add_start_docstrings

from visionflow_hf.evaluation.module_inputs import features, paired
from visionflow_hf.metrics import LEAST_CEILING, ceiling_normalised, voxel_correlation

DESCRIPTION = """
Noise-normalised encoding accuracy, the score of the Algonauts 2023 challenge over voxels with a measurable noise
ceiling: Pearson's r of measured and predicted responses over stimuli for each voxel or vertex, negative r set to 0,
r^2 divided by the noise ceiling, at most 1, and the mean over the voxels whose ceiling is at least 0.05. The challenge
keeps voxels with lower ceilings, where r^2 / ceiling is 1 as soon as r is above 0 by chance.
"""

INPUTS = """
Args:
    predictions: predicted responses, (stimuli, voxels), in any unit.
    references: measured responses, of the same shape; at least 2 stimuli.
    noise_ceiling: for each voxel the share of the variance of `references` that the stimulus explains, 0 to 1; None or
        NaN where it is unknown, which leaves the voxel out.
Returns:
    ceiling_normalised: 0 to 1; NaN where no ceiling is known, 0 where ceilings are known and all are below 0.05.
    n_voxels: how many voxels it is the mean of.
"""

CITATION = """
@article{gifford2023algonauts,
  title={The Algonauts Project 2023 Challenge: How the Human Brain Makes Sense of Natural Scenes},
  author={Gifford, Alessandro T. and Lahner, Benjamin and Saba-Sadiya, Sari and Vilas, Martina G. and
    Lascelles, Alex and Oliva, Aude and Kay, Kendrick and Roig, Gemma and Cichy, Radoslaw M.},
  journal={arXiv preprint arXiv:2301.03198},
  year={2023}
}
"""


@add_start_docstrings(DESCRIPTION, INPUTS)
class CeilingNormalised(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation=CITATION, inputs_description=INPUTS, features=features(1)
        )

    def _compute(self, predictions, references, noise_ceiling):
        predicted, measured = paired(predictions, references, at_least=2)
        ceiling = np.asarray(noise_ceiling, dtype=np.float64)
        if ceiling.shape != measured.shape[1:]:
            raise ValueError(
                f"a noise ceiling of shape {ceiling.shape} for {measured.shape[1]} voxels: give one number a voxel"
            )
        if (ceiling > 1).any() or (ceiling < 0).any():
            raise ValueError(
                f"noise ceilings from {np.nanmin(ceiling):g} to {np.nanmax(ceiling):g}: give shares of variance, 0 to 1"
            )
        r = voxel_correlation(measured, predicted)
        return {
            "ceiling_normalised": float(ceiling_normalised(r, ceiling)[0]),
            "n_voxels": int(((ceiling >= LEAST_CEILING) & np.isfinite(r[0])).sum()),
        }
