# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""VisionFlowProcessor: images and raw fMRI of named subjects in, tensors for the model out."""

import base64
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin


class VisionFlowProcessor(ProcessorMixin):
    r"""
    Prepares images and fMRI for [`VisionFlowModel`] and turns reconstructions back into pictures.

    Args:
        image_size (`list[int]`): height and width in px of the images that the model takes and reconstructs.
        num_channels (`int`): 1 for grey, 3 for RGB.
        subjects (`list[str]`): the names it knows, in the order of the model's config.
        fmri_mean, fmri_std (`dict[str, np.ndarray]`): for each subject the mean and the standard deviation of each
            voxel over the train split, arrays of shape `(voxels,)` in the data's unit; 1 stands for the standard
            deviation of a constant voxel. In the JSON file they are base64 of little-endian float32.
    """

    # Trainer aligns the special tokens of every processor's tokenizer with the model's: here are none of them.
    tokenizer = SimpleNamespace(bos_token_id=None, eos_token_id=None, pad_token_id=None)

    def __init__(self, image_size=(224, 224), num_channels=3, subjects=(), fmri_mean=None, fmri_std=None):
        super().__init__()
        self.image_size = list(image_size)
        self.num_channels = num_channels
        self.subjects = list(subjects)
        self.fmri_mean = {name: _decode(values) for name, values in (fmri_mean or {}).items()}
        self.fmri_std = {name: _decode(values) for name, values in (fmri_std or {}).items()}
        for name in self.subjects:
            if name not in self.fmri_mean or name not in self.fmri_std:
                raise ValueError(f"subject {name} has no fmri_mean or no fmri_std: give both for every subject")

    def to_dict(self):
        output = super().to_dict()
        for name in ("fmri_mean", "fmri_std"):
            output[name] = {subject: _encode(values) for subject, values in getattr(self, name).items()}
        return output

    def __call__(self, images=None, fmri=None, subject=None, return_tensors="pt", **kwargs):
        """
        Args:
            images: one image or a list, each a `PIL.Image`, a uint8 array `(height, width[, channels])`, or a float
                array or tensor with values in 0..1, `(height, width[, channels])` or `(channels, height, width)`.
            fmri: responses in the data's own unit, `(voxels,)` or `(batch, voxels)`; a list where subjects differ in
                their number of voxels. In a list of images or of responses, `None` stands for a row that has none.
            subject (`str` or `list[str]`): whose responses they are, or are to be predicted; needed where more than
                one subject is known.
            return_tensors (`str`): `"pt"`, the only kind there is.

        Returns:
            `BatchFeature` with `pixel_values` `(batch, channels, height, width)` on a 0..1 scale where images are
            given; `fmri` `(batch, max_voxels)`, standardised, where responses are given; and for a known subject
            `subject_ids` `(batch,)`, `fmri_mean` and `fmri_std` `(batch, max_voxels)`, by which predictions return to
            the data's unit. `has_image` and `has_fmri` `(batch,)` say which rows have what, where some have not.

        Raises:
            ValueError: unknown subject, wrong number of voxels, responses that are not finite, or what is no image.
        """
        if return_tensors != "pt":
            raise ValueError(f"return_tensors is {return_tensors!r}: only 'pt' is supported")
        if images is None and fmri is None:
            raise ValueError("neither images nor fmri was given: give one or both")
        if isinstance(fmri, Sequence):  # a column of `datasets` is one as well
            fmri = list(fmri)
        if fmri is not None and not isinstance(fmri, list) and np.ndim(fmri) not in (1, 2):
            raise ValueError(f"fmri has shape {np.shape(fmri)}: (voxels,) or (batch, voxels) is expected")
        if images is not None and not _is_batch_of_images(images):
            images = [images]
        if fmri is not None and len(fmri) and fmri[0] is not None and np.ndim(fmri[0]) == 0:
            fmri = [fmri]
        if images is not None and fmri is not None and len(images) != len(fmri):
            raise ValueError(f"{len(images)} images and {len(fmri)} responses: one response an image is expected")
        size = len(images if images is not None else fmri)
        if size == 0:
            raise ValueError("an empty batch was given: give at least one image or response")
        names = self._subject_names(subject, size, needed=fmri is not None)
        data = {}
        if images is not None:
            blank = torch.zeros(self.num_channels, *self.image_size)
            data["pixel_values"] = torch.stack([blank if image is None else self._pixels(image) for image in images])
            if any(image is None for image in images):
                data["has_image"] = torch.tensor([image is not None for image in images])
        if names is not None:
            data["subject_ids"] = torch.tensor([self.subjects.index(name) for name in names])
            data["fmri_mean"] = _pad([self.fmri_mean[name] for name in names])
            data["fmri_std"] = _pad([self.fmri_std[name] for name in names], fill=1.0)
        if fmri is not None:
            data["fmri"] = _pad([self._standardise(row, name) for row, name in zip(fmri, names, strict=True)])
            if any(row is None for row in fmri):
                data["has_fmri"] = torch.tensor([row is not None for row in fmri])
        return BatchFeature(data)

    def add_subject(self, name: str, fmri_mean: np.ndarray, fmri_std: np.ndarray) -> None:
        """Learn a new person's name, and the mean and standard deviation of each of their voxels, `(voxels,)`.

        Raises:
            ValueError: a name that is known, or means and deviations that are no two equal rows of numbers.
        """
        if name in self.subjects:
            raise ValueError(f"subject {name} is known already: give another name, or remove_subject first")
        mean, std = (np.asarray(values, dtype=np.float32) for values in (fmri_mean, fmri_std))
        if mean.ndim != 1 or mean.shape != std.shape:
            raise ValueError(f"fmri_mean has shape {mean.shape}, fmri_std {std.shape}: (voxels,) is expected of both")
        self.subjects.append(name)
        self.fmri_mean[name], self.fmri_std[name] = mean, std

    def remove_subject(self, name: str) -> None:
        """Forget a person.

        Raises:
            ValueError: a name that is not known.
        """
        if name not in self.subjects:
            raise ValueError(f"unknown subject {name}: this model knows {', '.join(self.subjects) or 'none'}")
        self.subjects.remove(name)
        del self.fmri_mean[name], self.fmri_std[name]

    def to_images(self, pixels: torch.Tensor) -> list[Image.Image]:
        """`(batch, channels, height, width)` on a 0..1 scale, clamped to it, as a list of `PIL.Image`."""
        arrays = (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array) for array in arrays]

    def _pixels(self, image) -> torch.Tensor:
        if not isinstance(image, Image.Image):
            image = _to_pil(image)
        image = image.convert("L" if self.num_channels == 1 else "RGB")
        height, width = self.image_size
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)  # averages where it shrinks
        array = np.asarray(image, dtype=np.float32).reshape(height, width, self.num_channels) / 255
        return torch.from_numpy(array).permute(2, 0, 1)

    def _subject_names(self, subject, size: int, needed: bool) -> list[str] | None:
        known = f"this model knows {', '.join(self.subjects) or 'none'}"
        if subject is None:
            if len(self.subjects) != 1:
                if needed:
                    raise ValueError(f"fmri needs its subject: {known}")
                return None
            subject = self.subjects[0]
        names = [subject] * size if isinstance(subject, str) else list(subject)
        if len(names) != size:
            raise ValueError(f"{len(names)} subjects for {size} rows: give one name, or one a row")
        for name in names:
            if name not in self.subjects:
                raise ValueError(f"unknown subject {name}: {known}")
        return names

    def _standardise(self, row, name: str) -> np.ndarray:
        mean, std = self.fmri_mean[name], self.fmri_std[name]
        if row is None:
            return np.zeros_like(mean)
        row = np.asarray(row, dtype=np.float32)
        if row.shape != mean.shape:
            raise ValueError(f"fmri has shape {row.shape} a row, {name} has {len(mean)} voxels")
        bad = int((~np.isfinite(row)).sum())
        if bad:
            raise ValueError(f"fmri of {name} has {bad} NaN or infinite values: remove them first")
        return (row - mean) / std


def _is_batch_of_images(images) -> bool:
    if isinstance(images, Sequence):  # a column of `datasets` is one as well
        return True
    return isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4


def _to_pil(image) -> Image.Image:
    array = image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] != 3):
        raise ValueError(f"an image has shape {array.shape}: (height, width[, channels]) with 1 or 3 channels")
    if array.dtype != np.uint8:
        if array.dtype.kind != "f" or not (array.min() >= 0 and array.max() <= 1):
            raise ValueError(f"an image of type {array.dtype} is expected to be uint8, or float with values in 0..1")
        array = np.rint(array * 255).astype(np.uint8)
    return Image.fromarray(array)


def _pad(rows: list[np.ndarray], fill: float = 0.0) -> torch.Tensor:
    padded = np.full((len(rows), max(map(len, rows))), fill, dtype=np.float32)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return torch.from_numpy(padded)


def _encode(values: np.ndarray) -> str:
    return base64.b64encode(np.asarray(values, dtype="<f4").tobytes()).decode("ascii")


def _decode(values) -> np.ndarray:
    if isinstance(values, str):
        return np.frombuffer(base64.b64decode(values), dtype="<f4")
    return np.asarray(values, dtype=np.float32)


__all__ = ["VisionFlowProcessor"]
