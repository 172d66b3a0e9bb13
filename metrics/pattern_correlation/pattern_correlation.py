"""pattern_correlation: Pearson correlation of measured and predicted responses over voxels, stimulus by stimulus."""

import evaluate
from evaluate.utils.file_utils import add_start_docstrings

from visionflow_hf.evaluation.module_inputs import features, paired
from visionflow_hf.metrics import pattern_correlation

DESCRIPTION = """
Pattern correlation: Pearson's r of measured and predicted fMRI responses over voxels, for each stimulus, then the mean
over stimuli. Voxel correlation is another metric: it is over stimuli, for each voxel.
"""

INPUTS = """
Args:
    predictions: predicted responses, (stimuli, voxels), each voxel standardised by its mean and standard deviation
        over the train stimuli.
    references: measured responses, of the same shape and in the same unit; at least 2 voxels.
Returns:
    pattern_r: mean over stimuli, -1 to 1. A constant pattern counts 0.
"""

CITATION = """
@article{kay2008identifying,
  title={Identifying natural images from human brain activity},
  author={Kay, Kendrick N. and Naselaris, Thomas and Prenger, Ryan J. and Gallant, Jack L.},
  journal={Nature},
  volume={452},
  pages={352--355},
  year={2008}
}
"""


@add_start_docstrings(DESCRIPTION, INPUTS)
class PatternCorrelation(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation=CITATION, inputs_description=INPUTS, features=features(1)
        )

    def _compute(self, predictions, references):
        predicted, measured = paired(predictions, references)
        if measured.shape[1] < 2:
            raise ValueError(f"{measured.shape[1]} voxels: a pattern needs at least 2")
        return {"pattern_r": float(pattern_correlation(measured, predicted).mean())}
