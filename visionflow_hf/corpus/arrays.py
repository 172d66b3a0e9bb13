"""`prepare arrays`: images and responses that lie as plain arrays in one .mat, .npz or .h5 file."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from visionflow_hf.corpus.array_files import names_in, read_arrays, vector
from visionflow_hf.corpus.array_kinds import array_kinds
from visionflow_hf.corpus.array_proposal import listed, proposed
from visionflow_hf.corpus.assemble import write_source
from visionflow_hf.corpus.repeats import ncsnr_of_ceiling, number_repeats
from visionflow_hf.corpus.responses import check_responses
from visionflow_hf.corpus.schema import MARKER, SPLIT_BY, name_by_pixels, voxel_table, write_corpus
from visionflow_hf.corpus.source import Block, Source, Subject
from visionflow_hf.corpus.voxel_arrays import VoxelKeys, plain_text, voxel_columns
from visionflow_hf.errors import UserError, count
from visionflow_hf.folders import refuse_existing
from visionflow_hf.images import pixel_hash

SUBJECT = "subj01"  # name of a subject without one
PLACEHOLDER = "{subject}"  # in keys, for the names of several
RESIZED = 1e-3  # how far resizing may have taken floats beyond 0..1
LEAST_OF_255 = 16  # floats up to 1 are 0..1, from here on 0..255, and neither for certain in between
MOST_OF_12_BITS = 4095  # 16-bit integers up to here may be of a camera with 10 or 12 bits


@dataclass
class TrialKeys:
    """Keys of the arrays of one subject, or with `{subject}` in place of its name of several."""

    images: str
    fmri: str
    test_images: str | None = None
    test_fmri: str | None = None
    stimulus_ids: str | None = None
    test_stimulus_ids: str | None = None
    category: str | None = None
    test_category: str | None = None


@dataclass
class Trials:
    """Trials of one split.

    Attributes:
        images: uint8 (trials, height, width[, 3]).
        fmri: float32 (trials, voxels).
        pixels: a hash of each trial's image.
        stimulus_ids: the name of each trial's stimulus.
        categories: the category of each trial's stimulus, or None.
    """

    images: np.ndarray
    fmri: np.ndarray
    pixels: list[str]
    stimulus_ids: list[str]
    categories: list[str] | None


def prepare_arrays(
    file: str | os.PathLike,
    out: str | os.PathLike,
    images: str | None = None,
    fmri: str | None = None,
    test_images: str | None = None,
    test_fmri: str | None = None,
    image_shape: list[int] | None = None,
    column_major: bool = False,
    stimulus_ids: str | None = None,
    test_stimulus_ids: str | None = None,
    category: str | None = None,
    test_category: str | None = None,
    subject: str | None = None,
    rois: list[str] | None = None,
    xyz: str | None = None,
    mask_volume: str | None = None,
    noise_ceiling: str | None = None,
    test_fraction: float | None = None,
    average: bool = False,
    split_by: str = SPLIT_BY[0],
    stimuli_once: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    report: Callable[[str], None] = print,
) -> None:
    """Write the corpus `out` from arrays of `file`; the arguments are the flags of `visionflow prepare arrays`.

    Args:
        images, fmri: keys of the arrays (trials, height, width[, channels]) or (trials, pixels), and (trials, voxels);
            or of a cell array with one of each trial. A path such as `group/images` reaches into HDF5 groups, structs
            and cells, see `read_arrays`. Where `{subject}` is in `fmri`, there is a subject for each key that fits, and
            `{subject}` in other keys is its name. Without `images` the corpus has fMRI alone, all of it in train, to be
            merged with pairs. Without `fmri` nothing is written: `report` is told what the file holds, and the error
            proposes a command.
        test_images, test_fmri: the same of the test split; without them a test split is drawn.
        image_shape: height, width and maybe channels of images that come as flat rows.
        column_major: the flat rows run down the columns first, as MATLAB's `image(:)` does.
        stimulus_ids, category: key of one name or number a trial, of the train split or of train and test one after the
            other. Stimuli without a name are named by a hash of their pixels.
        subject: name of the only subject, subj01 without.
        rois, xyz, mask_volume, noise_ceiling: what is known of the voxels, see `VoxelKeys`.
        test_fraction: share of the stimuli to draw as test, from all trials; None keeps a test split that is given,
            and draws a tenth otherwise.
        average: keep one row a stimulus, the mean of its trials.
        split_by: as in `write_source`.
        stimuli_once: see `write_source`.
        report: called with one line for each thing that a user of the corpus should know.

    Raises:
        UserError: the file or the flags do not fit; nothing is written then.
    """
    refuse_existing(out, overwrite, MARKER)
    images, fmri = images or None, fmri or None  # an empty text names no array
    if fmri is None:
        kinds = array_kinds(file)
        report(listed(kinds))
        command = proposed(kinds, file, out)
        raise UserError(f"nothing is written without --fmri KEY; {command or 'no array looks like responses'}")
    about_voxels = VoxelKeys(rois, xyz, mask_volume, noise_ceiling)
    if images is None:
        of_test = test_images or test_fmri or test_stimulus_ids or test_category or test_fraction is not None
        if of_test or image_shape or column_major or average or stimuli_once or category or split_by != SPLIT_BY[0]:
            raise UserError(
                "without --images all is train: leave out --test-..., --split-by, --image-shape, --category, "
                "--average-repeats and --stimuli-once"
            )
        if PLACEHOLDER in str((fmri, stimulus_ids, about_voxels)):
            raise UserError(
                f"without --images there is one subject: give its own keys in place of {PLACEHOLDER}, and --subject"
            )
        write_fmri_alone(file, out, fmri, stimulus_ids, subject or SUBJECT, about_voxels, overwrite, report)
        return
    if (test_images is None) != (test_fmri is None):
        raise UserError("a test split needs both --test-images and --test-fmri")
    if (test_stimulus_ids or test_category) and not test_images:
        raise UserError("--test-stimulus-ids and --test-category name the trials of --test-images: give that too")
    if test_category and not category:
        raise UserError("--test-category needs --category, for the trials of train")
    keys = TrialKeys(images, fmri, test_images, test_fmri, stimulus_ids, test_stimulus_ids, category, test_category)
    subjects, pictures, trials = [], [], []
    for name in named_subjects(file, keys, about_voxels, subject):
        parts = read_trials(file, of_subject(keys, name), image_shape, column_major, report)
        for part, first in zip(parts, trials, strict=False):
            if np.array_equal(part.images, first.images):  # subjects who saw the same: one array in memory
                part.images = first.images
        if test_images and test_fraction is None:
            refuse_shared_stimuli(*parts)
        responses = np.concatenate([part.fmri for part in parts])
        voxels = voxel_columns(file, of_subject(about_voxels, name), responses.shape[1], report)
        ceiling = voxels.pop("noise_ceiling", None)
        subjects.append(
            Subject(
                name,
                stimuli=[stimulus for part in parts for stimulus in part.stimulus_ids],
                splits=["train"] * len(parts[0].fmri) + ["test"] * len(parts[1].fmri) if test_images else None,
                num_voxels=responses.shape[1],
                parts=[partial(whole, responses)],
                voxels=voxels,
                ncsnr=None if ceiling is None else ncsnr_of_ceiling(ceiling),
            )
        )
        pictures += [partial(zip, part.stimulus_ids, part.images) for part in parts]
        trials += parts
    one_of_each(trials, "pixels", f"{stimulus_ids} has several images: one name stands for one image")
    categories = (
        one_of_each(trials, "categories", f"{category} has several categories: one is expected") if category else None
    )
    write_source(
        Source(subjects, pictures, unit=f"as in {fmri} of {Path(file).name}", categories=categories),
        out,
        test_fraction=test_fraction,
        average=average,
        stimuli_once=stimuli_once,
        seed=seed,
        overwrite=overwrite,
        report=report,
        split_by=split_by,
    )


def named_subjects(file: str | os.PathLike, keys: TrialKeys, about_voxels: VoxelKeys, name: str | None) -> list[str]:
    """The only subject, or those that stand for `{subject}` in the keys of a file."""
    if PLACEHOLDER in keys.fmri:
        if name:
            raise UserError(f"--subject names the only subject: leave it out with --fmri {keys.fmri}")
        names = names_in(file, keys.fmri, PLACEHOLDER)
        given = [*(key for key in vars(keys).values() if key != keys.fmri), *vars(about_voxels).values()]
        given = [key for one in given for key in (one if isinstance(one, list) else [one]) if key]
        others = {key.replace(PLACEHOLDER, name) for key in given for name in names}
        names = [name for name in names if keys.fmri.replace(PLACEHOLDER, name) not in others]
        for name in names:
            shorter = max((one for one in names if name != one and one in name), key=len, default=None)
            if shorter and re.search("test", name.replace(shorter, ""), re.IGNORECASE):
                of_test = keys.fmri.replace(PLACEHOLDER, name).replace(shorter, PLACEHOLDER)
                raise UserError(
                    f"{keys.fmri} fits {keys.fmri.replace(PLACEHOLDER, name)} as well: give --test-fmri {of_test} and "
                    "--test-images, or rename it"
                )
        return names
    if PLACEHOLDER in str((keys, about_voxels)):
        raise UserError(f"{PLACEHOLDER} may be used in other keys only if --fmri has it, too: --fmri is {keys.fmri}")
    return [name or SUBJECT]


def of_subject(keys, name: str):
    """The keys of one subject; `keys` is a dataclass of them."""

    def own(key: str | list[str] | None):
        if isinstance(key, list):
            return [own(one) for one in key]
        return key and key.replace(PLACEHOLDER, name)

    return replace(keys, **{flag: own(key) for flag, key in vars(keys).items()})


def whole(responses: np.ndarray) -> Iterator[Block]:
    yield np.arange(len(responses)), 0, responses


def read_trials(
    file: str | os.PathLike,
    keys: TrialKeys,
    image_shape: list[int] | None,
    column_major: bool,
    report: Callable[[str], None],
) -> list[Trials]:
    """The trials of train, and those of test if there are keys."""
    arrays = read_arrays(file, [key for key in vars(keys).values() if key])
    pairs = [(keys.images, keys.fmri)] + ([(keys.test_images, keys.test_fmri)] if keys.test_images else [])
    stored = [(stacked(arrays[one], one), stacked(arrays[other], other, flat=True)) for one, other in pairs]
    for (images, fmri), (images_key, fmri_key) in zip(stored, pairs, strict=True):
        if not images.ndim:
            raise UserError(f"{images_key} is one number: images (trials, height, width[, channels]) are expected")
        refuse_trials_last(images, fmri, images_key, fmri_key)
    pixels = to_uint8([images for images, _ in stored], report)
    lengths = [len(images) for images in pixels]
    names = entries(arrays, keys.stimulus_ids, keys.test_stimulus_ids, lengths)
    labels = entries(arrays, keys.category, keys.test_category, lengths)
    parts = []
    for place, (images_key, fmri_key) in enumerate(pairs):
        images = shape_images(pixels[place], image_shape, column_major, images_key)
        responses = check_responses(stored[place][1], fmri_key)
        if len(images) != len(responses):
            raise UserError(
                f"{images_key} has {len(images)} images, {fmri_key} has {len(responses)} responses: "
                "the first axis of both counts trials, one image a response"
            )
        shown = [name_by_pixels(image) for image in images]
        own = names[place]
        ids_key = keys.stimulus_ids or keys.test_stimulus_ids
        named = refuse_missing(plain_names(own, len(images), ids_key), ids_key) if own is not None else shown
        if keys.category and labels[place] is None:
            raise UserError(f"--category {keys.category} has the categories of train alone: give --test-category, too")
        categories = None
        if keys.category:
            categories = refuse_missing(plain_names(labels[place], len(images), keys.category), keys.category)
        parts.append(Trials(images, responses, shown, named, categories))
    voxels = [part.fmri.shape[1] for part in parts]
    if len(set(voxels)) > 1:
        raise UserError(f"{keys.fmri} has {voxels[0]} voxels, {keys.test_fmri} has {voxels[1]}: they must be the same")
    return parts


def stacked(array: np.ndarray, key: str, flat: bool = False) -> np.ndarray:
    """One array of a cell array with a trial in each cell; other arrays as they are.

    Args:
        flat: a trial is a vector.
    """
    if array.dtype != object or not array.size:
        return array
    cells = [np.asarray(cell) for cell in array.ravel()]
    shapes = sorted({cell.shape for cell in cells})
    if len(shapes) > 1 or any(cell.dtype.kind not in "buif" for cell in cells):
        raise UserError(
            f"{key} has {len(cells)} cells of the {count(shapes, 'shape')}: numbers of one shape, a trial in each, are "
            f"expected; {key}/1 names the first cell, {key}/{PLACEHOLDER} a subject in each"
        )
    if flat and np.prod(shapes[0]) > max(shapes[0], default=1):
        raise UserError(
            f"{key} has {len(cells)} cells of shape {shapes[0]}: if each is a subject, give {key}/{PLACEHOLDER}, or "
            f"{key}/1 for the first"
        )
    vectors = len(shapes[0]) == 2 and 1 in shapes[0]
    return np.stack([cell.ravel() if flat or vectors else cell for cell in cells])


def entries(
    arrays: dict[str, np.ndarray], key: str | None, test_key: str | None, lengths: list[int]
) -> list[np.ndarray | None]:
    """What a key tells of the trials of train and test; the first may hold both, one after the other."""
    if key and not test_key and len(lengths) == 2 and arrays[key].size == sum(lengths):
        return np.split(vector(arrays[key], key), [lengths[0]])
    return [arrays[one] if one else None for one in (key, test_key)[: len(lengths)]]


def one_of_each(trials: list[Trials], what: str, complaint: str) -> dict[str, str]:
    """For each stimulus its `pixels` or `categories`, which must be the same in all of its trials."""
    found: dict[str, str] = {}
    for part in trials:
        for name, value in zip(part.stimulus_ids, getattr(part, what), strict=True):
            if found.setdefault(name, value) != value:
                raise UserError(f"stimulus {name} of {complaint}")
    return found


def write_fmri_alone(
    file: str | os.PathLike,
    out: str | os.PathLike,
    key: str,
    ids_key: str | None,
    subject: str,
    about_voxels: VoxelKeys,
    overwrite: bool,
    report: Callable[[str], None],
) -> None:
    """A corpus of responses without images; a stimulus has a name where `ids_key` gives one."""
    arrays = read_arrays(file, [one for one in (key, ids_key) if one])
    fmri = check_responses(stacked(arrays[key], key, flat=True), key)
    names = [None] * len(fmri)
    if ids_key:
        names = refuse_missing(plain_names(arrays[ids_key], len(fmri), ids_key), ids_key)
    numbers = number_repeats(names) if ids_key else [0] * len(fmri)

    def rows() -> Iterator[dict]:
        for response, name, number in zip(fmri, names, numbers, strict=True):
            yield {"image": None, "fmri": response, "subject": subject, "stimulus_id": name, "repeat": number}

    unit = f"as in {key} of {Path(file).name}"
    voxels = voxel_table(subject, fmri.shape[1], **voxel_columns(file, about_voxels, fmri.shape[1], report))
    write_corpus(out, {"train": rows}, voxels, unit=unit, overwrite=overwrite)


def refuse_trials_last(images: np.ndarray, fmri: np.ndarray, images_key: str, fmri_key: str) -> None:
    """MATLAB's users often let the last axis count trials, of one array or of both."""
    if min(images.ndim, fmri.ndim) < 2 or len(images) == len(fmri):
        return
    last = images.shape[-1], fmri.shape[-1]
    for which, one, other in ("both", *last), (images_key, last[0], len(fmri)), (fmri_key, len(images), last[1]):
        if one == other:
            raise UserError(
                f"{images_key} has shape {images.shape}, {fmri_key} has {fmri.shape}: the first axis must count "
                f"trials, and the last one does with {one} of {which}, so transpose the "
                f"{'arrays' if which == 'both' else 'array'}"
            )


