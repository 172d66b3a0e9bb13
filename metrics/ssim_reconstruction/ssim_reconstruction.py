"""ssim_reconstruction: structural similarity of an image and its reconstruction, as decoding papers compute it."""

import evaluate
from evaluate.utils.file_utils import add_start_docstrings

from visionflow_hf.evaluation.module_inputs import features, paired
from visionflow_hf.metrics import ssim

DESCRIPTION = """
Structural similarity (SSIM) of reconstructions with the images that were seen, with the parameters of decoding papers:
grey images, a Gaussian window of sigma 1.5 px, population covariance, data range 1; then the mean over images.
"""

INPUTS = """
Args:
    predictions: reconstructions, (images, height, width) or (images, height, width, 3), values in 0..1.
    references: the images that were seen, of the same shape, values in 0..1.
Returns:
    ssim: mean over images, -1 to 1; 1 for equal images.
"""

CITATION = """
@article{wang2004image,
  title={Image quality assessment: from error visibility to structural similarity},
  author={Wang, Zhou and Bovik, Alan C. and Sheikh, Hamid R. and Simoncelli, Eero P.},
  journal={IEEE Transactions on Image Processing},
  volume={13},
  number={4},
  pages={600--612},
  year={2004}
}
"""


@add_start_docstrings(DESCRIPTION, INPUTS)
class SsimReconstruction(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation=CITATION, inputs_description=INPUTS, features=features(2, 3)
        )

    def _compute(self, predictions, references):
        reconstructions, images = paired(predictions, references)
        if images.ndim == 4 and images.shape[-1] != 3:
            raise ValueError(f"images of shape {images.shape[1:]}: give (height, width) or (height, width, 3)")
        if min(images.shape[1:3]) < 3:
            raise ValueError(f"images of shape {images.shape[1:]}: the window needs 3 px in height and width")
        for name, values in (("predictions", reconstructions), ("references", images)):
            if values.min() < 0 or values.max() > 1:
                raise ValueError(f"{name} from {values.min():g} to {values.max():g}: scale pixels to 0..1")
        return {"ssim": float(ssim(images, reconstructions).mean())}
