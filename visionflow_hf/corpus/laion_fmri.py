"""`prepare laion-fmri`: LAION-fMRI, single-trial betas of GLMsingle at 7 T, as its bucket lays them out.

derivatives/glmsingle-tedana/sub-01/ses-01/func has the betas of a session, a volume a trial, in
*_desc-SingletrialBetas_statmap.nii.gz, and the image of each trial under `label` in *_desc-SingletrialBetas_trials.tsv.
derivatives/rois/sub-01 has a mask a region on the same grid. stimuli/task-images_stimuli.h5 has the encoded images in
the order of task-images_metadata.csv.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from visionflow_hf.corpus.files import existing, find_files, hdf5_dataset, open_hdf5, reading
from visionflow_hf.corpus.nifti import open_nifti, read_volume, read_volumes
from visionflow_hf.corpus.schema import Volume
from visionflow_hf.corpus.source import Block, Source, Subject, choose_subjects, refuse_absent
from visionflow_hf.corpus.zscore import zscored
from visionflow_hf.errors import UserError, count
from visionflow_hf.images import opened

TESTED = ("shared_", "ood_")  # how the names of the test images begin: all subjects saw them, or they are unlike train
GREY = 127.5  # of the screen, behind what is transparent


def read_laion_fmri(
    source: Path,
    subjects: Sequence[str] | None = None,
    zscore_sessions: bool = False,
    report: Callable[[str], None] = print,
) -> Source:
    """The source in the folder with derivatives and stimuli.

    The sessions that are there are used, and the voxels that lie in a region and have values; the images that all
    subjects saw are test. Coordinates are a voxel's place in the volume, from 0.

    Args:
        subjects: names such as sub-01; all that are there without.
        zscore_sessions: give each voxel mean 0 and standard deviation 1 within each session.

    Raises:
        UserError: the source does not have the expected form.
    """
    betas = source / "derivatives" / "glmsingle-tedana"
    stimuli = source / "stimuli" / "task-images_stimuli.h5"
    names = read_table(source / "stimuli" / "task-images_metadata.csv", ["image_name"], ",")["image_name"].tolist()
    rows = {name: row for row, name in enumerate(names)}
    if len(rows) < len(names):
        raise UserError("image_name of task-images_metadata.csv names an image twice: one row an image is expected")
    with open_hdf5(stimuli) as file:
        images = hdf5_dataset(file, "images")
        encoded = h5py.check_vlen_dtype(images.dtype) == np.uint8 or h5py.check_string_dtype(images.dtype)
        if images.shape != (len(names),) or not encoded:
            raise UserError(
                f"images of {stimuli} has shape {images.shape} and type {images.dtype}: an encoded image for each of "
                f"the {len(names)} rows of task-images_metadata.csv is expected"
            )
    found = []
    for name in choose_subjects([folder.name for folder in betas.glob("sub-*")], subjects, betas / "sub-01"):
        subject = read_subject(source, name, rows, zscore_sessions, report)
        if subject is not None:
            found.append(subject)
    refuse_absent(found, subjects, f"{betas}/sub-01/ses-01/func/{beta_file('sub-01', 'ses-01')} and so on")
    seen = {stem(name): row for name, row in rows.items()}
    seen = sorted((seen[stimulus], stimulus) for stimulus in {name for one in found for name in one.stimuli})
    return Source(
        found,
        [partial(read_pictures, stimuli, seen[start : start + 100]) for start in range(0, len(seen), 100)],
        "standard deviation of the voxel within the session" if zscore_sessions else "single-trial beta of GLMsingle",
    )


def beta_file(subject: str, session: str) -> str:
    return f"{subject}_{session}_task-images_space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz"


def stem(label: str) -> str:
    return re.sub(r"\.(jpe?g|png)$", "", label)


def read_table(file: Path, columns: list[str], separator: str) -> pd.DataFrame:
    with reading(existing(file)):
        table = pd.read_csv(file, sep=separator)
    absent = [column for column in columns if column not in table]
    if absent:
        raise UserError(f"{file} has no {' and '.join(absent)}: its columns are {', '.join(map(str, table.columns))}")
    return table


def read_subject(
    source: Path, name: str, images: dict[str, int], zscore: bool, report: Callable[[str], None]
) -> Subject | None:
    folder = source / "derivatives" / "glmsingle-tedana" / name
    files, labels = [], []
    for session in sorted(folder.glob("ses-*")):
        file = session / "func" / beta_file(name, session.name)
        table = session / "func" / f"{name}_{session.name}_task-images_desc-SingletrialBetas_trials.tsv"
        if not (file.is_file() and table.is_file()):
            report(f"{name}: {session.name} left out, without {table.name if file.is_file() else file.name}")
            continue
        files.append(file)
        labels.append(read_labels(table))
    if not files:
        report(f"{name}: left out, no session in {folder}")
        return None
    grid = open_nifti(files[0]).shape[:3]
    for file, shown in zip(files, labels, strict=True):
        image = open_nifti(file)
        if image.shape != (*grid, len(shown)) or image.get_data_dtype().kind not in "iuf":
            raise UserError(
                f"{file} has shape {image.shape} and type {image.get_data_dtype()}: numbers {(*grid, len(shown))}, "
                "a volume for each row of its trials.tsv, are expected"
            )
    report(f"{name}: {count([file.parent.parent.name for file in files], 'session')}")
    regions = read_regions(source / "derivatives" / "rois" / name, name, grid)
    if not regions:
        report(f"{name}: left out, no {name}_space-T1w_res-1pt8_label-V1v_mask.nii.gz and so on in derivatives/rois")
        return None
    inside = np.any(list(regions.values()), axis=0)
    values = inside & np.all([with_values(file) for file in files], axis=0)
    if values.sum() < inside.sum():
        report(f"{name}: {inside.sum() - values.sum()} of {inside.sum()} voxels lack values in some session: removed")
    voxels = np.argwhere(values)
    trials = np.array([label in images for shown in labels for label in shown])
    if not trials.all():
        absent = sorted({label for shown in labels for label in shown} - set(images))
        report(f"{name}: {(~trials).sum()} of {len(trials)} trials left out, without {count(absent, 'image')}")
    if not trials.any():
        return None
    places = np.split(np.where(trials, np.cumsum(trials) - 1, -1), np.cumsum([len(shown) for shown in labels])[:-1])
    viewed = [label for shown in labels for label in shown if label in images]
    sessions = [file.parent.parent.name for file, shown in zip(files, labels, strict=True) for _ in shown]
    return Subject(
        name,
        stimuli=[stem(label) for label in viewed],
        splits=["test" if label.lower().startswith(TESTED) else "train" for label in viewed],
        num_voxels=len(voxels),
        parts=[partial(read_session, file, voxels, some, zscore) for file, some in zip(files, places, strict=True)],
        voxels={
            "roi": [[region for region, mask in regions.items() if mask[tuple(voxel)]] for voxel in voxels],
            **dict(zip("xyz", voxels.T, strict=True)),
            "volume": Volume(grid, open_nifti(files[0]).affine, np.flatnonzero(values)),
        },
        sessions=[session for session, kept in zip(sessions, trials, strict=True) if kept],
    )


def read_labels(file: Path) -> list[str]:
    """The image of each volume of the session's betas."""
    table = read_table(file, ["beta_index", "label"], "\t")
    if sorted(table["beta_index"]) != list(range(len(table))):
        raise UserError(f"beta_index of {file} must count the {len(table)} trials from 0: is the file whole?")
    return table.sort_values("beta_index")["label"].astype(str).tolist()


