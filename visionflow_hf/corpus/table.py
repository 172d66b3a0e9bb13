"""`prepare table`: a lab's own files, by a table with one row a trial, a folder of images and files of betas.

The betas are one file, or one for each subject, session and so on, named by a pattern such as
`betas/{subject}_{session}_betas.nii.gz`. The trials of a file are the table's rows for it, in the table's order.
A folder in the place of the table is one of BIDS derivatives, see `visionflow_hf.corpus.bids`.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from visionflow_hf.corpus.betas import Betas, open_betas
from visionflow_hf.corpus.bids import BETAS, read_bids
from visionflow_hf.corpus.files import reading
from visionflow_hf.corpus.schema import SPLITS, Volume
from visionflow_hf.corpus.source import Source, Subject, image_parts
from visionflow_hf.corpus.texts import fill, read_texts, texts_of
from visionflow_hf.corpus.voxels import (
    Space,
    coordinates,
    in_order_of_matlab,
    read_ceiling,
    read_mask,
    read_regions,
    read_space,
    region_name,
)
from visionflow_hf.corpus.zscore import Piece, read_pieces, together, varying
from visionflow_hf.errors import UserError, count
from visionflow_hf.images import SUFFIXES

OPTIONAL = ("session", "run", "stimulus_id", "repeat", "split", "category")  # columns that a table need not have


@dataclass
class VoxelFiles:
    """Files about the voxels of a subject; `regions` are the names of `rois` that are masks."""

    mask: Path | None
    rois: list[Path]
    regions: list[str]
    noise_ceiling: Path | None


def read_table(
    source: Path,
    images_folder: str | os.PathLike,
    betas: Sequence[str] = (),
    betas_key: str | None = None,
    mask: str | None = None,
    rois: Sequence[str] = (),
    noise_ceiling: str | None = None,
    subject: str | None = None,
    columns: dict[str, str] | None = None,
    zscore: str | None = None,
    report: Callable[[str], None] = print,
) -> Source:
    """The source that a table of trials, or a folder of BIDS derivatives, describes.

    Args:
        source: .tsv, .csv or .parquet, or the folder.
        images_folder: where the images lie that the table names by their path in it, with or without their ending.
        betas: files or patterns; the rows for several files together are the trials of one after the other.
        betas_key: name of the array in .npz, .h5 and .mat files that hold several.
        mask: NIfTI file or pattern; its voxels above 0 are imported. Without, the voxels of volumes that are
            finite and not constant in the subject's trials, and all voxels of arrays (trials, voxels).
        rois: a NIfTI file of labels and a table of their `index` and `name`, or a mask a region.
        noise_ceiling: NIfTI file, or .npy of shape (voxels,), of the share of a trial's variance.
        subject: name of the one subject.
        columns: the table's own names for `image`, `subject` and `OPTIONAL`.
        zscore: `session` or `run`, to give each voxel mean 0 and standard deviation 1 within each.

    Raises:
        UserError: table, images, betas and volumes do not fit one another.
    """
    if source.is_dir():
        if betas:
            raise UserError(f"{source} is a folder, whose betas are found by their names: leave out --betas")
        table, files = read_bids(source)
    elif betas:
        table = read_texts(source)
    else:
        raise UserError(f"--betas is needed: it names the files of the responses to the trials of {source}")
    trials = take_columns(table, source, subject, columns or {})
    names = table.assign(**{column: trials[column] for column in trials if column not in table})
    if betas:
        files = list(zip(*(fill(pattern, names, source) for pattern in betas), strict=True))
    opened = place_trials(trials, files, betas_key, source)
    folder = Path(images_folder)
    images = find_images(folder, sorted(set(trials["image"]) - {""}), source)
    trials = with_images(trials, images, folder, source, report)
    number_trials(trials, zscore, source)
    shown = {stimulus: images[name] for stimulus, name in zip(trials["stimulus_id"], trials["image"], strict=True)}
    subjects = []
    for name, rows in trials.groupby("subject"):
        own = partial(own_file, name=name, table=names.loc[rows.index], source=source)
        about = VoxelFiles(
            None if mask is None else own(mask, "--mask"),
            [own(pattern, "--rois") for pattern in rois],
            [region_name(pattern) for pattern in rois],
            None if noise_ceiling is None else own(noise_ceiling, "--noise-ceiling"),
        )
        subjects.append(read_subject(name, rows, opened, about, zscore is not None, report))
    unit = f"as in {Path(betas[0]).name if betas else BETAS}"
    if zscore:
        unit = f"standard deviation of the voxel within the {zscore}"
    categories = None
    if "category" in trials:
        categories = categories_of(trials, source, "category" in (columns or {}), report)
    return Source(subjects, image_parts(subjects, shown), unit, categories)


def categories_of(
    trials: pd.DataFrame, source: Path, asked: bool, report: Callable[[str], None]
) -> dict[str, str] | None:
    """The category of each stimulus; None, with a word, where the column was not asked for and does not tell it.

    Raises:
        UserError: the column was asked for, and a trial has none, or a stimulus has several.
    """
    try:
        found: dict[str, str] = {}
        for stimulus, category in zip(trials["stimulus_id"], texts_of(trials, "category", source), strict=True):
            other = found.setdefault(stimulus, category)
            if other != category:
                raise UserError(
                    f"stimulus {stimulus} of {source} has the categories {other} and {category}: one is expected"
                )
    except UserError as error:
        if asked:
            raise
        report(f"categories are left out: {error}")
        return None
    return found


def take_columns(table: pd.DataFrame, source: Path, subject: str | None, columns: dict[str, str]) -> pd.DataFrame:
    """The columns that mean something here, under the names that they have here."""
    trials = pd.DataFrame(index=table.index)
    for meaning in ("image", "subject", *OPTIONAL):
        column = columns.get(meaning, meaning)
        if meaning == "subject" and subject is not None:
            several = sorted(set(table[column]) - {""}) if column in table else []
            if len(several) > 1:
                raise UserError(
                    f"{source} has the subjects {', '.join(several[:10])}: --subject names the only one, so leave it "
                    "out"
                )
            trials[meaning] = subject
        elif column in table:
            if meaning in ("subject", "split", "repeat"):
                texts_of(table if meaning == "subject" else table[trials["image"] != ""], column, source)
            trials[meaning] = table[column]
        elif meaning not in OPTIONAL or meaning in columns:
            remedy = f"name it with --{meaning.removesuffix('_id')}-column"
            if meaning == "subject":
                remedy += ", or the one subject with --subject"
            raise UserError(f"{source} has no column {column}: its columns are {', '.join(table.columns)}; {remedy}")
    shown = trials[trials["image"] != ""]  # the others are left out
    if "split" in trials:
        others = sorted(set(shown["split"]) - set(SPLITS))
        if others:
            raise UserError(f"split of {source} has {count(others, 'other value')}: {', '.join(SPLITS)} are expected")
    if "repeat" in trials and not shown["repeat"].str.fullmatch(r"\d{1,9}").all():
        raise UserError(f"repeat of {source} has other values than numbers from 0 or 1 on: number the repeats")
    return trials


def place_trials(trials: pd.DataFrame, files: list[tuple[str, ...]], key: str | None, source: Path) -> list[Betas]:
    """Add the columns `file`, a number, and `place`, that of the trial in it; return the files."""
    rows: dict[tuple[str, ...], list[int]] = {}
    for row, names in enumerate(files):
        rows.setdefault(names, []).append(row)
    opened: dict[str, Betas] = {}
    placed = np.empty((2, len(trials)), dtype=np.int64)
    for names, chosen in rows.items():
        several = []
        for name in names:
            if name in opened:
                raise UserError(f"--betas names {name} twice for different trials: each file has trials of its own")
            if not os.path.isfile(name):
                raise UserError(
                    f"there is no file {name}, which has the betas of {len(chosen)} rows of {source}: check --betas"
                )
            opened[name] = open_betas(Path(name), key)
            several.append(opened[name])
        refuse_order_of_letters(names)
        refuse_other_number(several, len(chosen), source)
        numbers = range(len(opened) - len(several), len(opened))
        lengths = [betas.trials for betas in several]
        placed[0, chosen] = np.repeat(numbers, lengths)
        placed[1, chosen] = np.concatenate([np.arange(length) for length in lengths])
    trials["file"], trials["place"] = placed
    return list(opened.values())


def refuse_order_of_letters(names: Sequence[str]) -> None:
    """Raise `UserError` for run-1, run-10, run-2: the order that a shell gives to `run-*`, seldom that of a table."""
    if list(names) != sorted(names) or any(re.search(r"\d\.\d", name) for name in names):
        return

    def by_number(name: str) -> list[str | int]:
        return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", name))]

    for name, expected in zip(names, sorted(names, key=by_number), strict=True):
        if name != expected:
            raise UserError(
                f"--betas has {name} where {expected} is expected by number: name the files in the order of the rows, "
                "or write a pattern such as run-{run}.npy, which names the column of each row's file"
            )


def refuse_other_number(several: list[Betas], rows: int, source: Path) -> None:
    if sum(betas.trials for betas in several) == rows:
        return
    first = several[0]
    if len(several) == 1 and first.grid == (rows,):
        raise UserError(
            f"{first.file} has shape {(first.trials, rows)}, and {source} has {rows} rows for it: the first axis must "
            "count trials, and the last one does, so transpose the array"
        )
    found = ", ".join(f"{betas.file} has {betas.trials}" for betas in several[:10])
    more = f" and so on, {sum(betas.trials for betas in several)} in all" if len(several) > 10 else ""
    raise UserError(
        f"the number of trials differs: {found}{more}, and {source} has {rows} rows for "
        f"{'it' if len(several) == 1 else 'them'}; one row a trial is expected, in the same order"
    )


def find_images(folder: Path, names: Sequence[str], source: Path) -> dict[str, Path]:
    """The file of each name that is a path within the folder, its ending left out or not; absent ones are left out."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: --images-folder says where the images lie")
    endings: dict[str, list[Path]] = {}
    with reading(folder):
        for file in sorted(folder.rglob("*")):
            if file.suffix.lower() in SUFFIXES:
                endings.setdefault(file.relative_to(folder).with_suffix("").as_posix(), []).append(file)
    images = {}
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            raise UserError(f"{source} names the image {name!r}: a path within {folder} is expected")
        files = [folder / path] if os.path.isfile(folder / path) else endings.get(str(path), [])
        if len(files) > 1:
            raise UserError(f"{source} names the image {name}, which may be {count(files, 'file')}: add the ending")
        for file in files:
            if not os.path.isfile(file):
                continue
            if not file.resolve().is_relative_to(folder.resolve()):
                raise UserError(
                    f"{file} is a link to a file outside {folder}: put the image itself there (of a "
                    "DataLad data set by `datalad unlock`)"
                )
            images[name] = file
    return images


