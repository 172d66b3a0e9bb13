# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""VisionFlowProcessor: images and raw fMRI of named subjects to model inputs, and model outputs back."""

import io
import os
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin
from transformers.utils import cached_file, logging

from .pipeline_visionflow import register_pipelines

logger = logging.get_logger(__name__)
logger.addFilter(lambda record: record.levelno >= logging.get_verbosity())  # of transformers, under any name

STATISTICS = "fmri_statistics.safetensors"
LARGEST_IMAGE = 224  # px, the size that most pretrained encoders take
TOLERANCE = 1e-3  # by which a float image may leave 0..1, as rounding and resizing do
ROWS = 256  # of a dataset, read at once
ORIENTATION = 0x0112  # the EXIF tag
ON_ITS_SIDE = (5, 6, 7, 8)  # its values that exchange width and height

register_pipelines()


class Batch(BatchFeature):
    """A batch of the processor. `to` with a dtype leaves the means and deviations of raw units in float32."""

    def to(self, *args, **kwargs) -> "Batch":
        raw = {name: self.data[name] for name in ("fmri_mean", "fmri_std") if name in self.data}
        moved = super().to(*args, **kwargs)
        for name, values in raw.items():
            moved.data[name] = values.to(moved.data[name].device)
        return moved


class VisionFlowProcessor(ProcessorMixin):
    r"""
    Prepares images and fMRI for [`VisionFlowModel`], and turns its outputs into images and into fMRI in raw units.

    Args:
        image_size (`list[int]` or `int`): height and width in px of the images that the model takes and reconstructs;
            a single number is both.
        num_channels (`int`): 1 for grey, 3 for RGB.
        subjects (`list[str]`): names of the subjects, in the order of the model's config.
        fmri_mean, fmri_std (`dict[str, np.ndarray]`): for each subject the mean and the standard deviation of each
            voxel over the train split, arrays of shape `(voxels,)` in the raw unit. A constant voxel has standard
            deviation 1. `save_pretrained` writes them to `fmri_statistics.safetensors` in float32.
    """

    # Trainer compares the special tokens of a processor's tokenizer with those of the model: there are none.
    tokenizer = SimpleNamespace(bos_token_id=None, eos_token_id=None, pad_token_id=None)

    def __init__(self, image_size=(224, 224), num_channels=3, subjects=(), fmri_mean=None, fmri_std=None):
        super().__init__()
        self.image_size = [image_size] * 2 if isinstance(image_size, int) else list(image_size)
        self.num_channels = num_channels
        self.subjects = list(subjects)
        self.fmri_mean = {name: np.asarray(values, dtype=np.float32) for name, values in (fmri_mean or {}).items()}
        self.fmri_std = {name: np.asarray(values, dtype=np.float32) for name, values in (fmri_std or {}).items()}
        for name in self.subjects:
            if name not in self.fmri_mean or name not in self.fmri_std:
                raise ValueError(f"subject {name} has no fmri_mean or no fmri_std: give both for every subject")
            shapes = self.fmri_mean[name].shape, self.fmri_std[name].shape
            if len(shapes[0]) != 1 or shapes[0] != shapes[1]:
                raise ValueError(
                    f"fmri_mean and fmri_std of {name} have the shapes {shapes[0]} and {shapes[1]}: one number a voxel "
                    "is expected in both"
                )

    @classmethod
    def from_dataset(cls, rows, image_size: int | None = None) -> "VisionFlowProcessor":
        """The processor for a train split: image size, channels, and the mean and standard deviation of each voxel.

        The image size is that of most images that have fMRI, reduced to a longer side of 224 px where it is longer.
        Images are grey where all of those are. The subjects are those with at least one row that has both an image and
        fMRI, in alphabetical order; others are left out with a warning. Means and deviations are over all fMRI of a
        subject, with or without an image.

        Args:
            rows (`datasets.Dataset`): columns `image` (Image), `fmri` (a list of numbers, in the raw unit) and
                `subject` (string). A row may lack its image or its fMRI (`None`). The rows are read once.
            image_size (`int`, *optional*): longer side of the images in px, in place of the one above.

        Raises:
            ValueError: a column is missing, no row has both an image and fMRI, a subject's responses differ in their
                number of voxels, or values are NaN or infinite.
        """
        columns = ["image", "fmri", "subject"]
        missing = [name for name in columns if name not in rows.column_names]
        if missing:
            raise ValueError(f"the dataset has no column {', '.join(missing)}: image, fmri and subject are expected")
        sizes: Counter = Counter()
        grey, moments, paired, of_file = True, {}, set(), {}
        for batch in rows.select_columns(columns).with_format("arrow").iter(ROWS):
            names = batch["subject"].to_pylist()
            has_fmri = batch["fmri"].is_valid().to_pylist()
            for image, name, with_fmri in zip(batch["image"].to_pylist(), names, has_fmri, strict=True):
                if image is not None and with_fmri:
                    file = None if not isinstance(image, dict) or image["bytes"] else image["path"]
                    size, is_grey = of_file[file] if file in of_file else _size_of(image)
                    if file is not None:  # many trials show it, and for its size a PNG is read as a whole
                        of_file[file] = size, is_grey
                    sizes[size] += 1
                    grey = grey and is_grey
                    paired.add(name)
            for name in dict.fromkeys(name for name, there in zip(names, has_fmri, strict=True) if there):
                if name is None:
                    raise ValueError("a row has fMRI but no subject: give the name of its subject")
                own = [row for row, there in enumerate(has_fmri) if there and names[row] == name]
                moments.setdefault(name, _Moments(name)).add(batch["fmri"].take(own).combine_chunks())
        if not sizes:
            raise ValueError("no row has both an image and fMRI: a model learns from such pairs")
        alone = sorted(moments.keys() - paired)
        if alone:
            logger.warning(f"left out, since no row has both an image and fMRI of them: {', '.join(alone)}")
        (width, height), _ = sizes.most_common(1)[0]
        longer = max(width, height)
        scale = min(1.0, LARGEST_IMAGE / longer) if image_size is None else image_size / longer
        processor = cls([max(1, round(height * scale)), max(1, round(width * scale))], 1 if grey else 3)
        for name in sorted(paired):
            processor.add_subject(name, *moments[name].mean_and_std())
        return processor

    @property
    def model_input_names(self) -> list[str]:
        """All that a batch may hold."""
        return ["pixel_values", "fmri", "subject_ids", "fmri_mean", "fmri_std", "has_image", "has_fmri"]

    def __call__(self, images=None, fmri=None, subject=None, return_tensors="pt") -> BatchFeature:
        """
        Args:
            images: one image or several. One image is a `PIL.Image` of any mode, or an array or tensor of shape
                `(height, width[, channels])` or `(channels, height, width)` with 1 or 3 channels: bool, uint8, uint16
                (scaled by 65535, as are 16-bit `PIL.Image`s), or float with values in 0..1. Several are a sequence of
                such images, or an array of four axes. An array of three axes is one image, with these exceptions for a
                model of grey images (`num_channels` 1): unless its last axis has 1 or 3 channels or its first has 1,
                it is a batch `(batch, height, width)`, also where the batch has 3 images. An image on its side is
                turned upright by its EXIF orientation; transparency is ignored.
            fmri: responses in the raw unit, `(voxels,)` or `(batch, voxels)`; a list where subjects differ in their
                number of voxels, or `(batch, max_voxels)` with zeros on the right, as `predict_fmri` returns them.
                Gradients flow through responses that are tensors.
            subject (`str` or `list[str]`): the subject of all rows, or of each; needed where several are known. In a
                list, `None` stands for that of a row without a response.
            return_tensors (`str`): `"pt"`; nothing else is supported.

            In a list of images or of responses, `None` stands for a row that has none. Tensors may be of any dtype and
            on any device.

        Returns:
            `BatchFeature`, in float32 and on the device of the first tensor given (the CPU where none is):
            `pixel_values` `(batch, channels, height, width)` on a 0..1 scale where images are given; `fmri`
            `(batch, max_voxels)`, standardised, where responses are given; and for a known subject `subject_ids`
            `(batch,)`, -1 for a row without one, `fmri_mean` and `fmri_std` `(batch, max_voxels)`, by which predictions
            return to the raw unit.
            `has_image` and `has_fmri` `(batch,)` say which rows have what, where some have not.

        Raises:
            ValueError: unknown subject, a response without one or with a wrong number of voxels, responses that are NaN
                or infinite, or an image of another shape, type or range.
        """
        if return_tensors != "pt":
            raise ValueError(f"return_tensors is {return_tensors!r}: only 'pt' is supported")
        if images is None and fmri is None:
            raise ValueError("neither images nor fmri was given: give one or both")
        if images is not None:
            images = self.split_images(images)
        if fmri is not None:
            fmri = _split_fmri(fmri)
        if images is not None and fmri is not None and len(images) != len(fmri):
            raise ValueError(f"{len(images)} images and {len(fmri)} responses: one response per image is expected")
        size = len(images if images is not None else fmri)
        if size == 0:
            raise ValueError("an empty batch was given: give at least one image or response")
        given = [*(images or []), *(fmri or [])]
        device = next((row.device for row in given if isinstance(row, torch.Tensor)), torch.device("cpu"))
        names = self._subject_names(subject, size, fmri)
        data = {}
        if images is not None:
            blank = torch.zeros(self.num_channels, *self.image_size)
            pixels = torch.stack([blank if image is None else self._pixels(image) for image in images])
            data["pixel_values"] = pixels.to(device)
            if any(image is None for image in images):
                data["has_image"] = torch.tensor([image is not None for image in images], device=device)
        if names is not None:
            mean = {name: torch.tensor(self.fmri_mean.get(name, ()), device=device) for name in set(names)}
            std = {name: torch.tensor(self.fmri_std.get(name, ()), device=device) for name in set(names)}
            ids = [-1 if name is None else self.subjects.index(name) for name in names]
            data["subject_ids"] = torch.tensor(ids, device=device)
            data["fmri_mean"] = pad_sequence([mean[name] for name in names], batch_first=True)
            data["fmri_std"] = pad_sequence([std[name] for name in names], batch_first=True, padding_value=1.0)
        if fmri is not None:
            widest = max(map(len, mean.values()))
            rows = [_raw(row, name, mean[name], widest) for row, name in zip(fmri, names, strict=True)]
            data["fmri"] = pad_sequence(
                [(row - mean[name]) / std[name] for row, name in zip(rows, names, strict=True)], batch_first=True
            )
            if any(row is None for row in fmri):
                data["has_fmri"] = torch.tensor([row is not None for row in fmri], device=device)
        return Batch(data)

    def post_process_fmri(self, fmri, subject=None):
        """Standardised responses in the raw unit: the inverse of what `__call__` does to `fmri`.

        Args:
            fmri (array or tensor): `(voxels,)`, or `(batch, ..., voxels)`, with more columns than a subject has voxels
                where the model has padded them.
            subject (`str` or `list[str]`): the subject of all rows, or of each; needed where several are known.

        Returns:
            Float32, a tensor on the same device where a tensor is given, else an array: of the shape given, without
            padding. A list with an array or tensor for each row, `(..., voxels)`, where the subjects differ in their
            number of voxels.

        Raises:
            ValueError: unknown subject, or a number of columns that does not fit its voxels.
        """
        is_tensor = isinstance(fmri, torch.Tensor)
        values = fmri.float() if is_tensor else torch.tensor(np.asarray(fmri, dtype=np.float32))
        if values.ndim == 0:
            raise ValueError("fmri is a single number: (voxels,) or (batch, voxels) is expected")
        batch = values[None] if values.ndim == 1 else values
        names = self._subject_names(subject, len(batch), batch)
        widest = max(map(len, self.fmri_mean.values()))
        rows = []
        for row, name in zip(batch, names, strict=True):
            mean, std = (torch.tensor(part[name], device=row.device) for part in (self.fmri_mean, self.fmri_std))
            if not len(mean) <= row.shape[-1] <= widest:
                raise ValueError(f"fmri has {row.shape[-1]} columns, {name} has {len(mean)} voxels")
            row = row[..., : len(mean)] * std + mean
            rows.append(row if is_tensor else row.numpy())
        if values.ndim == 1:
            return rows[0]
        if len({row.shape for row in rows}) > 1:
            return rows
        if not rows:
            return values if is_tensor else values.numpy()
        return torch.stack(rows) if is_tensor else np.stack(rows)

    def post_process_images(self, pixels: torch.Tensor) -> list[Image.Image] | list[list[Image.Image]]:
        """`(batch, channels, height, width)` on a 0..1 scale, clamped to it, as a list of `PIL.Image`.

        Of samples, `(batch, samples, channels, height, width)`, a list of such lists.

        Raises:
            ValueError: a tensor with another number of axes.
        """
        if pixels.ndim == 5:
            return [self.post_process_images(own) for own in pixels]
        if pixels.ndim != 4:
            raise ValueError(
                f"pixels of shape {tuple(pixels.shape)}: (batch, channels, height, width) is expected, or "
                "(batch, samples, channels, height, width)"
            )
        arrays = (pixels.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array) for array in arrays]

    def to_images(self, pixels: torch.Tensor) -> list[Image.Image]:
        """The same as `post_process_images`."""
        return self.post_process_images(pixels)

    def decode(self, *args, **kwargs):
        """Raises a ValueError: this is for processors of text."""
        raise ValueError("there is no text to decode: see post_process_images and post_process_fmri")

    batch_decode = decode

    def split_images(self, images) -> list:
        """A list of single images, by the rule that `__call__` states."""
        if isinstance(images, Sequence) and not isinstance(images, str):  # a column of `datasets` is one, too
            return list(images)
        if isinstance(images, (np.ndarray, torch.Tensor)):
            batch_of_grey = images.ndim == 3 and images.shape[0] != 1 and images.shape[-1] not in (1, 3)
            if images.ndim == 4 or (batch_of_grey and self.num_channels == 1):
                return list(images)
        return [images]

    def check_subjects(self, config) -> None:
        """Compare the subjects and their numbers of voxels with those of a model's config.

        Raises:
            ValueError: they differ, also in their order.
        """
        ours = [(name, len(self.fmri_mean[name])) for name in self.subjects]
        theirs = list(zip(config.subjects, config.num_voxels, strict=True))
        if ours != theirs:
            processor, model = (
                ", ".join(f"{name} ({voxels} voxels)" for name, voxels in part if (name, voxels) not in other)
                for part, other in ((ours, theirs), (theirs, ours))
            )
            difference = f"only the processor has {processor or 'none'}, only the model {model or 'none'}"
            if not processor and not model:
                difference = (
                    f"the processor's order is {', '.join(self.subjects)}, the model's {', '.join(config.subjects)}"
                )
            raise ValueError(
                f"processor and model differ in their subjects: {difference}; load both from one folder, and go on "
                "with the processor that fit_subject returns"
            )

    def add_subject(self, name: str, fmri_mean: np.ndarray, fmri_std: np.ndarray) -> None:
        """Add a subject by the mean and standard deviation of each voxel, `(voxels,)` in the raw unit.

        Raises:
            ValueError: a name that is known, or means and deviations that are not two arrays of one length.
        """
        if name in self.subjects:
            raise ValueError(f"subject {name} is known already: give another name, or remove_subject first")
        mean, std = (np.asarray(values, dtype=np.float32) for values in (fmri_mean, fmri_std))
        if mean.ndim != 1 or mean.shape != std.shape:
            raise ValueError(f"fmri_mean has shape {mean.shape}, fmri_std {std.shape}: (voxels,) is expected of both")
        self.subjects.append(name)
        self.fmri_mean[name], self.fmri_std[name] = mean, std

    def remove_subject(self, name: str) -> None:
        """Remove a subject.

        Raises:
            ValueError: a name that is not known.
        """
        if name not in self.subjects:
            raise ValueError(f"unknown subject {name}: this model knows {', '.join(self.subjects) or 'none'}")
        self.subjects.remove(name)
        del self.fmri_mean[name], self.fmri_std[name]

    def to_dict(self):
        """What processor_config.json holds: all but the means and deviations."""
        return {name: value for name, value in super().to_dict().items() if name not in ("fmri_mean", "fmri_std")}

    def to_json_file(self, json_file_path):
        """As in `ProcessorMixin`; writes the means and deviations beside the JSON file.

        `save_pretrained` calls it before it pushes, so that the Hub receives both files.
        """
        super().to_json_file(json_file_path)
        arrays = {f"mean/{name}": np.ascontiguousarray(self.fmri_mean[name]) for name in self.subjects}
        arrays |= {f"std/{name}": np.ascontiguousarray(self.fmri_std[name]) for name in self.subjects}
        save_file(arrays, os.path.join(os.path.dirname(json_file_path), STATISTICS))

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """As in `ProcessorMixin`; the means and deviations go to fmri_statistics.safetensors."""
        files = super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        return [*files, os.path.join(save_directory, STATISTICS)]

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As in `ProcessorMixin`; reads the means and deviations as well.

        Raises:
            OSError: fmri_statistics.safetensors is missing or cannot be read.
        """
        options = ("cache_dir", "force_download", "proxies", "token", "local_files_only", "revision", "subfolder")
        hub_options = {name: kwargs[name] for name in options if kwargs.get(name) is not None}
        processor_dict, kwargs = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        subjects = processor_dict.get("subjects", [])
        if not subjects:
            return processor_dict, kwargs
        folder = pretrained_model_name_or_path
        if os.path.isfile(folder):  # the JSON file itself
            folder = os.path.dirname(folder) or "."
        file = cached_file(folder, STATISTICS, _raise_exceptions_for_missing_entries=False, **hub_options)
        if file is None:
            raise OSError(
                f"{folder} has no {STATISTICS} (mean and standard deviation of each voxel): an earlier version of "
                "VisionFlow wrote it, so train the model again"
            )
        try:
            arrays = load_file(file)
        except SafetensorError as error:
            raise OSError(f"{STATISTICS} of {folder} is damaged ({error}): copy it again, or train again") from error
        for key in ("mean", "std"):
            own = {name: arrays[f"{key}/{name}"] for name in subjects if f"{key}/{name}" in arrays}
            processor_dict[f"fmri_{key}"] = own
        return processor_dict, kwargs

    def _pixels(self, image) -> torch.Tensor:
        image = _to_pil(image).convert("L" if self.num_channels == 1 else "RGB")
        height, width = self.image_size
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)  # averages where it shrinks
        array = np.asarray(image, dtype=np.float32).reshape(height, width, self.num_channels) / 255
        return torch.from_numpy(array).permute(2, 0, 1)

    def _subject_names(self, subject, size: int, fmri) -> list[str | None] | None:
        """The subject of each row, which all with a response need; None where it is not given and none has one."""
        known = f"this model knows {', '.join(self.subjects) or 'none'}"
        if subject is None:
            if len(self.subjects) != 1:
                if fmri is not None:
                    raise ValueError(f"fmri needs its subject: {known}")
                return None
            subject = self.subjects[0]
        names = [subject] * size if isinstance(subject, str) else list(subject)
        if len(names) != size:
            raise ValueError(f"{len(names)} subjects for {size} rows: give one name, or one per row")
        for name, response in zip(names, [None] * size if fmri is None else fmri, strict=True):
            if name is None and response is not None:
                raise ValueError(f"a row has fMRI but no subject: name the subject of every response; {known}")
            if name is not None and name not in self.subjects:
                raise ValueError(f"unknown subject {name}: {known}")
        return names


class _Moments:
    """Mean and standard deviation of one subject's voxels, from parts of the rows.

    Sums are of differences from the first row, in float64: exactly 0 in a constant voxel, and small elsewhere.
    """

    def __init__(self, name: str):
        self.name = name
        self.first = None
        self.rows = self.bad = 0

    def add(self, responses) -> None:
        """Responses as an arrow array of lists."""
        lengths = responses.value_lengths().to_numpy()
        voxels = lengths[0] if self.first is None else len(self.first)
        if (lengths != voxels).any():
            other = lengths[lengths != voxels][0]
            raise ValueError(f"responses of {self.name} have {voxels} and {other} voxels: one number is expected")
        values = np.asarray(responses.flatten().to_numpy(zero_copy_only=False), dtype=np.float32)
        values = values.reshape(len(lengths), voxels)
        if self.first is None:
            self.first = values[0].astype(np.float64)
            self.sum = self.squares = np.zeros(voxels)
        bad = int((~np.isfinite(values)).sum())
        self.bad += bad
        self.rows += len(values)
        if not self.bad:
            difference = values - self.first
            self.sum = self.sum + difference.sum(0)
            self.squares = self.squares + (difference**2).sum(0)

    def mean_and_std(self) -> tuple[np.ndarray, np.ndarray]:
        """Two float32 arrays of shape (voxels,)."""
        if self.bad:
            raise ValueError(f"fmri of {self.name} has {self.bad} NaN or infinite values: remove them first")
        mean = self.sum / self.rows
        std = np.sqrt(np.maximum(self.squares / self.rows - mean**2, 0)).astype(np.float32)
        constant = int((std == 0).sum())
        if constant:
            logger.warning(f"{self.name}: {constant} of {len(std)} voxels are constant, so they are standardised to 0")
        return (self.first + mean).astype(np.float32), np.where(std == 0, np.float32(1), std)


def _size_of(image: dict) -> tuple[tuple[int, int], bool]:
    """(width, height) of an encoded image when upright, and whether it is grey."""
    if not isinstance(image, dict):
        raise ValueError("column image holds no encoded images: cast it with cast_column('image', datasets.Image())")
    with Image.open(io.BytesIO(image["bytes"]) if image["bytes"] else image["path"]) as picture:
        width, height = picture.size
        if picture.getexif().get(ORIENTATION) in ON_ITS_SIDE:
            width, height = height, width
        return (width, height), picture.mode in ("1", "L", "LA", "La", "F") or picture.mode.startswith("I")


def _to_pil(image) -> Image.Image:
    """One image upright, with 8 bits a channel."""
    if isinstance(image, (str, os.PathLike)):
        raise ValueError(f"{image} is a path: give the image itself, PIL.Image.open({str(image)!r})")
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
        if image.mode != "F" and not image.mode.startswith("I"):
            return image
        array = np.asarray(image)  # PIL itself would cut these modes off at 255
        if image.mode == "I" and array.min() >= 0 and array.max() <= 65535:
            array = array.astype(np.uint16)
    elif isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        array = (image.float() if image.is_floating_point() else image).numpy()
    else:
        array = np.asarray(image)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] != 3) or array.size == 0:
        raise ValueError(
            f"an image has shape {array.shape}: (height, width[, channels]) with 1 or 3 channels is expected"
        )
    if array.dtype == bool:
        array = array * np.uint8(255)
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:
        array = np.rint(array / 257).astype(np.uint8)  # 65535 becomes 255
    elif array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
            raise ValueError(f"a float image has values in {low:g}..{high:g}: values in 0..1 are expected")
        array = np.rint(array.clip(0, 1) * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ValueError(
            f"an image is of type {array.dtype}: bool, uint8, uint16, or float with values in 0..1 is expected"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _split_fmri(fmri) -> list:
    """A list of single responses."""
    if isinstance(fmri, Sequence):  # a column of `datasets` is one, too
        fmri = list(fmri)
        return [fmri] if len(fmri) and fmri[0] is not None and np.ndim(fmri[0]) == 0 else fmri
    if not isinstance(fmri, torch.Tensor):
        fmri = np.asarray(fmri)
    if fmri.ndim not in (1, 2):
        raise ValueError(f"fmri has shape {tuple(fmri.shape)}: (voxels,) or (batch, voxels) is expected")
    return [fmri] if fmri.ndim == 1 else list(fmri)


def _raw(row, name: str, mean: torch.Tensor, widest: int) -> torch.Tensor:
    """A response in float32 on the device of `mean`, without padding; the mean itself where there is none."""
    if row is None:
        return mean
    if not isinstance(row, torch.Tensor):
        row = torch.tensor(np.asarray(row, dtype=np.float32))
    row = row.to(mean.device, torch.float32)
    voxels = len(mean)
    if row.ndim == 1 and voxels < len(row) == widest and not row[voxels:].any():
        row = row[:voxels]  # padded to the subject of the batch with the most voxels
    if row.shape != mean.shape:
        raise ValueError(f"fmri has shape {tuple(row.shape)} a row: {name} has {voxels} voxels")
    bad = int((~torch.isfinite(row)).sum())
    if bad:
        raise ValueError(f"fmri of {name} has {bad} NaN or infinite values: remove them first")
    return row


__all__ = ["VisionFlowProcessor"]