def to_uint8(arrays: list[np.ndarray], report: Callable[[str], None]) -> list[np.ndarray]:
    """Pixel values as 0..255, all splits by one rule, see `highest_value`."""
    for array in arrays:
        if array.dtype.kind not in "buif":
            raise UserError(f"images have the type {array.dtype}: numbers are expected")
        if array.size == 0:
            raise UserError(f"images are empty (shape {array.shape}): at least one image is expected")
    kinds = {array.dtype: [other for other in arrays if other.dtype == array.dtype] for array in arrays}
    scales = {kind: highest_value(alike) for kind, alike in kinds.items()}
    if len(set(scales.values())) > 1:
        found = " and ".join(f"0..{scale} ({kind})" for kind, scale in scales.items())
        raise UserError(f"pixel values are {found} in train and test: store both in the same range")
    scale = next(iter(scales.values()))
    if scale != 255:
        report(f"pixel values lie in 0..{scale}: scaled to 0..255")
    return [array if array.dtype == np.uint8 and scale == 255 else scaled(array, 255 / scale) for array in arrays]


def scaled(array: np.ndarray, factor: float) -> np.ndarray:
    """The array times a factor as uint8, a row at a time: float64 copies of all images could fill memory."""
    out = np.empty(array.shape, dtype=np.uint8)
    for row in range(len(array)):
        out[row] = np.rint(array[row].astype(np.float64) * factor).clip(0, 255)
    return out


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
        if column_major:
            raise UserError(f"{key} has shape {array.shape}: --column-major is for images that come as flat rows")
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


