"""pixcorr: Pearson correlation of an image and its reconstruction over all pixels and channels."""

import evaluate
from evaluate.utils.file_utils import add_start_docstrings

from visionflow_hf.evaluation.module_inputs import features, paired
from visionflow_hf.metrics import pixel_correlation

DESCRIPTION = """
Pixel correlation (PixCorr) of reconstructions with the images that were seen: Pearson's r over all pixels and channels
of each image, then the mean over images.
"""

INPUTS = """
Args:
    predictions: reconstructions, (images, height, width) or (images, height, width, channels), on any linear scale.
    references: the images that were seen, of the same shape.
Returns:
    pixcorr: mean over images of Pearson's r, -1 to 1. A constant image or reconstruction counts 0.
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
class Pixcorr(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation=CITATION, inputs_description=INPUTS, features=features(2, 3)
        )

    def _compute(self, predictions, references):
        reconstructions, images = paired(predictions, references)
        return {"pixcorr": float(pixel_correlation(images, reconstructions).mean())}