def with_images(
    trials: pd.DataFrame, images: dict[str, Path], folder: Path, source: Path, report: Callable[[str], None]
) -> pd.DataFrame:
    """The trials that have an image, and the name of their stimulus in `stimulus_id`: one name for one image."""
    there = trials["image"].isin(list(images))
    if not there.any():
        raise UserError(
            f"{folder} has none of the {trials['image'].nunique()} images of {source}: is this the right folder?"
        )
    if not there.all():
        missing = sorted(set(trials["image"]) - {"", *images})
        blank = int((trials["image"] == "").sum())
        report(
            f"{(~there).sum()} of {len(there)} trials left out: {blank} that name no image, and those of "
            f"{count(missing, 'image')} not in {folder}"
        )
    trials = trials[there].copy()
    if "stimulus_id" not in trials:
        trials["stimulus_id"] = [images[name].relative_to(folder).as_posix() for name in trials["image"]]
    shown: dict[str, Path] = {}
    for stimulus, name in zip(texts_of(trials, "stimulus_id", source), trials["image"], strict=True):
        other = shown.setdefault(stimulus, images[name])
        if other != images[name]:
            raise UserError(
                f"stimulus {stimulus} of {source} has several images, {other} and {images[name]}: one is expected"
            )
    return trials


def number_trials(trials: pd.DataFrame, zscore: str | None, source: Path) -> None:
    """Add `trial`, the number among the trials of the subject, and `group`, the trials to z-score together.

    Where the table numbers the repeats, the trials of a stimulus are in the order of these numbers.
    """
    if zscore and zscore not in trials:
        raise UserError(f"--zscore-{zscore}s needs the {zscore} of each trial: name it with --{zscore}-column")
    if "repeat" in trials:
        trials["repeat"] = trials["repeat"].astype(np.int64)
        twice = trials[trials.duplicated(["subject", "stimulus_id", "repeat"])]
        if len(twice):
            one = twice.iloc[0]
            raise UserError(
                f"{source} has repeat {one['repeat']} of {one['stimulus_id']} twice for {one['subject']}: number each "
                "trial of a stimulus, or rename the column, and repeats are numbered by the order of the trials"
            )
    trials["trial"] = trials.groupby("subject").cumcount()
    if "repeat" in trials:
        same = ["subject", "stimulus_id"]
        ordered = trials.sort_values([*same, "repeat"]).index
        trials.loc[ordered, "trial"] = trials.sort_values([*same, "trial"])["trial"].to_numpy()
    if zscore is None:
        trials["group"] = trials["file"]
        return
    texts_of(trials, zscore, source)
    if zscore == "run" and "session" not in trials:
        for (subject, run), rows in trials.groupby(["subject", "run"]).groups.items():
            inside = trials.loc[rows[0] : rows[-1]]
            if len(inside[inside["subject"] == subject]) > len(rows):
                raise UserError(
                    f"run {run} of {subject} is interrupted by other runs in {source}: if runs start again in each "
                    "session, name the session with --session-column; else give it a column with one value"
                )
    within = ["subject", *(column for column in ("session", "run") if column in trials)]
    within = within[: within.index(zscore) + 1]
    trials["group"] = trials.groupby(within).ngroup()
    alone = trials[trials.groupby("group")["group"].transform("size") == 1]
    if len(alone):
        raise UserError(
            f"{' '.join(alone.iloc[0][within])} has one trial, which cannot be z-scored: leave out --zscore-{zscore}s"
        )


