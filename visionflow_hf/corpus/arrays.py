"""`prepare arrays`: images and responses that lie as plain arrays in one .mat, .npz or .h5 file."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import scipy.io
import scipy.sparse

from visionflow_hf.corpus.assemble import write_source
from visionflow_hf.corpus.files import existing, hdf5_dataset, open_hdf5, own_values, reading
from visionflow_hf.corpus.repeats import number_repeats
from visionflow_hf.corpus.responses import check_responses
from visionflow_hf.corpus.schema import MARKER, pixel_hash, voxel_table, write_corpus
from visionflow_hf.corpus.source import Source, Subject
from visionflow_hf.errors import UserError, count
from visionflow_hf.folders import refuse_existing

RESIZED = 1e-3  # how far resizing may have taken floats beyond 0..1
LEAST_OF_255 = 16  # floats up to 1 are 0..1, from here on 0..255, and neither for certain in between
MOST_OF_12_BITS = 4095  # 16-bit integers up to here may be of a camera with 10 or 12 bits


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
    test_fraction: float | None = None,
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
        test_images, test_fmri: the same of the test split; without them a test split is drawn.
        image_shape: height, width and maybe channels of images that come as flat rows.
        column_major: the flat rows run down the columns first, as MATLAB's `image(:)` does.
        stimulus_ids: key of one name or number a trial, of the train split or of train and test one after the other;
            trials without are named by a hash of their pixels.
        test_fraction: share of the stimuli to draw as test, from all trials; None keeps a test split that is given,
            and draws a tenth otherwise.
        average: keep one row a stimulus, the mean of its trials.
        report: called with one line for each thing that a user of the corpus should know.

    Raises:
        UserError: the file or the flags do not fit; nothing is written then.
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
    for images_key, fmri_key, _ in keys:
        refuse_trials_last(arrays[images_key], arrays[fmri_key], images_key, fmri_key)
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
        if test_fraction is None:
            refuse_shared_stimuli(train, test)
    responses = np.concatenate([part.fmri for part in parts])
    trials = Subject(
        subject,
        stimuli=[name for part in parts for name in part.stimulus_ids],
        splits=["train"] * len(parts[0].fmri) + ["test"] * len(parts[1].fmri) if test_images else None,
        num_voxels=responses.shape[1],
        parts=[lambda: iter([(np.arange(len(responses)), 0, responses)])],
    )
    pictures = [partial(zip, part.stimulus_ids, part.images) for part in parts]
    write_source(
        Source([trials], pictures, unit=f"as in {fmri} of {Path(file).name}"),
        out,
        test_fraction=test_fraction,
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
    come back here in MATLAB's own order. Sparse matrices of a v5 file come back dense; `data/images` is the field
    `images` of the struct `data`. Pickled arrays are refused.
    """
    file = Path(file)
    there = array_keys(file)
    is_mat5 = file.suffix == ".mat" and not h5py.is_hdf5(file)
    refuse_unknown([key.split("/")[0] for key in keys] if is_mat5 else keys, there, file)
    with reading(file):
        if h5py.is_hdf5(file):
            with open_hdf5(file) as source:
                return {key: read_hdf5(source, key, matlab=file.suffix == ".mat") for key in keys}
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as source:
                return {key: source[key] for key in keys}
        variables = scipy.io.loadmat(file, variable_names=[key.split("/")[0] for key in keys])
        return {key: read_mat5(variables, key, file) for key in keys}


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
            try:
                return [name for name, _, _ in scipy.io.whosmat(file)]
            except TypeError:  # whosmat fails on MATLAB's strings, tables and dates, which loadmat leaves out
                return [name for name in scipy.io.loadmat(file) if name != "None" and not name.startswith("__")]
    raise UserError(f"{file} is neither .mat, .npz nor HDF5: give one of these")


def read_mat5(variables: dict, key: str, file: Path) -> np.ndarray:
    """One variable of a .mat file before v7.3, or one field of a struct."""
    name, *fields = key.split("/")
    array = variables[name]
    for field in fields:
        names = getattr(array.dtype, "names", None) or ()
        if field not in names or array.size != 1:
            raise UserError(f"{name} of {file} has no field {field}: its fields are {', '.join(names) or 'none'}")
        name, array = f"{name}/{field}", array[field].item()
    if scipy.sparse.issparse(array):
        return array.toarray()
    if array.dtype.names:
        fields = ", ".join(f"{name}/{field}" for field in array.dtype.names)
        raise UserError(f"{name} of {file} is a struct: give one of its fields, {fields}")
    return array


