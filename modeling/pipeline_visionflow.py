# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""The pipelines `image-to-fmri` (encoding), `fmri-to-image` (decoding) and `image-feature-extraction`."""

import base64
import io
import os
from collections.abc import Collection, Mapping, Sequence
from urllib.request import urlopen

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from transformers import AutoModel, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")  # PIL would hand others to other programs


class VisionFlowPipeline(Pipeline):
    """What both directions share: rows, their subjects, and samples.

    Raises:
        ValueError: there is no processor, or its subjects are not those of the model.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False
    column = ""  # of a row that is a dict

    def __init__(self, *args, **kwargs):
        kwargs.pop("local_files_only", None)  # `pipeline` has heeded it, and hands it on all the same
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError("the pipeline has no processor: give processor=AutoProcessor.from_pretrained(...)")
        self.processor.check_subjects(self.model.config)
        # `Pipeline` makes batches only where it has one of these.
        self.feature_extractor, self.tokenizer = self.processor, None

    def __call__(self, inputs, **kwargs):
        if self.is_one(inputs):
            return super().__call__(inputs, **kwargs)
        if isinstance(inputs, torch.utils.data.Dataset):  # `Pipeline` streams it
            return super().__call__(inputs, **kwargs)
        if isinstance(inputs, (np.ndarray, torch.Tensor, list, tuple)):
            return super().__call__(list(inputs), **kwargs) if len(inputs) else []
        results = super().__call__((row for row in inputs), **kwargs)  # one row at a time, as a column is read
        return list(results) if hasattr(inputs, "__len__") else results

    def save_pretrained(self, save_directory, **kwargs):
        """Write the model folder: model, processor and their code."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def _upload_modified_files(self, *args, **kwargs):
        """As of the model: `push_to_hub` pushes its card, not a draft of transformers."""
        return self.model._upload_modified_files(*args, **kwargs)

    def is_one(self, inputs) -> bool:
        """Whether these are a single row."""
        return isinstance(inputs, Mapping)

    def value_and_subject(self, row, subject: str | None):
        if row is None:
            raise ValueError(f"a row is None: {self.column} is needed of each, so leave out rows without")
        if not isinstance(row, Mapping):
            return row, subject
        if row.get(self.column) is None:
            raise ValueError(f"a row has no {self.column}, only {', '.join(map(str, row))}: {self.column} is needed")
        return row[self.column], row.get("subject") or subject

    def _sanitize_parameters(self, subject=None, num_samples=None, generator=None):
        whole = isinstance(num_samples, (int, np.integer)) and not isinstance(num_samples, bool)
        if num_samples is not None and not (whole and num_samples >= 1):
            raise ValueError(f"num_samples is {num_samples!r}: a whole number, at least 1, is needed")
        if subject is not None and not isinstance(subject, str):
            row = f"{{'{self.column}': ..., 'subject': ...}}"
            raise ValueError(f"subject is a {type(subject).__name__}: give one name, or a row {row} for each")
        sampling = {} if num_samples is None else {"num_samples": num_samples}
        drawing = {} if generator is None else {"generator": generator}
        return {} if subject is None else {"subject": subject}, sampling | drawing, sampling


class ImageToFmriPipeline(VisionFlowPipeline):
    """Encoding: the response of a subject's voxels to an image.

    encode = pipeline("image-to-fmri", model="ORG/NAME", trust_remote_code=True)
    fmri = encode("image.png", subject="subj01")
    """

    column = "image"

    def __call__(self, images, **kwargs):
        """
        Args:
            images: an image (a path, a URL, or what `VisionFlowProcessor` takes), or a dict `{"image": ..., "subject":
                ...}`; or several, as a list, an array with one more axis, a `datasets.Dataset` or a column of it, a
                `KeyDataset` or a generator.
            subject (`str`): whose response; needed where the model knows several subjects and a row names none.
            num_samples (`int`, *optional*): samples of a single trial's response, in place of its mean.
            generator (`torch.Generator`, *optional*): randomness of the samples, on the CPU.
            rois (`list[str]`, *optional*): names of regions, of which alone the responses are returned.
            batch_size (`int`, *optional*): images at once.

        Returns:
            For each image an array of shape `(voxels,)`, `(num_samples, voxels)` with samples, float32 in the raw unit;
            with `rois` a dict of such arrays by region. A list of them where several images are given, an iterator for
            a `KeyDataset` or a generator.
        """
        return super().__call__(images, **kwargs)

    def is_one(self, images) -> bool:
        if isinstance(images, (str, os.PathLike, Image.Image)):
            return True
        if isinstance(images, (np.ndarray, torch.Tensor)):
            return images.dtype != object and len(images) > 0 and self.processor.split_images(images)[0] is images
        return super().is_one(images)

    def inputs_of(self, row, subject: str | None):
        """The model's inputs of one image, whose subject may be unknown."""
        image, subject = self.value_and_subject(row, subject)
        if isinstance(image, (list, tuple)) and image and not isinstance(image[0], (int, float, list, tuple)):
            raise ValueError(f"the image of a row is a {type(image).__name__} of {len(image)}: give a row for each")
        if isinstance(image, (str, os.PathLike)):
            image = open_image(os.fspath(image))
        return self.processor(images=[image], subject=subject)

    def preprocess(self, row, subject=None):
        inputs = self.inputs_of(row, subject)
        if "subject_ids" not in inputs:
            known = ", ".join(self.processor.subjects)
            raise ValueError(f"the subject is missing: give subject=..., the model knows {known or 'none'}")
        return inputs

    def _forward(self, inputs, num_samples=None, generator=None):
        fmri = self.model.predict_fmri(**inputs, num_samples=num_samples, generator=generator)
        return {"fmri": fmri, "subject_ids": inputs["subject_ids"]}

    def _sanitize_parameters(self, rois=None, **kwargs):
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        if rois is not None and not (isinstance(rois, Collection) and all(isinstance(name, str) for name in rois)):
            raise ValueError(f"rois is {rois!r}: give a list of names of regions")
        return preprocess, forward, postprocess if rois is None else postprocess | {"rois": rois}

    def postprocess(self, outputs, num_samples=None, rois=None):
        subject = self.processor.subjects[int(outputs["subject_ids"][0])]
        voxels = len(self.processor.fmri_mean[subject])  # a batch is as wide as its largest subject
        fmri = outputs["fmri"][0, ..., :voxels].float().cpu().numpy()
        if rois is None:
            return fmri
        return {name: fmri[..., own.cpu().numpy()] for name, own in self.model.roi_voxels(subject, rois).items()}


