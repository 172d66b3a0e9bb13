"""`prepare arrays`: images and responses that lie as plain arrays in one .mat, .npz or .h5 file."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import scipy.io

from visionflow_hf.corpus.assemble import write_source
from visionflow_hf.corpus.files import existing, hdf5_dataset, open_hdf5, reading
from visionflow_hf.corpus.repeats import number_repeats
from visionflow_hf.corpus.responses import check_responses
from visionflow_hf.corpus.schema import MARKER, pixel_hash, voxel_table, write_corpus
from visionflow_hf.corpus.source import Source, Subject
from visionflow_hf.errors import UserError, count
from visionflow_hf.folders import refuse_existing


@dataclass
class Trials:
    """Trials of one split: images (trials, height, width[, 3]) uint8, fmri (trials, voxels) float32, their stimuli."""

    images: np.ndarray
    fmri: np.ndarray
    stimulus_ids: list[str]


def prepare_arrays(
    file: str | os.PathLike,
    out: str | os.PathLike,
    images: str | None,
    fmri: str,
    test_images: str | None = None,
    test_fmri: str | None = None,
    image_shape: list[int] | None = None,
    column_major: bool = False,
    stimulus_ids: str | None = None,
    test_stimulus_ids: str | None = None,
    subject: str = "subj01",
    test_fraction: float = 0.1,
    average: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    report: Callable[[str], None] = print,
) -> None:
    """Write the corpus `out` from arrays of `file`; the arguments are the flags of `visionflow prepare arrays`.

    Args:
        images, fmri: keys of the arrays (trials, height, width[, channels]) or (trials, pixels), and (trials, voxels).
            A path such as `group/images` reaches into an HDF5 group. Without `images` the corpus has fMRI alone, all
            of it in train, to be merged with pairs.
        test_images, test_fmri: the same of the test split; without them `test_fraction` of the stimuli is drawn.
        image_shape: height, width and maybe channels of images that come as flat rows.
        column_major: the flat rows run down the columns first, as MATLAB's `image(:)` does.
        stimulus_ids: key of one name or number a trial, of the train split or of train and test one after the other;
            trials without are named by a hash of their pixels.
        average: keep one row a stimulus, the mean of its trials.
        report: told, a line each, what a reader of the corpus should know.

    Raises:
        UserError: for whatever in the file or the flags does not fit; nothing is written then.
    """
    refuse_existing(out, overwrite, MARKER)
    if images is None:
        if test_images or test_fmri or image_shape or column_major or average:
            raise UserError("without --images all is train: leave out --test-..., --image-shape and --average-repeats")
        write_fmri_alone(file, out, fmri, stimulus_ids, subject, overwrite)
        return
    if (test_images is None) != (test_fmri is None):
        raise UserError("a test split needs both --test-images and --test-fmri")
    if test_stimulus_ids and not test_images:
        raise UserError("--test-stimulus-ids names the trials of --test-images: give that too")
    keys = [(images, fmri, stimulus_ids)] + ([(test_images, test_fmri, test_stimulus_ids)] if test_images else [])
    arrays = read_arrays(file, [key for split in keys for key in split if key])
    pixels = to_uint8([arrays[images_key] for images_key, _, _ in keys], report)
    if stimulus_ids and test_images and arrays[stimulus_ids].size == len(pixels[0]) + len(pixels[1]):
        test_stimulus_ids = f"{stimulus_ids} of test"
        names = arrays[stimulus_ids].ravel()
        arrays[stimulus_ids], arrays[test_stimulus_ids] = np.split(names, [len(pixels[0])])
        keys[1] = (test_images, test_fmri, test_stimulus_ids)
    parts = []
    for array, (images_key, fmri_key, ids_key) in zip(pixels, keys, strict=True):
        array = shape_images(array, image_shape, column_major, images_key)
        responses = check_responses(arrays[fmri_key], fmri_key)
        if len(array) != len(responses):
            raise UserError(
                f"{images_key} has {len(array)} images, {fmri_key} has {len(responses)} responses: "
                "the first axis of both counts trials, one image a response"
            )
        names = [pixel_hash(image) for image in array]
        if ids_key:
            names = stimulus_names(arrays[ids_key], names, ids_key)
        parts.append(Trials(array, responses, names))
    if test_images:
        train, test = parts
        if train.fmri.shape[1] != test.fmri.shape[1]:
            raise UserError(
                f"{fmri} has {train.fmri.shape[1]} voxels, {test_fmri} has {test.fmri.shape[1]}: they must be the same"
            )
        refuse_shared_stimuli(train, test)
    responses = np.concatenate([part.fmri for part in parts])
    trials = Subject(
        subject,
        stimuli=[name for part in parts for name in part.stimulus_ids],
        splits=[split for part, split in zip(parts, ("train", "test"), strict=False) for _ in part.stimulus_ids],
        num_voxels=responses.shape[1],
        parts=[lambda: iter([(np.arange(len(responses)), 0, responses)])],
    )
    pictures = [partial(zip, part.stimulus_ids, part.images) for part in parts]
    write_source(
        Source([trials], pictures, unit=f"as in {fmri} of {Path(file).name}"),
        out,
        test_fraction=None if test_images else test_fraction,
        average=average,
        seed=seed,
        overwrite=overwrite,
        report=report,
    )


def write_fmri_alone(
    file: str | os.PathLike, out: str | os.PathLike, key: str, ids_key: str | None, subject: str, overwrite: bool
) -> None:
    """A corpus of responses without images; a stimulus has a name where `ids_key` gives one."""
    arrays = read_arrays(file, [one for one in (key, ids_key) if one])
    fmri = check_responses(arrays[key], key)
    names = plain_names(arrays[ids_key], len(fmri), ids_key) if ids_key else [None] * len(fmri)
    numbers = number_repeats(names) if ids_key else [0] * len(fmri)

    def rows() -> Iterator[dict]:
        for response, name, number in zip(fmri, names, numbers, strict=True):
            yield {"image": None, "fmri": response, "subject": subject, "stimulus_id": name, "repeat": number}

    unit = f"as in {key} of {Path(file).name}"
    write_corpus(out, {"train": rows}, voxel_table(subject, fmri.shape[1]), unit=unit, overwrite=overwrite)


def read_arrays(file: str | os.PathLike, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of these keys from a .mat (v5 or v7.3), .npz or .h5 file.

    MATLAB lays arrays out column by column, so that HDF5 shows those of a v7.3 file with their axes reversed: they
    come back here in MATLAB's own order. Pickled arrays are refused.
    """
    refuse_unknown(keys, array_keys(file), file)
    file = Path(file)
    with reading(file):
        if h5py.is_hdf5(file):
            with open_hdf5(file) as source:
                return {key: read_hdf5(source, key, matlab=file.suffix == ".mat") for key in keys}
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as source:
                return {key: source[key] for key in keys}
        return {key: array for key, array in scipy.io.loadmat(file, variable_names=keys).items() if key in keys}


