"""two_way_identification: how often a prediction resembles its own reference more than another one."""

import evaluate
from evaluate.utils.file_utils import add_start_docstrings

from visionflow_hf.evaluation.module_inputs import features, paired
from visionflow_hf.metrics import cross_correlation, two_way

DESCRIPTION = """
Two-way identification: with r_ij, the Pearson correlation of reference i and prediction j over all their numbers,
flattened, the share of the n (n - 1) pairs i != j with r_ij < r_jj. Chance is 0.5; a tie counts as wrong.
"""

INPUTS = """
Args:
    predictions: reconstructions or features of them; (items, features), or images (items, height, width[, channels]).
    references: what was seen, or features of it, of the same shape; at least 2 items, all different.
Returns:
    two_way: share of the pairs, 0 to 1.
"""

CITATION = """
@article{ozcelik2023natural,
  title={Natural scene reconstruction from fMRI signals using generative latent diffusion},
  author={Ozcelik, Furkan and VanRullen, Rufin},
  journal={Scientific Reports},
  volume={13},
  pages={15666},
  year={2023}
}
"""


@add_start_docstrings(DESCRIPTION, INPUTS)
class TwoWayIdentification(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation=CITATION, inputs_description=INPUTS, features=features(1, 2, 3)
        )

    def _compute(self, predictions, references):
        predicted, real = paired(predictions, references, at_least=2)
        return {"two_way": float(two_way(cross_correlation(real, predicted))[0])}
