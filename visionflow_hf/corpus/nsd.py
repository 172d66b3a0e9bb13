"""`prepare nsd`: the Natural Scenes Dataset as its bucket lays it out, visual cortex at 1.8 mm.

Trial t of session s (both from 1) shows the image

    subjectim[subject, masterordering[(s - 1) * 750 + t]]      counted from 1, in imgBrick

where masterordering is the place in the subject's row, again from 1. Responses are int16, 300 a percent of signal
change, in the voxels of nsdgeneral. After Allen et al. 2022 and the data manual.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from visionflow_hf.corpus.array_files import read_arrays
from visionflow_hf.corpus.files import blocks, hdf5_dataset, open_hdf5
from visionflow_hf.corpus.nifti import open_nifti, read_volume, read_volumes
from visionflow_hf.corpus.nsd_labels import LABELS, name_regions
from visionflow_hf.corpus.schema import Volume
from visionflow_hf.corpus.source import Block, Source, Subject, choose_subjects, refuse_absent
from visionflow_hf.corpus.zscore import zscored
from visionflow_hf.errors import UserError, count

BETAS = Path("func1pt8mm") / "betas_fithrf_GLMdenoise_RR"
TRIALS = {30000: 750}  # of a session, by the length of masterordering
SCALE = 300  # a percent


def read_nsd(
    source: Path,
    subjects: Sequence[str] | None = None,
    zscore_sessions: bool = False,
    report: Callable[[str], None] = print,
) -> Source:
    """The source in the folder with nsddata, nsddata_betas and nsddata_stimuli.

    The sessions that are there are used; the images that all subjects saw are test. Coordinates are a voxel's place in
    the volume, from 0.

    Args:
        subjects: names such as subj01; all that are there without.
        zscore_sessions: give each voxel mean 0 and standard deviation 1 within each session.

    Raises:
        UserError: the source does not have the expected form.
    """
    betas = source / "nsddata_betas" / "ppdata"
    names = [folder.name for folder in betas.glob("subj0[1-8]")]
    brick = source / "nsddata_stimuli" / "stimuli" / "nsd" / "nsd_stimuli.hdf5"
    with open_hdf5(brick) as file:
        images = hdf5_dataset(file, "imgBrick")
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise UserError(
                f"imgBrick of {brick} has shape {images.shape} and type {images.dtype}: "
                "uint8 (images, height, width, 3) is expected"
            )
        num_images = len(images)
    design = read_design(source / "nsddata" / "experiments" / "nsd" / "nsd_expdesign.mat", num_images)
    found = []
    for name in choose_subjects(names, subjects, betas / "subj01"):
        subject = read_subject(source, name, design, zscore_sessions, report)
        if subject is not None:
            found.append(subject)
    refuse_absent(found, subjects, f"{betas}/subj01/{BETAS}/betas_session01.hdf5 and so on")
    seen = sorted({int(stimulus[4:]) for subject in found for stimulus in subject.stimuli})
    return Source(
        found,
        [partial(read_pictures, brick, seen[start : start + 100]) for start in range(0, len(seen), 100)],
        "standard deviation of the voxel within the session" if zscore_sessions else "percent signal change",
    )


def read_design(file: Path, num_images: int) -> dict[str, np.ndarray]:
    """masterordering (trials,), subjectim (subjects, images) and sharedix (images,), all still counted from 1."""
    design = read_arrays(file, ["masterordering", "subjectim", "sharedix"])
    if any(array.dtype.kind not in "iuf" for array in design.values()) or design["subjectim"].ndim != 2:
        raise UserError(f"masterordering, subjectim and sharedix of {file} must be tables of numbers: is it whole?")
    design["masterordering"], design["sharedix"] = design["masterordering"].ravel(), design["sharedix"].ravel()
    for key, most in (
        ("masterordering", design["subjectim"].shape[1]),
        ("subjectim", num_images),
        ("sharedix", num_images),
    ):
        low, high = design[key].min(initial=1), design[key].max(initial=1)
        if not (low >= 1 and high <= most and np.array_equal(design[key], np.trunc(design[key]))):
            raise UserError(
                f"{key} of {file} runs from {low:g} to {high:g}: whole numbers from 1 to {most} are expected"
            )
        design[key] = design[key].astype(np.int64)
    return design


def read_subject(
    source: Path, name: str, design: dict[str, np.ndarray], zscore: bool, report: Callable[[str], None]
) -> Subject | None:
    number = int(name[-2:])
    if number > len(design["subjectim"]):
        raise UserError(
            f"subjectim of nsd_expdesign.mat has {len(design['subjectim'])} rows: there is none of {name}, so leave "
            "it out of --subjects"
        )
    folder = source / "nsddata_betas" / "ppdata" / name / BETAS
    sessions = {}
    for file in sorted(folder.glob("betas_session*")):
        match = re.fullmatch(r"betas_session(\d\d)\.(hdf5|nii\.gz|nii)", file.name)
        if match:
            sessions.setdefault(int(match[1]), file)  # .hdf5 comes before .nii.gz, which holds the same values
    if not sessions:
        report(f"{name}: left out, no session in {folder}")
        return None
    absent = [session for session in range(1, max(sessions) + 1) if session not in sessions]
    report(f"{name}: {count(list(sessions), 'session')}" + (f", without {count(absent, 'session')}" if absent else ""))

    regions = source / "nsddata" / "ppdata" / name / "func1pt8mm" / "roi"
    if not (regions / "nsdgeneral.nii.gz").is_file():
        report(f"{name}: left out, no nsdgeneral.nii.gz in {regions}")
        return None
    mask = read_volume(regions / "nsdgeneral.nii.gz") > 0
    if not mask.any():
        raise UserError(f"{regions / 'nsdgeneral.nii.gz'} has no voxel above 0: is it whole?")
    voxels = np.argwhere(mask)
    ordering = design["masterordering"]
    length = TRIALS.get(len(ordering)) or session_shape(next(iter(sessions.values())))[3]
    for session, file in sessions.items():
        if session_shape(file) != (*mask.shape, length):
            raise UserError(
                f"{file} has shape {session_shape(file)}: {(*mask.shape, length)} (x, y, z, trials) is expected"
            )
        if not 1 <= session * length <= len(ordering):
            raise UserError(f"{file} is beyond the {len(ordering)} trials of masterordering: are both of one release?")
    places = np.concatenate([np.arange((session - 1) * length, session * length) for session in sessions])
    shown = design["subjectim"][number - 1, ordering[places] - 1]
    numbers = np.repeat([f"{session:02d}" for session in sessions], length)
    shared = set(design["sharedix"].tolist())
    ceiling = folder / "ncsnr.nii.gz"
    if not ceiling.is_file():
        report(f"{name}: {ceiling.name} is absent, noise ceilings come from repeats")
    return Subject(
        name,
        stimuli=[f"nsd-{image - 1:05d}" for image in shown],
        splits=["test" if image in shared else "train" for image in shown.tolist()],
        num_voxels=len(voxels),
        parts=[
            partial(read_session, file, voxels, order * length, length, zscore)
            for order, file in enumerate(sessions.values())
        ],
        voxels={
            "roi": name_voxels(regions, mask, name, report),
            **dict(zip("xyz", voxels.T, strict=True)),
            "volume": Volume(mask.shape, open_nifti(regions / "nsdgeneral.nii.gz").affine, np.flatnonzero(mask)),
        },
        ncsnr=masked(ceiling, mask).astype(np.float64) if ceiling.is_file() else None,
        sessions=numbers.tolist(),
    )


def name_voxels(folder: Path, mask: np.ndarray, subject: str, report: Callable[[str], None]) -> list[list[str]]:
    """The hemisphere and the regions of each voxel, as far as their masks are there."""
    roi: list[list[str]] = [[] for _ in range(mask.sum())]
    absent = []
    for side in ("lh", "rh"):
        file = folder / f"{side}.nsdgeneral.nii.gz"
        if not file.is_file():
            absent.append(file.name)
            continue
        for place in np.flatnonzero(masked(file, mask) > 0):
            roi[place].append(side)
    for label in LABELS:
        file = folder / f"{label}.nii.gz"
        if not file.is_file():
            absent.append(file.name)
            continue
        for names, region in zip(roi, name_regions(label, masked(file, mask)), strict=True):
            if region:
                names.append(region)
    if absent:
        report(f"{subject}: regions without {count(absent, 'mask')}")
    return roi


def masked(file: Path, mask: np.ndarray) -> np.ndarray:
    volume = read_volume(file)
    if volume.shape != mask.shape:
        raise UserError(f"{file} has shape {volume.shape}, nsdgeneral.nii.gz has {mask.shape}: they must be the same")
    return volume[mask]


def session_shape(file: Path) -> tuple[int, ...]:
    """(x, y, z, trials) of a session, which must be plain int16."""
    if file.suffix == ".hdf5":
        with open_hdf5(file) as source:
            dataset = hdf5_dataset(source, "betas")
            shape, kind = dataset.shape[::-1], dataset.dtype  # MATLAB wrote it: h5py sees the axes reversed
    else:
        image = open_nifti(file)
        shape, kind = image.shape, image.get_data_dtype()
        if image.dataobj.slope != 1 or image.dataobj.inter != 0:
            raise UserError(f"{file} is scaled by its header: plain int16 is expected, {SCALE} a percent")
    if len(shape) != 4 or kind.newbyteorder("=") != np.int16:
        raise UserError(f"{file} has shape {shape} and type {kind}: int16 (x, y, z, trials) is expected")
    return tuple(shape)


def read_session(file: Path, voxels: np.ndarray, first_trial: int, trials: int, zscore: bool) -> Iterator[Block]:
    """The responses of one session in percent signal change, or z-scored.

    Args:
        voxels: their places in the volume, array of shape (voxels, 3).
    """
    values = np.empty((trials, len(voxels)), dtype=np.float32)
    for (some, *slab), block in read_hdf5(file, voxels) if file.suffix == ".hdf5" else read_nifti(file):
        inside = np.ones(len(voxels), dtype=bool)
        for axis, span in zip(voxels.T[::-1], slab, strict=True):
            inside &= (span.start <= axis) & (axis < span.stop)
        z, y, x = (axis[inside] - span.start for axis, span in zip(voxels.T[::-1], slab, strict=True))
        values[some, inside] = block[:, z, y, x]
    values /= SCALE
    if zscore:
        values = zscored(values)
    yield np.arange(first_trial, first_trial + trials), 0, values


def read_hdf5(file: Path, voxels: np.ndarray) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    """Blocks (trials, z, y, x) that hold a voxel, and where they lie."""
    low, high = voxels.min(0)[::-1], voxels.max(0)[::-1]
    with open_hdf5(file) as source:
        betas = hdf5_dataset(source, "betas")
        for place in blocks(betas):
            if all(
                span.start <= last and first < span.stop for span, first, last in zip(place[1:], low, high, strict=True)
            ):
                yield place, betas[place]


def read_nifti(file: Path) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    """The same of a NIfTI file."""
    for start, block in read_volumes(file):
        yield (slice(start, start + len(block)), *(slice(0, length) for length in block.shape[1:])), block


def read_pictures(file: Path, images: list[int]) -> Iterator[tuple[str, np.ndarray]]:
    with open_hdf5(file) as source:
        brick = hdf5_dataset(source, "imgBrick")
        for image in images:
            yield f"nsd-{image:05d}", brick[image]