def plain_names(array: np.ndarray, trials: int, key: str) -> list[str]:
    """One string a trial; whole numbers lose a decimal point, MATLAB's cells and bytes become text."""
    if array.size != trials:
        raise UserError(f"{key} has {array.size} entries for {trials} trials: one name a trial is expected")
    flat = vector(array, key)
    values = [value.item() if isinstance(value, np.ndarray) and value.size == 1 else value for value in flat]
    empty = [isinstance(value, np.ndarray) and value.size == 0 for value in values]
    return ["" if none else plain_text(value, key) for value, none in zip(values, empty, strict=True)]


def refuse_missing(names: list[str], key: str) -> list[str]:
    """The names themselves; raise `UserError` where one is missing."""
    if "" in names:
        raise UserError(f"{key} is missing in trial {names.index('') + 1}: every trial needs one")
    return names


def refuse_shared_stimuli(train: Trials, test: Trials) -> None:
    """No stimulus in both splits, neither by name nor by pixels."""
    shared = sorted(set(train.stimulus_ids) & set(test.stimulus_ids))
    if not shared:
        hashes = [[pixel_hash(Image.fromarray(image)) for image in split.images] for split in (train, test)]
        by_pixels = dict(zip(hashes[0], train.stimulus_ids, strict=True))
        for pixels, name in zip(hashes[1], test.stimulus_ids, strict=True):
            if pixels in by_pixels:
                shared.append(f"{by_pixels[pixels]} = {name} (same pixels)")
    if shared:
        raise UserError(
            f"{count(shared, 'stimulus')} in both train and test: a stimulus belongs to one split only, so draw the "
            "splits anew from all trials with --test-fraction 0.1, or remove these trials from one"
        )