def own_file(pattern: str, flag: str, *, name: str, table: pd.DataFrame, source: Path) -> Path:
    """The one file of a subject that a pattern names."""
    files = sorted(set(fill(pattern, table, source)))
    if len(files) > 1:
        raise UserError(f"{flag} {pattern} names {count(files, 'file')} for {name}: one a subject is expected")
    if not os.path.isfile(files[0]):
        raise UserError(f"there is no file {files[0]}, which {flag} names for {name}")
    return Path(files[0])


def read_subject(
    name: str, rows: pd.DataFrame, opened: list[Betas], files: VoxelFiles, zscore: bool, report: Callable[[str], None]
) -> Subject:
    pieces = [
        Piece(opened[number], part["place"].to_numpy(), part["trial"].to_numpy(), part["group"].to_numpy())
        for number, part in rows.groupby("file")
    ]
    first = pieces[0].betas
    space = Space(first.file, first.grid, first.affine)
    for piece in pieces[1:]:
        space.check(piece.betas.file, piece.betas.grid, piece.betas.affine)
    voxels = places = None  # of the voxels in the file's grid, and in the volume of the brain
    if len(first.grid) == 3:
        if files.mask is None:
            voxels = places = varying(pieces)
            report(f"{name}: {len(voxels)} of {np.prod(first.grid)} voxels are finite and not constant, no others kept")
        else:
            voxels = places = read_mask(files.mask, space)
            space = read_space(files.mask)
    elif files.mask is not None:
        space = read_space(files.mask)
        places = read_mask(files.mask, space)
        if len(places) != first.grid[0]:
            raise UserError(
                f"{files.mask} has {len(places)} voxels above 0, {first.file} has {first.grid[0]}: they must be "
                "the same voxels, in the order of numpy's betas[mask] or, in a .mat file, of MATLAB's betas(mask)"
            )
        if first.file.suffix.lower() == ".mat":
            places = in_order_of_matlab(places, space.shape)
    num_voxels = first.grid[0] if voxels is None else len(voxels)
    if files.rois and places is None:
        raise UserError(f"--rois needs --mask, which says where the voxels of {first.file} lie")
    columns: dict = {}
    if places is not None:
        columns = coordinates(space, places) | {"volume": Volume(space.shape, space.affine, places)}
    if files.rois:
        columns["roi"] = read_regions(files.rois, files.regions, space, places, report)
    ncsnr = None
    if files.noise_ceiling is not None:
        ncsnr = read_ceiling(files.noise_ceiling, None if places is None else space, places, num_voxels, report)
    stimuli, splits, sessions = (
        None if column not in rows else rows.sort_values("trial")[column].tolist()
        for column in ("stimulus_id", "split", "session")
    )
    if sessions is not None and "" in sessions:
        sessions = None  # not known of all trials
    return Subject(
        name,
        stimuli,
        splits,
        num_voxels,
        parts=[partial(read_pieces, some, voxels, zscore) for some in together(pieces)],
        voxels=columns,
        ncsnr=ncsnr,
        sessions=sessions,
    )