def array_keys(file: str | os.PathLike) -> list[str]:
    """The keys of the arrays in a .mat (v5 or v7.3), .npz or .h5 file."""
    file = existing(Path(file))
    with reading(file):
        if h5py.is_hdf5(file):
            there = []
            with open_hdf5(file) as source:
                source.visititems(lambda name, item: there.append(name) if isinstance(item, h5py.Dataset) else None)
            return [key for key in there if not key.startswith("#refs#")]
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as source:
                return source.files
        if file.suffix == ".mat":
            return [name for name, _, _ in scipy.io.whosmat(file)]
    raise UserError(f"{file} is neither .mat, .npz nor HDF5: give one of these")


def read_hdf5(source: h5py.File, key: str, matlab: bool) -> np.ndarray:
    """One dataset, in MATLAB's order of axes where MATLAB wrote it."""
    array = hdf5_dataset(source, key)[()]
    if not matlab:
        return array
    if array.dtype == h5py.ref_dtype:  # a cell array of strings: each a column of UTF-16 codes
        return np.array(["".join(map(chr, source[reference][()].ravel())) for reference in array.T.ravel()])
    return array.T


def refuse_unknown(keys: Sequence[str], there: Sequence[str], file: Path) -> None:
    for key in keys:
        if key not in there:
            raise UserError(f"{file} has no {key}: its keys are {', '.join(sorted(there))}")


