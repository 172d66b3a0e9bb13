"""retrieval: how often an item's own partner is among the k most similar ones, in both directions."""

import evaluate
from evaluate.utils.file_utils import add_start_docstrings

from visionflow_hf.evaluation.module_inputs import features, paired
from visionflow_hf.metrics import cosine_similarity, top_k

DESCRIPTION = """
Top-k retrieval by cosine similarity, in both directions, which are named by what ranks what: a prediction ranks all
references, or a reference ranks all predictions. A hit is an item whose own partner is among its k most similar ones.
Chance is k / n; a tie counts as wrong.
"""

INPUTS = """
Args:
    predictions: latents or features that were predicted from brain responses, (items, features).
    references: the same of what was seen, of the same shape; at least 2 items, all different.
    k: how many of the most similar ones count as a hit, 1 to n (1).
Returns:
    prediction_ranks_references: share of the predictions that find their own reference, 0 to 1.
    reference_ranks_predictions: share of the references that find their own prediction, 0 to 1.
"""

CITATION = """
@inproceedings{lin2022mind,
  title={Mind Reader: Reconstructing complex images from brain activities},
  author={Lin, Sikun and Sprague, Thomas and Singh, Ambuj K.},
  booktitle={Advances in Neural Information Processing Systems},
  year={2022}
}
"""


@add_start_docstrings(DESCRIPTION, INPUTS)
class Retrieval(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation=CITATION, inputs_description=INPUTS, features=features(1)
        )

    def _compute(self, predictions, references, k=1):
        predicted, real = paired(predictions, references, at_least=2)
        if not 1 <= k <= len(real):
            raise ValueError(f"k = {k}: give a number from 1 to the number of items, {len(real)}")
        similarity = cosine_similarity(real, predicted)  # each column ranks the rows
        return {
            "prediction_ranks_references": float(top_k(similarity, k)[0]),
            "reference_ranks_predictions": float(top_k(similarity.T, k)[0]),
        }
