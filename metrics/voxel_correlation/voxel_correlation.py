"""voxel_correlation: Pearson correlation of measured and predicted responses over stimuli, voxel by voxel."""

import evaluate
import numpy as np
from evaluate.utils.file_utils import add_start_docstrings

from visionflow_hf.evaluation.module_inputs import features, paired
from visionflow_hf.metrics import nan_reduce, voxel_correlation

DESCRIPTION = """
Encoding accuracy: Pearson's r of measured and predicted fMRI responses over stimuli, for each voxel, with its mean and
its median over voxels.
"""

INPUTS = """
Args:
    predictions: predicted responses, (stimuli, voxels), in any unit.
    references: measured responses, of the same shape; at least 2 stimuli.
Returns:
    voxel_r_mean, voxel_r_median: over the voxels whose measurement varies, -1 to 1; NaN without any.
    voxel_r: r of each voxel, 0 where the prediction is constant, NaN where the measurement is.
"""

CITATION = """
@article{naselaris2011encoding,
  title={Encoding and decoding in fMRI},
  author={Naselaris, Thomas and Kay, Kendrick N. and Nishimoto, Shinji and Gallant, Jack L.},
  journal={NeuroImage},
  volume={56},
  number={2},
  pages={400--410},
  year={2011}
}
"""


@add_start_docstrings(DESCRIPTION, INPUTS)
class VoxelCorrelation(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation=CITATION, inputs_description=INPUTS, features=features(1)
        )

    def _compute(self, predictions, references):
        predicted, measured = paired(predictions, references, at_least=2)
        r = voxel_correlation(measured, predicted)
        return {
            "voxel_r_mean": float(nan_reduce(np.mean, r)[0]),
            "voxel_r_median": float(nan_reduce(np.median, r)[0]),
            "voxel_r": r[0].tolist(),
        }
