# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""The pipelines `image-to-fmri` (encoding) and `fmri-to-image` (decoding)."""

import numpy as np
import torch
from PIL import Image
from transformers import Pipeline
from transformers.image_utils import load_image


class VisionFlowPipeline(Pipeline):
    """What both directions share: a processor, subjects by name, and several samples of the latent."""

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # Under this name `Pipeline` saves it beside the model, and agrees to make batches.
        self.feature_extractor, self.tokenizer = self.processor, None

    def _sanitize_parameters(self, subject=None, num_samples=None, generator=None):
        if num_samples is not None and num_samples < 1:
            raise ValueError(f"num_samples is {num_samples}: at least 1 is needed")
        sampling = {} if num_samples is None else {"num_samples": num_samples}
        drawing = {} if generator is None else {"generator": generator}
        return {} if subject is None else {"subject": subject}, sampling | drawing, sampling


class ImageToFmriPipeline(VisionFlowPipeline):
    """Encoding: the response of a subject's voxels to an image.

    encode = pipeline("image-to-fmri", model="ORG/NAME", trust_remote_code=True)
    fmri = encode("image.png", subject="subj01")
    """

    def __call__(self, images, **kwargs):
        """
        Args:
            images: a `PIL.Image`, a path, a URL, or an array (`(height, width[, channels])`, uint8, or float in 0..1);
                or several of them, as a list or as an array with one more axis.
            subject (`str`): whose response; needed where the model knows several subjects.
            num_samples (`int`, *optional*): samples of what a single trial may give, instead of its mean.
            generator (`torch.Generator`, *optional*): the randomness of these samples, on the CPU.
            batch_size (`int`, *optional*): images at once.

        Returns:
            For each image an array of shape `(voxels,)`, `(num_samples, voxels)` with samples, float32 in the data's
            own unit; a list of them where several images were given.
        """
        return super().__call__(_each(images, ndim=4), **kwargs)

    def preprocess(self, image, subject=None):
        if isinstance(image, (str, Image.Image)):
            image = load_image(image)
        return self.processor(images=image, subject=subject)

    def _forward(self, inputs, num_samples=None, generator=None):
        return {"fmri": self.model.predict_fmri(**inputs, num_samples=num_samples, generator=generator)}

    def postprocess(self, outputs, num_samples=None):
        return outputs["fmri"][0].float().cpu().numpy()


class FmriToImagePipeline(VisionFlowPipeline):
    """Decoding: the image behind a response.

    decode = pipeline("fmri-to-image", model="ORG/NAME", trust_remote_code=True)
    image = decode(fmri, subject="subj01")
    """

    def __call__(self, fmri, **kwargs):
        """
        Args:
            fmri: one response, an array of shape `(voxels,)` in the data's own unit; or several, as a list or as an
                array of shape `(responses, voxels)`.
            subject, num_samples, generator, batch_size: as in `ImageToFmriPipeline`.

        Returns:
            For each response a `PIL.Image`, a list of `num_samples` images with samples; a list of these where several
            responses were given.
        """
        if isinstance(fmri, (list, tuple)) and len(fmri) and np.ndim(fmri[0]) == 0:
            fmri = np.asarray(fmri)  # one response, not a list of them
        return super().__call__(_each(fmri, ndim=2), **kwargs)

    def preprocess(self, fmri, subject=None):
        return self.processor(fmri=np.asarray(fmri, dtype=np.float32), subject=subject)

    def _forward(self, inputs, num_samples=None, generator=None):
        return {"pixels": self.model.reconstruct_image(**inputs, num_samples=num_samples, generator=generator)}

    def postprocess(self, outputs, num_samples=None):
        images = self.processor.to_images(outputs["pixels"][0] if num_samples else outputs["pixels"])
        return images if num_samples else images[0]


def _each(inputs, ndim: int):
    """The rows of an array that has `ndim` axes, as a list; anything else as it is."""
    if isinstance(inputs, (np.ndarray, torch.Tensor)) and inputs.ndim == ndim:
        return list(inputs)
    return inputs


__all__ = ["FmriToImagePipeline", "ImageToFmriPipeline"]