def to_uint8(arrays: list[np.ndarray], report: Callable[[str], None]) -> list[np.ndarray]:
    """Pixel values as 0..255, all splits by one rule: a highest value of at most 1 means 0..1, else 0..255."""
    for array in arrays:
        if array.dtype.kind not in "buif":
            raise UserError(f"images have the type {array.dtype}: numbers are expected")
        if array.size == 0:
            raise UserError(f"images are empty (shape {array.shape})")
    low, high = min(float(array.min()) for array in arrays), max(float(array.max()) for array in arrays)
    if not (low >= 0 and high <= 255):  # also where either is NaN
        raise UserError(f"pixel values run from {low:g} to {high:g}: 0..1 or 0..255 is expected")
    scale = 255 if high <= 1 else 1
    if scale == 255:
        report("pixel values lie in 0..1: scaled to 0..255")
    return [
        array if array.dtype == np.uint8 and scale == 1 else np.rint(array * float(scale)).astype(np.uint8)
        for array in arrays
    ]


def shape_images(array: np.ndarray, shape: list[int] | None, column_major: bool, key: str) -> np.ndarray:
    """Array of shape (trials, height, width) or (trials, height, width, 3)."""
    if array.ndim == 2:
        if shape is None:
            side = round(array.shape[1] ** 0.5)
            example = f"{side} {side}" if side * side == array.shape[1] else "HEIGHT WIDTH [CHANNELS]"
            raise UserError(f"{key} holds flat rows of {array.shape[1]} pixels: say --image-shape {example}")
        if len(shape) not in (2, 3) or min(shape) < 1 or np.prod(shape) != array.shape[1]:
            raise UserError(
                f"--image-shape {' '.join(map(str, shape))} makes {np.prod(shape)} pixels, {key} has rows of "
                f"{array.shape[1]}: height x width [x channels] must equal that"
            )
        if column_major:
            array = array.reshape(len(array), *reversed(shape)).transpose(0, *range(len(shape), 0, -1))
        else:
            array = array.reshape(len(array), *shape)
    elif array.ndim in (3, 4):
        if shape is not None and list(array.shape[1:]) != list(shape):
            raise UserError(
                f"--image-shape {' '.join(map(str, shape))} does not fit {key} of shape {array.shape}: "
                "leave it out where the images are not flat rows"
            )
        if array.ndim == 4 and array.shape[3] not in (1, 3) and array.shape[1] in (1, 3):
            array = array.transpose(0, 2, 3, 1)  # channels first
    else:
        raise UserError(f"{key} has shape {array.shape}: (trials, height, width[, channels]) or (trials, pixels)")
    if array.ndim == 4 and array.shape[3] not in (1, 3):
        raise UserError(f"{key} has images with {array.shape[3]} channels: 1 or 3 are expected")
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    return np.ascontiguousarray(array)


def stimulus_names(array: np.ndarray, hashes: list[str], key: str) -> list[str]:
    """`plain_names`, of which none stands for two images.

    Args:
        hashes: of the pixels that each trial showed.
    """
    names = plain_names(array, len(hashes), key)
    shown: dict[str, str] = {}
    for name, pixels in zip(names, hashes, strict=True):
        if shown.setdefault(name, pixels) != pixels:
            raise UserError(f"stimulus {name} of {key} has several images: one name stands for one image")
    return names


def plain_names(array: np.ndarray, trials: int, key: str) -> list[str]:
    """One string a trial; whole numbers lose a decimal point, MATLAB's cells and bytes become text."""
    values = [value.item() if isinstance(value, np.ndarray) and value.size == 1 else value for value in array.ravel()]
    if len(values) != trials:
        raise UserError(f"{key} has {len(values)} entries for {trials} trials: one name a trial is expected")
    names = []
    for value in values:
        if isinstance(value, bytes):
            value = value.decode()
        elif isinstance(value, (float, np.floating)) and float(value).is_integer():
            value = int(value)
        names.append(str(value).strip())
    return names


def refuse_shared_stimuli(train: Trials, test: Trials) -> None:
    """No stimulus in both splits, neither by name nor by pixels."""
    shared = sorted(set(train.stimulus_ids) & set(test.stimulus_ids))
    if not shared:
        by_pixels = {pixel_hash(image): name for image, name in zip(train.images, train.stimulus_ids, strict=True)}
        for image, name in zip(test.images, test.stimulus_ids, strict=True):
            if pixel_hash(image) in by_pixels:
                shared.append(f"{by_pixels[pixel_hash(image)]} = {name} (same pixels)")
    if shared:
        raise UserError(f"{count(shared, 'stimulus')} in both train and test: a stimulus belongs to one split only")
