"""`prepare algonauts23`: the Algonauts 2023 challenge, as its folder or as the `datasets` form made of it.

Challenge: subj0X/training_split/{training_fmri,training_images}, one row an image, repeats averaged by the organisers;
image train-0001_nsd-00013.png belongs to the first row and is image 13, counted from 0, of the Natural Scenes Dataset.
The images of test_split came without responses and are left out.

`datasets` form (childmindresearch/algonauts23): processed/size-256/{train,val,testval}, responses on the vertices that
any subject has, zeros where a subject lacks them; its splits differ between subjects, here a stimulus has one.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from visionflow_hf.corpus.files import BLOCK_BYTES, existing, open_npy, reading
from visionflow_hf.corpus.nsd_labels import LABELS, name_regions
from visionflow_hf.corpus.source import Block, Source, Subject, choose_subjects, image_parts, refuse_absent
from visionflow_hf.errors import UserError, count

UNIT = "response z-scored within each session, repeats averaged (Algonauts 2023)"
HEMISPHERES = ("lh", "rh")
CACHED = re.compile(r"\.|cache-|tmp")  # how the names of files begin that `datasets` makes beside its own
PROCESSED_SPLITS = {"train": "train", "val": "validation", "testval": "test"}
GROUP_VERTICES = (19004, 20544)  # left and right, of all subjects together
FSAVERAGE = 163842  # vertices of a hemisphere


def read_algonauts23(
    source: Path,
    subjects: Sequence[str] | None = None,
    report: Callable[[str], None] = print,
) -> Source:
    """The source in the challenge's folder, which has no test split, or in the one that holds `processed/`.

    Args:
        subjects: names such as subj01; all that are there without.

    Raises:
        UserError: the source does not have the expected form.
    """
    if not source.is_dir():
        raise UserError(f"there is no folder {source}: give the folder of the challenge, or the one with processed/")
    folders = sorted(folder.name for folder in source.iterdir() if re.fullmatch(r"subj\d\d", folder.name))
    if folders:
        found = challenge(source, choose_subjects(folders, subjects, source / "subj01"), report)
        refuse_absent(found.subjects, subjects, f"{source}/subj01/training_split/training_fmri/lh_training_fmri.npy")
    else:
        found = processed(source, subjects, report)
    return found


def challenge(source: Path, names: list[str], report: Callable[[str], None]) -> Source:
    subjects, images = [], {}
    for name in names:
        fmri = source / name / "training_split" / "training_fmri"
        files = [fmri / f"{side}_training_fmri.npy" for side in HEMISPHERES]
        absent = [file.name for file in files if not file.is_file()]
        if absent:
            report(f"{name}: left out, {fmri} lacks {' and '.join(absent)}")
            continue
        shapes = [responses(file).shape for file in files]
        if shapes[0][0] != shapes[1][0]:
            raise UserError(
                f"{files[0]} has {shapes[0][0]} rows, {files[1]} has {shapes[1][0]}: both count the same images"
            )
        pictures = source / name / "training_split" / "training_images"
        shown = training_images(pictures, shapes[0][0])
        if not shown:
            report(f"{name}: left out, {pictures} holds no image such as train-0001_nsd-00013.png")
            continue
        if len(shown) < shapes[0][0]:
            report(f"{name}: {shapes[0][0] - len(shown)} of {shapes[0][0]} training images are absent: left out")
        rows = np.array(sorted(shown), dtype=np.int64)
        stimuli = [f"nsd-{shown[row][0]:05d}" for row in rows]
        images |= {f"nsd-{number:05d}": file for number, file in shown.values()}
        step = max(BLOCK_BYTES // (4 * sum(shape[1] for shape in shapes)), 1)
        subjects.append(
            Subject(
                name,
                stimuli,
                splits=None,
                num_voxels=shapes[0][1] + shapes[1][1],
                parts=[
                    partial(read_rows, files, rows[start : start + step], start) for start in range(0, len(rows), step)
                ],
                voxels=where(source / name / "roi_masks", [shape[1] for shape in shapes], name, report),
            )
        )
    return Source(subjects, image_parts(subjects, images), UNIT)


def responses(file: Path) -> np.ndarray:
    array = open_npy(file)
    if array.ndim != 2 or array.dtype != np.float32 or array.size == 0:
        raise UserError(
            f"{file} has shape {array.shape} and type {array.dtype}: float32 (images, vertices) is expected"
        )
    return array


def training_images(folder: Path, rows: int) -> dict[int, tuple[int, Path]]:
    """Row of the responses: number in the Natural Scenes Dataset, file."""
    images: dict[int, tuple[int, Path]] = {}
    for file in sorted(folder.glob("[!.]*.png")):
        match = re.fullmatch(r"train-(\d+)_nsd-(\d+)", file.stem)
        if not match:
            raise UserError(f"{file} has no name such as train-0001_nsd-00013.png: rename or remove it")
        row = int(match[1]) - 1
        if not 0 <= row < rows:
            raise UserError(f"{file} names row {match[1]} of 1 to {rows}: these numbers count from 1")
        if row in images:
            raise UserError(f"{images[row][1]} and {file} are both the image of row {match[1]}: remove one")
        images[row] = (int(match[2]), file)
    return images


def read_rows(files: list[Path], rows: np.ndarray, start: int) -> Iterator[Block]:
    """Rows of both hemispheres, the left vertices first."""
    first = 0
    for file in files:
        with reading(file):
            values = np.array(responses(file)[rows])
        yield np.arange(start, start + len(rows)), first, values
        first += values.shape[1]


def where(folder: Path, vertices: list[int], subject: str, report: Callable[[str], None]) -> dict[str, list]:
    """The columns `roi` and `vertex` of the voxel table, the left hemisphere first."""
    vertex: list[int | None] = []
    absent = []
    for side, number in zip(HEMISPHERES, vertices, strict=True):
        file = folder / f"{side}.all-vertices_fsaverage_space.npy"
        if not file.is_file():
            absent.append(file.name)
            vertex += [None] * number
            continue
        mask = open_npy(file)
        marks = mask.shape == (FSAVERAGE,) and mask.dtype.kind in "iufb"
        places = np.flatnonzero(mask).tolist() if marks else []
        if len(places) != number:
            raise UserError(
                f"{file} has shape {mask.shape}, type {mask.dtype} and marks {len(places)} vertices: "
                f"numbers of shape ({FSAVERAGE},) that mark the {number} vertices of the responses are expected"
            )
        vertex += places
    if absent:
        report(f"{subject}: no place on the cortical surface, {' and '.join(absent)} absent")
    return {"roi": regions(folder, vertices, subject, report), "vertex": vertex}


def regions(folder: Path, vertices: list[int], subject: str, report: Callable[[str], None]) -> list[list[str]]:
    """The hemisphere and the regions of each vertex."""
    roi: list[list[str]] = []
    absent = []
    for side, number in zip(HEMISPHERES, vertices, strict=True):
        names: list[list[str]] = [[side] for _ in range(number)]
        for mask in LABELS:
            file = folder / f"{side}.{mask}_challenge_space.npy"
            if not file.is_file():
                absent.append(file.name)
                continue
            numbers = open_npy(file)
            if numbers.shape != (number,) or numbers.dtype.kind not in "iuf":
                raise UserError(
                    f"{file} has shape {numbers.shape} and type {numbers.dtype}: {number} numbers are expected"
                )
            for place, name in enumerate(name_regions(mask, numbers)):
                if name:
                    names[place].append(name)
        roi += names
    if absent:
        report(f"{subject}: regions without {count(absent, 'mask')}")
    return roi


def processed(source: Path, asked: Sequence[str] | None, report: Callable[[str], None]) -> Source:
    folder = source
    if (source / "processed").is_dir():
        sizes = sorted(size for size in (source / "processed").iterdir() if size.is_dir())
        if len(sizes) != 1:
            raise UserError(
                f"{source / 'processed'} holds {count([size.name for size in sizes], 'size')}: give the folder of one"
            )
        folder = sizes[0]
    shards = {  # without what `Dataset.map` and others have cached beside them
        split: sorted(existing(file) for file in (folder / split).glob("*.arrow") if not CACHED.match(file.name))
        for split in PROCESSED_SPLITS
    }
    absent = [split for split, files in shards.items() if not files]
    if len(absent) == len(shards):
        raise UserError(f"{source} holds neither subj01 and so on nor processed/size-256/train: is this the folder?")
    for files in shards.values():
        said = {int(match[1]) for file in files if (match := re.search(r"-of-(\d+)\.arrow$", file.name))}
        if said and max(said) > len(files):
            absent.append(f"{max(said) - len(files)} of {max(said)} files of {files[0].parent.name}")
    if absent:
        report(f"absent: {' and '.join(absent)} in {folder}")

    # a first pass: who saw what, and which vertices a subject lacks
    rows: dict[str, list[tuple[str, str]]] = {}
    present: dict[str, np.ndarray] = {}
    places: dict[Path, list[tuple[str, int]]] = {}
    for split, files in shards.items():
        for file in files:
            places[file] = []
            for name, stimulus, response in read_shard(file, "activity"):
                if not response.is_valid:
                    raise UserError(f"{file} has a row of {name} without activity: only the split test has none")
                response = response.values.to_numpy(zero_copy_only=False)
                seen = present.setdefault(name, np.zeros(len(response), dtype=bool))
                if len(seen) != len(response):
                    raise UserError(
                        f"{file} has a row with {len(response)} vertices, {name} has {len(seen)} elsewhere: they must "
                        "be the same"
                    )
                seen |= response != 0
                trials = rows.setdefault(name, [])
                places[file].append((name, len(trials)))
                trials.append((stimulus, PROCESSED_SPLITS[split]))
    chosen = choose_subjects(list(rows), asked, f"row in {folder}")
    subjects = []
    for name in chosen:
        kept = np.flatnonzero(present[name])
        if len(kept) < len(present[name]):
            report(f"{name}: {len(present[name]) - len(kept)} of {len(present[name])} vertices have no data: removed")
        sides = np.repeat(HEMISPHERES, GROUP_VERTICES)
        subjects.append(
            Subject(
                name,
                stimuli=[stimulus for stimulus, _ in rows[name]],
                splits=[split for _, split in rows[name]],
                num_voxels=len(kept),
                parts=[
                    partial(read_activity, file, [trial if who == name else None for who, trial in placed], kept)
                    for file, placed in places.items()
                ],
                voxels={"roi": [[str(side)] for side in sides[kept]]} if len(present[name]) == len(sides) else {},
            )
        )
    return Source(subjects, [partial(read_pictures, file, set(chosen)) for file in places], UNIT)


def read_shard(file: Path, column: str) -> Iterator[tuple[str, str, pa.Scalar]]:
    """Subject, stimulus and one more column of each row of an Arrow file."""
    for number in itertools.count():
        with reading(file), pa.memory_map(str(file)) as source:  # anew, so that memory lets go of the batch before
            stream = pa.ipc.open_stream(source)
            check_columns(file, stream.schema)
            batch = next(itertools.islice(stream, number, None), None)
            if batch is None:
                return
            batch.validate(full=True)
            subjects, numbers = batch.column("subject").to_pylist(), batch.column("nsd_id").to_pylist()
            for name, image, value in zip(subjects, numbers, batch.column(column), strict=True):
                if name is None or image is None:
                    raise UserError(f"{file} has a row without subject or nsd_id: every row needs both")
                yield name, f"nsd-{image:05d}", value


def check_columns(file: Path, schema: pa.Schema) -> None:
    def is_list(kind: pa.DataType) -> bool:
        lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        return lists and pa.types.is_floating(kind.value_type)

    def is_image(kind: pa.DataType) -> bool:
        return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0

    expected = {
        "subject": (pa.types.is_string, "text"),
        "nsd_id": (pa.types.is_integer, "a whole number"),
        "image": (is_image, "an Image"),
        "activity": (is_list, "a list of floating-point numbers"),
    }
    for column, (fits, kind) in expected.items():
        if column not in schema.names:
            raise UserError(f"{file} has no column {column}: its columns are {', '.join(schema.names)}")
        if not fits(schema.field(column).type):
            raise UserError(f"{column} of {file} has the type {schema.field(column).type}: {kind} is expected")


def read_activity(file: Path, trials: list[int | None], kept: np.ndarray) -> Iterator[Block]:
    for trial, (_, _, response) in zip(trials, read_shard(file, "activity"), strict=True):
        if trial is not None:
            yield np.array([trial]), 0, response.values.to_numpy(zero_copy_only=False)[None, kept]


def read_pictures(file: Path, subjects: set[str]) -> Iterator[tuple[str, bytes]]:
    seen = set()
    for name, stimulus, image in read_shard(file, "image"):
        if name in subjects and stimulus not in seen:
            seen.add(stimulus)
            encoded = image["bytes"].as_py() if image.is_valid else None
            if encoded is None:
                raise UserError(
                    f"{file} has no pixels for {stimulus}: only images that lie in the file itself are read"
                )
            yield stimulus, encoded
