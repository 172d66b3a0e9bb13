"""`prepare bold5000`: responses of ten regions, one array each or all in one file a subject (Chang et al. 2019).

CSI1_imgnames.txt (CSI01_stim_lists.txt beside older files) names the image of each row. The prefix rep_ marks the 113
images that were shown repeatedly; it is no part of the image's name. A list without it, as in release 2.0, tells them
by naming them more than once. They are the test split.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from visionflow_hf.corpus.array_files import array_keys, read_arrays
from visionflow_hf.corpus.files import BLOCK_BYTES, existing, find_files, index_images, open_npy, plain_name, reading
from visionflow_hf.corpus.source import Block, Source, Subject, choose_subjects, image_parts, refuse_absent
from visionflow_hf.errors import UserError, count

REGIONS = [side + region for side in ("LH", "RH") for region in ("EarlyVis", "LOC", "OPA", "PPA", "RSC")]
ONE_REGION = re.compile(rf"(CSI[1-4])_(?:.*_)?({'|'.join(REGIONS)})\.(npy|mat)")
ALL_REGIONS = re.compile(r"(CSI[1-4])_ROIs_(TR\d+)\.(?:mat|h5)")
IMAGE_LIST = re.compile(r"CSI0?([1-4])_(?:imgnames|stim_lists)\.txt")


def read_bold5000(
    source: Path,
    subjects: Sequence[str] | None = None,
    images_folder: str | os.PathLike | None = None,
    report: Callable[[str], None] = print,
) -> Source:
    """The source in the folder with the regions' files and the lists of images; the repeated images are test.

    Args:
        subjects: names such as CSI1; all that are there without.
        images_folder: where the images lie; without, in Presented_Stimuli somewhere in `source`, or anywhere in it.

    Raises:
        UserError: the source does not have the expected form.
    """
    files = list(find_files(source))
    pictures = list(find_files(Path(images_folder))) if images_folder else files
    presented = [file for file in pictures if "Presented_Stimuli" in file.parts]
    images = index_images(presented or pictures)
    lists = {f"CSI{match[1]}": file for file in files if (match := IMAGE_LIST.fullmatch(file.name))}
    regions = find_regions(files, report)
    found = []
    for name in choose_subjects(list(regions), subjects, f"CSI1_..._LHPPA.npy or CSI1_ROIs_TR34.mat in {source}"):
        if name not in lists:
            report(f"{name}: left out, {name}_imgnames.txt is absent")
            continue
        subject = read_subject(name, lists[name], regions[name], images, report)
        if subject is not None:
            found.append(subject)
    refuse_absent(found, subjects, "CSI1_imgnames.txt, and images of the names in it,")
    repeated = {
        stimulus
        for subject in found
        for stimulus, split in zip(subject.stimuli, subject.splits, strict=True)
        if split == "test"
    }
    for subject in found:
        subject.splits = ["test" if stimulus in repeated else "train" for stimulus in subject.stimuli]
    return Source(found, image_parts(found, images), "as in the region files of BOLD5000")


@dataclass
class Region:
    """One region's responses, array of shape (trials, voxels): a .npy file, or `key` of a .mat or .h5 file."""

    file: Path
    key: str | None

    def open(self) -> np.ndarray:
        array = open_npy(self.file) if self.key is None else read_arrays(self.file, [self.key])[self.key]
        if array.ndim != 2 or array.dtype.kind != "f" or array.size == 0:
            raise UserError(
                f"{self.file} has shape {array.shape} and type {array.dtype}: floating-point numbers (trials, voxels) "
                "are expected"
            )
        return array


def find_regions(files: list[Path], report: Callable[[str], None]) -> dict[str, dict[str, Region]]:
    """The regions of each subject, those of .npy files first."""
    regions: dict[str, dict[str, Region]] = {}
    for suffix in (".npy", ".mat"):
        for file in files:
            match = ONE_REGION.fullmatch(file.name)
            if not match or file.suffix != suffix:
                continue
            there = regions.setdefault(match[1], {}).get(match[2])
            if there is None:
                key = None
                if suffix == ".mat":
                    keys = array_keys(file)
                    if len(keys) != 1:
                        raise UserError(f"{file} holds {count(keys, 'array')}: the responses alone are expected")
                    key = keys[0]
                regions[match[1]][match[2]] = Region(file, key)
            elif there.file.suffix == suffix:
                raise UserError(f"{there.file} and {file} are both {match[2]} of {match[1]}: remove one")
    tables: dict[str, dict[str, Path]] = {}
    for file in files:
        if (match := ALL_REGIONS.fullmatch(file.name)) and match[1] not in regions:
            tables.setdefault(match[1], {}).setdefault(match[2], file)  # CSI1_ROIs_TR34.h5 and .mat hold the same
    for subject, times in tables.items():
        time = "TR34" if "TR34" in times else next(iter(times))
        if len(times) > 1 and time != "TR34":
            raise UserError(f"{subject} has {', '.join(times)} and no TR34: leave the volumes to import alone")
        if len(times) > 1:
            report(f"{subject}: TR34, the mean of the third and fourth volume, of {', '.join(times)}")
        keys = array_keys(times[time])
        regions[subject] = {region: Region(times[time], region) for region in REGIONS if region in keys}
    return regions


def read_subject(
    name: str,
    image_list: Path,
    regions: dict[str, Region],
    images: dict[str, Path],
    report: Callable[[str], None],
) -> Subject | None:
    if not regions:
        report(f"{name}: left out, no region is there")
        return None
    absent = [region for region in REGIONS if region not in regions]
    if absent:
        report(f"{name}: without {count(absent, 'region')}")
    with reading(existing(image_list)):
        rows = [
            plain_name(row.strip(), image_list)
            for row in image_list.read_text(encoding="utf-8").split("\n")
            if row.strip()
        ]
    names = [Path(row.removeprefix("rep_")).stem for row in rows]
    repeated = {name for row, name in zip(rows, names, strict=True) if row.startswith("rep_")}
    if not repeated:
        repeated = {name for name, times in Counter(names).items() if times > 1}
    trials = np.array([row for row, image in enumerate(names) if image in images], dtype=np.int64)
    if len(trials) < len(rows):
        missing = sorted(set(names) - set(images))
        report(f"{name}: {len(rows) - len(trials)} of {len(rows)} trials left out, without {count(missing, 'image')}")
    if not len(trials):
        return None
    parts, roi = [], []
    for region in REGIONS:
        if region in regions:
            shape = regions[region].open().shape
            if shape[0] != len(rows):
                raise UserError(
                    f"{regions[region].file} has {shape[0]} rows, {image_list.name} names {len(rows)} images: one row "
                    "an image is expected"
                )
            parts.append(partial(read_region, regions[region], trials, len(roi)))
            roi += [[region[:2].lower(), region[2:]] for _ in range(shape[1])]
    return Subject(
        name,
        stimuli=[names[row] for row in trials],
        splits=["test" if names[row] in repeated else "train" for row in trials],
        num_voxels=len(roi),
        parts=parts,
        voxels={"roi": roi},
    )


def read_region(region: Region, trials: np.ndarray, first_voxel: int) -> Iterator[Block]:
    values = region.open()
    step = max(BLOCK_BYTES // (values.itemsize * values.shape[1]), 1)
    for start in range(0, len(trials), step):
        with reading(region.file):
            block = np.array(values[trials[start : start + step]])
        yield np.arange(start, start + len(block)), first_voxel, block