class ImageFeaturesPipeline(ImageToFmriPipeline):
    """Features of an image: the mean of its latent, `(latent_dim + linear_dim,)`, as an array for each image.

    features = pipeline("image-feature-extraction", model="ORG/NAME", trust_remote_code=True)("image.png")
    """

    def _sanitize_parameters(self, **kwargs):
        if kwargs:
            raise ValueError(f"unknown parameter {', '.join(kwargs)}: features of an image have none")
        return {}, {}, {}

    def preprocess(self, row, subject=None):
        image, _ = self.value_and_subject(row, subject)  # of whatever subject: features do not depend on it
        return {"pixel_values": self.inputs_of(image, None)["pixel_values"]}

    def _forward(self, inputs):
        return {"features": self.model.get_image_features(**inputs).pooler_output}

    def postprocess(self, outputs):
        return outputs["features"][0].float().cpu().numpy()


class FmriToImagePipeline(VisionFlowPipeline):
    """Decoding: the image behind a response.

    decode = pipeline("fmri-to-image", model="ORG/NAME", trust_remote_code=True)
    image = decode(fmri, subject="subj01")
    """

    column = "fmri"

    def __call__(self, fmri, **kwargs):
        """
        Args:
            fmri: a response, numbers of shape `(voxels,)` in the raw unit, or a dict `{"fmri": ..., "subject": ...}`;
                or several, as a list, an array `(responses, voxels)`, a `datasets.Dataset` or a column of it, a
                `KeyDataset` or a generator.
            subject, num_samples, generator, batch_size: as in `ImageToFmriPipeline`.

        Returns:
            For each response a `PIL.Image`, a list of `num_samples` images with samples. A list of these where several
            responses are given, an iterator for a `KeyDataset` or a generator.
        """
        if isinstance(fmri, Sequence) and len(fmri) and is_number(fmri[0]):
            fmri = np.asarray([float(value) for value in fmri], dtype=np.float32)  # one response, not a list of them
        elif hasattr(fmri, "__array__") and not isinstance(fmri, torch.Tensor):
            fmri = np.asarray(fmri)  # a table of pandas, too
        return super().__call__(fmri, **kwargs)

    def is_one(self, fmri) -> bool:
        if isinstance(fmri, (np.ndarray, torch.Tensor)):
            return fmri.ndim < 2 and fmri.dtype != object
        return super().is_one(fmri)

    def preprocess(self, row, subject=None):
        fmri, subject = self.value_and_subject(row, subject)
        return self.processor(fmri=[fmri], subject=subject)

    def _forward(self, inputs, num_samples=None, generator=None):
        return {"pixels": self.model.reconstruct_image(**inputs, num_samples=num_samples, generator=generator)}

    def postprocess(self, outputs, num_samples=None):
        images = self.processor.post_process_images(outputs["pixels"][0] if num_samples else outputs["pixels"])
        return images if num_samples else images[0]


def open_image(source: str) -> Image.Image:
    """The image at a path or a URL, as it is stored; `transformers.image_utils.load_image` cuts 16 bits off at 255."""
    try:
        if source.startswith(("http://", "https://")):
            with urlopen(source, timeout=60) as response:
                file = io.BytesIO(response.read())
        elif os.path.isfile(source):
            file = source
        else:
            encoded = source.partition(",")[2] if source.startswith("data:image/") else source
            file = io.BytesIO(base64.b64decode(encoded, validate=True))
        image = Image.open(file, formats=FORMATS)
        image.load()
    except Exception as error:  # of many kinds, by the connection and by the decoder
        cause = "no image file" if isinstance(error, (ValueError, UnidentifiedImageError)) else error
        raise ValueError(
            f"{source[:200]} cannot be read as an image ({cause}): give the path of a file, a URL, or base64"
        ) from error
    return image


def is_number(value) -> bool:
    return isinstance(value, (int, float, np.number)) or (
        isinstance(value, (np.ndarray, torch.Tensor)) and not value.ndim
    )


def register_pipelines() -> None:
    """Make `pipeline(task, model=model, processor=processor)` work with a model and a processor at hand.

    `pipeline` looks up a task in the config only where it is given the name of a model.
    """
    for task, pipeline_class in (("image-to-fmri", ImageToFmriPipeline), ("fmri-to-image", FmriToImagePipeline)):
        if task not in PIPELINE_REGISTRY.get_supported_tasks():
            PIPELINE_REGISTRY.register_pipeline(task, pipeline_class=pipeline_class, pt_model=AutoModel)


__all__ = ["FmriToImagePipeline", "ImageFeaturesPipeline", "ImageToFmriPipeline"]