def read_regions(folder: Path, subject: str, grid: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The mask of each region, bool arrays of shape (x, y, z)."""
    regions: dict[str, np.ndarray] = {}
    for file in find_files(folder):
        match = re.fullmatch(rf"{subject}_space-T1w_res-1pt8_label-(.+)_mask\.nii\.gz", file.name)
        if not match:
            continue
        volume = read_volume(file)
        if volume.shape != grid:
            raise UserError(f"{file} has shape {volume.shape}, the betas have {grid}: they must be the same")
        regions[match[1]] = volume > 0
    return regions


def with_values(file: Path) -> np.ndarray:
    """Which voxels have a number in the first trial: GLMsingle leaves a voxel out for all trials of a session."""
    _, block = next(read_volumes(file))
    return np.isfinite(block[0].T)


def read_session(file: Path, voxels: np.ndarray, trials: np.ndarray, zscore: bool) -> Iterator[Block]:
    """The responses of one session.

    Args:
        voxels: their places in the volume, array of shape (voxels, 3).
        trials: the trial of each volume, -1 for those that are not imported.
    """
    header = open_nifti(file).dataobj
    values = np.empty((len(trials), len(voxels)), dtype=np.float32)
    x, y, z = voxels.T
    for start, block in read_volumes(file):
        values[start : start + len(block)] = block[:, z, y, x] * header.slope + header.inter
    if zscore:
        values = zscored(values)
    kept = trials >= 0
    yield trials[kept], 0, values[kept]


def read_pictures(file: Path, images: list[tuple[int, str]]) -> Iterator[tuple[str, np.ndarray | bytes]]:
    with open_hdf5(file) as source:
        encoded = hdf5_dataset(source, "images")
        for row, stimulus in images:
            yield stimulus, as_shown(bytes(encoded[row]), f"the image {stimulus}")


def as_shown(image: bytes, name: str) -> np.ndarray | bytes:
    """The image as it is, or over the grey of the screen where it is transparent."""
    with opened(image, name) as picture:
        if not picture.has_transparency_data:
            return image
        pixels = np.asarray(picture.convert("RGBA"), dtype=np.float64)
    alpha = pixels[..., 3:] / 255
    return np.rint(alpha * pixels[..., :3] + (1 - alpha) * GREY).astype(np.uint8)
