# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""What Hugging Face Inference Endpoints run: one request, one answer in JSON, in both directions."""

import base64
import io
import os
import re

import numpy as np
import torch
from PIL import Image
from transformers import pipeline

# What an endpoint installs; an autoencoder and timm's encoders need more.
REQUIREMENTS = "transformers>=5.20,<6\ntorch>=2.9\naccelerate>=1.10\nnumpy>=1.26\npyarrow>=21\npillow>=10.3\n"
OWN_REQUIREMENTS = {"", "torch", "transformers", "accelerate", "numpy", "pyarrow", "pillow", "diffusers", "timm"}
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")  # PIL would hand others to other programs
PARAMETERS = ("subject", "num_samples", "rois")


class EndpointHandler:
    """Images to responses and responses to images.

    Args:
        path (`str`): the model folder, whose Python files it runs.
    """

    def __init__(self, path: str = ""):
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        self.encode = pipeline("image-to-fmri", model=path, trust_remote_code=True, device=device)
        self.decode = self.encode.model.pipeline("fmri-to-image", self.encode.processor)

    def __call__(self, data: dict) -> dict:
        """
        Args:
            data: `inputs`, an image (base64 of its file, or a `PIL.Image`) or a response (numbers in the raw unit), or
                a list of either; and `parameters`, a dict with `subject` and, for samples, `num_samples`; for images
                also `rois`, a list of regions.

        Returns:
            `{"fmri": numbers}` for images, with `rois` `{"fmri": {region: numbers}}`; `{"image": base64 of a PNG file}`
            for responses; nested lists of these where several are given or sampled.

        Raises:
            ValueError: inputs or parameters of another kind, or what the pipelines refuse.
        """
        inputs, parameters = data.get("inputs"), data.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise ValueError(
                f"parameters are a {type(parameters).__name__}: a dict of {', '.join(PARAMETERS)} is expected"
            )
        unknown = sorted(set(parameters) - set(PARAMETERS))
        if unknown:
            raise ValueError(f"unknown parameters {', '.join(unknown)}: {', '.join(PARAMETERS)} are known")
        several = isinstance(inputs, list)
        if isinstance(inputs[0] if several and inputs else inputs, (str, Image.Image)):
            images = [image_of(one) for one in inputs] if several else image_of(inputs)
            fmri = self.encode(images, **parameters)
            return {"fmri": [numbers(one) for one in fmri] if several else numbers(fmri)}
        try:
            fmri = np.array(inputs, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError("inputs are neither images (base64) nor responses of one length (numbers)") from error
        if fmri.ndim not in (1, 2):
            raise ValueError(f"inputs have shape {fmri.shape}: (voxels,) or (responses, voxels) is expected")
        if "rois" in parameters:
            raise ValueError("rois are for inputs that are images: leave them out where inputs are responses")
        return {"image": png(self.decode(fmri, **parameters))}


def write_requirements(folder: str, config) -> None:
    """requirements.txt, which an endpoint installs, in a model folder; one with other packages is kept."""
    more = "diffusers>=0.35\n" if config.decoder_type == "autoencoder_kl" else ""
    more += "timm>=1.0\n" if config.vision_config.model_type == "timm_wrapper" else ""
    path = os.path.join(folder, "requirements.txt")
    if os.path.exists(path):
        with open(path) as file:
            if {re.split("[<>=~! ]", line)[0] for line in file.read().split("\n")} - OWN_REQUIREMENTS:
                return
    with open(path, "w") as file:
        file.write(REQUIREMENTS + more)


def numbers(fmri):
    """Responses as lists, of regions as a dict of lists."""
    return {name: own.tolist() for name, own in fmri.items()} if isinstance(fmri, dict) else fmri.tolist()


def image_of(given) -> Image.Image:
    """An image from base64 alone: a request names no file and no address that the server would open."""
    if isinstance(given, Image.Image):
        return given
    try:
        encoded = given.partition(",")[2] if given.startswith("data:image/") else given
        image = Image.open(io.BytesIO(base64.b64decode(encoded, validate=True)), formats=FORMATS)
        image.load()
    except Exception as error:  # of many kinds, by the decoder
        raise ValueError("an image is not the base64 of an image file: send the bytes of the file in base64") from error
    return image


def png(image):
    """Base64 of a PNG file; a list of them for a list."""
    if isinstance(image, list):
        return [png(one) for one in image]
    file = io.BytesIO()
    image.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()