def read_hdf5(source: h5py.File, key: str, matlab: bool) -> np.ndarray:
    """One dataset, in MATLAB's order of axes where MATLAB wrote it; its text as an array of str."""
    dataset = hdf5_dataset(source, key)
    array = dataset[()]
    if not matlab:
        return array
    if array.dtype == h5py.ref_dtype:  # a cell array
        cells = [own_values(source[reference], f"a cell of {key}") for reference in array.T.ravel()]
        values = [text_of(cell[()].T.ravel()) if is_text(cell) else cell[()] for cell in cells]
        return np.fromiter(values, dtype=object, count=len(values))
    if is_text(dataset) and array.ndim == 2:
        return np.array([text_of(row) for row in array.T])
    return array.T


def is_text(dataset: h5py.Dataset) -> bool:
    """Whether MATLAB means UTF-16 codes; a cell whose class is not stated is text if it holds uint16."""
    kind = dataset.attrs.get("MATLAB_class")
    return kind == b"char" if kind is not None else dataset.dtype == np.uint16 and "#refs#" in dataset.name


def text_of(codes: np.ndarray) -> str:
    return "".join(map(chr, codes))


def refuse_unknown(keys: Sequence[str], there: Sequence[str], file: Path) -> None:
    for key in keys:
        if key not in there:
            raise UserError(f"{file} has no {key}: its keys are {', '.join(sorted(there))}")


def refuse_trials_last(images: np.ndarray, fmri: np.ndarray, images_key: str, fmri_key: str) -> None:
    """MATLAB's users often let the last axis count trials."""
    if min(images.ndim, fmri.ndim) > 1 and len(images) != len(fmri) and images.shape[-1] == fmri.shape[-1]:
        raise UserError(
            f"{images_key} has shape {images.shape}, {fmri_key} has {fmri.shape}: the first axis must count trials, "
            f"and the last one does with {fmri.shape[-1]} of both, so transpose the arrays"
        )


def to_uint8(arrays: list[np.ndarray], report: Callable[[str], None]) -> list[np.ndarray]:
    """Pixel values as 0..255, all splits by one rule, see `highest_value`."""
    for array in arrays:
        if array.dtype.kind not in "buif":
            raise UserError(f"images have the type {array.dtype}: numbers are expected")
        if array.size == 0:
            raise UserError(f"images are empty (shape {array.shape})")
    kinds = {array.dtype: [other for other in arrays if other.dtype == array.dtype] for array in arrays}
    scales = {kind: highest_value(alike) for kind, alike in kinds.items()}
    if len(set(scales.values())) > 1:
        found = " and ".join(f"0..{scale} ({kind})" for kind, scale in scales.items())
        raise UserError(f"pixel values are {found} in train and test: store both in the same range")
    scale = next(iter(scales.values()))
    if scale != 255:
        report(f"pixel values lie in 0..{scale}: scaled to 0..255")
    return [
        array
        if array.dtype == np.uint8 and scale == 255
        else np.rint(array.astype(np.float64) * (255 / scale)).clip(0, 255).astype(np.uint8)
        for array in arrays
    ]


def highest_value(arrays: list[np.ndarray]) -> int:
    """The pixel value that means white in arrays of one type: 1, 255, or 65535 of 16-bit integers.

    Raises:
        UserError: values beyond these ranges, or for which two of them are possible.
    """
    low, high = min(float(array.min()) for array in arrays), max(float(array.max()) for array in arrays)
    kind = arrays[0].dtype
    floating = kind.kind == "f"
    beyond = RESIZED if floating else 0
    if -beyond <= low and high <= 1 + beyond:
        return 1
    if -255 * beyond <= low and (LEAST_OF_255 if floating else 1) < high <= 255 * (1 + beyond):
        return 255
    if kind.newbyteorder("=") == np.uint16 and high > MOST_OF_12_BITS:
        return 65535
    expected = "0..1, 0..255 or 0..65535" if kind.newbyteorder("=") == np.uint16 else "0..1 or 0..255"
    raise UserError(
        f"pixel values ({kind}) run from {low:g} to {high:g}: {expected} is expected, so clip or scale them first"
    )


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
    """`plain_names`, each of which must stand for one image.

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
        raise UserError(
            f"{count(shared, 'stimulus')} in both train and test: a stimulus belongs to one split only, so draw the "
            "splits anew from all trials with --test-fraction 0.1, or remove these trials from one"
        )
