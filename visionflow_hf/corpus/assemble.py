"""Write a corpus from a source; all importers use it.

Images and responses are first gathered in scratch files inside the folder that becomes the corpus, then splits and
noise ceilings are computed, and the rows written one by one.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from visionflow_hf.corpus.categories import SIDE, clusters, small_copies
from visionflow_hf.corpus.repeats import ceiling_of_average, mean_share, ncsnr_of_groups, number_repeats
from visionflow_hf.corpus.schema import (
    MARKER,
    OPTIONAL,
    SPLIT_BY,
    SPLITS,
    STIMULI,
    join_tables,
    voxel_table,
    write_splits,
)
from visionflow_hf.corpus.scratch import Picture, StoredResponses, gather_images, gather_responses, to_png
from visionflow_hf.corpus.source import Source, Subject
from visionflow_hf.corpus.splits import draw_groups, draw_test
from visionflow_hf.errors import UserError, count
from visionflow_hf.folders import new_folder, refuse_existing
from visionflow_hf.images import open_image

TEST_FRACTION = 0.1

SAMPLED = 8  # parts of a source whose first image is measured


def prepare(
    read: Callable[..., Source],
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    overwrite: bool = False,
    report: Callable[[str], None] = print,
    test_fraction: float | None = None,
    average: bool = False,
    stimuli_once: bool = False,
    seed: int = 0,
    num_proc: int = 1,
    split_by: str = SPLIT_BY[0],
    **own,
) -> None:
    """Write the corpus `out` from the folder `source`; the arguments are the flags of `visionflow prepare`.

    Args:
        read: the importer, `read_nsd` and so on; `own` goes to it.

    See `write_source` for the others.
    """
    refuse_existing(out, overwrite, MARKER)
    found = read(Path(source), report=report, **own)
    write_source(found, out, test_fraction, average, stimuli_once, seed, overwrite, num_proc, report, split_by)


def write_source(
    source: Source,
    out: str | os.PathLike,
    test_fraction: float | None,
    average: bool,
    stimuli_once: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    num_proc: int = 1,
    report: Callable[[str], None] = print,
    split_by: str = SPLIT_BY[0],
) -> None:
    """Write the corpus `out`, whole or not at all.

    Args:
        test_fraction: about what share of the stimuli to draw as test, by a hash of their pixels; None keeps the
            splits of the source, and draws a tenth where it has none.
        average: keep one row a stimulus and subject, the mean of its trials.
        stimuli_once: store each image once, as a file in the folder `stimuli`, and its path in the rows.
        num_proc: number of processes that read in parallel.
        report: called with one line for each thing that a user of the corpus should know.
        split_by: `category` draws whole categories of stimuli as test, which are clusters of images that look alike
            where the source has none; `session` draws whole sessions, and leaves out the trials of their stimuli in
            other sessions.

    Raises:
        UserError: the source or the flags do not fit; nothing is written then.
    """
    for subject in source.subjects:
        if not subject.num_voxels:
            raise UserError(f"{subject.name} has no voxels with a response: is the source complete?")
    with new_folder(out, overwrite, marker=MARKER) as folder:
        scratch = folder / "scratch"
        scratch.mkdir()
        refuse_full_disk(source, folder, average, stimuli_once)
        pictures = gather_images(source, scratch, num_proc, report)
        responses = gather_responses(source, scratch, num_proc)
        name_once(source, pictures, report)
        left_out: dict[str, set[int]] = {}
        fraction = TEST_FRACTION if test_fraction is None else test_fraction
        if split_by == "category":
            splits, held_out = splits_by_category(source, pictures, fraction, seed)
        elif split_by == "session":
            splits, held_out, left_out = splits_by_session(source, pictures, fraction, seed)
            report(f"{sum(map(len, left_out.values()))} trials of test stimuli in other sessions left out")
        else:
            splits, held_out = assign_splits(source, pictures, test_fraction, seed, report), split_by
        if split_by != SPLIT_BY[0]:
            report(f"test holds out {held_out}")
        tables = []
        for subject, stored in zip(source.subjects, responses, strict=True):
            absent = left_out.get(subject.name, set())
            parts = {splits[name] for trial, name in enumerate(subject.stimuli) if trial not in absent}
            if "train" not in parts:
                raise UserError(
                    f"{subject.name} would have no trial in train: give another --seed, a smaller --test-fraction, or "
                    "--subjects without it"
                )
            if "test" not in parts:
                report(f"{subject.name} has no trial in test: `evaluate` will leave it out")
            constant = constant_voxels(subject, stored, splits)
            if len(constant):
                report(f"{subject.name}: {count(constant, 'voxel')} constant in train: kept, standardised to 0")
            tables.append(table_of(subject, stored, splits, left_out.get(subject.name, set()), average, report))
        images = {name: partial(embedded, picture) for name, picture in pictures.items()}
        if stimuli_once:
            files = write_stimuli(pictures, folder)
            images = {name: partial(referred, Path(out).absolute() / file) for name, file in files.items()}
        total = sum(len(set(one.stimuli) if average else one.stimuli) for one in source.subjects)
        with tqdm(total=total, desc="writing", unit=" rows", disable=None, leave=False) as bar:
            rows = partial(corpus_rows, source, images, responses, splits, left_out, average, bar)
            write_splits(
                folder,
                {name: partial(rows, name) for name in SPLITS if name in splits.values()},
                join_tables(tables),
                source.unit,
                known_columns(source),
                held_out,
            )
        shutil.rmtree(scratch)


def name_once(source: Source, pictures: dict[str, Picture], report: Callable[[str], None]) -> None:
    """Trials of the same pixels under several names get the first one, so that they are repeats of one stimulus."""
    first: dict[str, str] = {}
    once = {name: first.setdefault(picture.pixels, name) for name, picture in pictures.items()}
    again = [name for name, kept in once.items() if name != kept]
    if again:
        report(f"{count(again, 'image')} with the pixels of another one: each such stimulus has one name, the first")
        for subject in source.subjects:
            subject.stimuli = [once[name] for name in subject.stimuli]
        for name in again:
            del pictures[name]


def refuse_full_disk(source: Source, folder: Path, average: bool, stimuli_once: bool) -> None:
    """Images and responses are gathered on the disk, and then written to the rows of the corpus from there.

    The bytes of an image are estimated from the first of up to eight parts of the source.
    """
    stimuli = len(set().union(*(subject.stimuli for subject in source.subjects)))
    rows = [len(set(subject.stimuli) if average else subject.stimuli) for subject in source.subjects]
    first = [next(part(), None) for part in source.images[:: -(-len(source.images) // SAMPLED)]]
    sizes = [
        len(image if isinstance(image, bytes) else to_png(Image.fromarray(image))) for _, image in filter(None, first)
    ]
    images = np.mean(sizes or 0) * (stimuli + (stimuli if stimuli_once else sum(rows)))
    responses = sum(
        4 * (len(subject.stimuli) + kept) * subject.num_voxels
        for subject, kept in zip(source.subjects, rows, strict=True)
    )
    free = shutil.disk_usage(folder).free
    if images + responses > free:
        more = "" if stimuli_once or stimuli == sum(rows) else ", or less with --stimuli-once"
        raise UserError(
            f"the images need about {images / 2**30:.1f} GiB of disk{more}, the responses {responses / 2**30:.1f} GiB, "
            f"{free / 2**30:.1f} GiB are free: make room, or write OUT to another disk"
        )


def write_stimuli(pictures: dict[str, Picture], folder: Path) -> dict[str, Path]:
    """Each image as a file in `stimuli` of the folder; returns their paths in the folder."""
    files = {name: Path(STIMULI, f"{place // 1000:03d}", f"{place:06d}") for place, name in enumerate(pictures)}
    for name, file in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(pictures[name].read())
    return files


def embedded(picture: Picture) -> dict:
    """An image with its bytes, as a row holds it."""
    return {"bytes": picture.read(), "path": None}


def referred(file: Path) -> dict:
    """An image by its path, as a row holds it."""
    return {"bytes": None, "path": str(file)}


def assign_splits(
    source: Source,
    pictures: dict[str, Picture],
    test_fraction: float | None,
    seed: int,
    report: Callable[[str], None],
) -> dict[str, str]:
    """The split of each stimulus: one for all subjects, all repeats and all names of the same pixels."""
    stimuli = list(dict.fromkeys(name for subject in source.subjects for name in subject.stimuli))
    if test_fraction is None and any(subject.splits is None for subject in source.subjects):
        test_fraction = TEST_FRACTION
    if test_fraction is not None:
        test = draw_test((pictures[name].pixels for name in stimuli), test_fraction, seed, report)
        return {name: "test" if pictures[name].pixels in test else "train" for name in stimuli}
    found: dict[str, set[str]] = {}
    for subject in source.subjects:
        for name, split in zip(subject.stimuli, subject.splits, strict=True):
            found.setdefault(pictures[name].pixels, set()).add(split)
    latest = {pixels: max(splits, key=SPLITS.index) for pixels, splits in found.items()}
    moved = [name for name in stimuli if len(found[pictures[name].pixels]) > 1]
    if moved:
        report(
            f"{count(moved, 'stimulus')} in several splits of the source: each goes to one for all subjects, "
            "test before validation before train"
        )
    splits = {name: latest[pictures[name].pixels] for name in stimuli}
    for name in ("train", "test"):
        if name not in splits.values():
            raise UserError(f"the source has no trial in {name}: draw the splits with --test-fraction 0.1")
    return splits


def splits_by_category(
    source: Source, pictures: dict[str, Picture], fraction: float, seed: int
) -> tuple[dict[str, str], str]:
    """The split of each stimulus, whole categories in test; and what test holds out, in words."""
    first = dict(sorted((picture.pixels, name) for name, picture in pictures.items()))  # whatever the order of the rows
    if source.categories is not None:
        own = {pixels: source.categories[name] for pixels, name in first.items()}
        what = "categories of the source"
    else:
        copies = small_copies(open_image(pictures[name].read(), f"the image of {name}") for name in first.values())
        own = dict(zip(first, clusters(copies, seed), strict=True))
        what = f"clusters of images that look alike ({SIDE} x {SIDE} px)"
    held = draw_groups(list(own.values()), fraction, seed, "category")
    splits = {name: "test" if own[picture.pixels] in held else "train" for name, picture in pictures.items()}
    return splits, f"{len(held)} of {len(set(own.values()))} {what}"


def splits_by_session(
    source: Source, pictures: dict[str, Picture], fraction: float, seed: int
) -> tuple[dict[str, str], str, dict[str, set[int]]]:
    """The split of each stimulus, what test holds out, and the trials of each subject that are in no split."""
    without = [subject.name for subject in source.subjects if subject.sessions is None]
    if without:
        raise UserError(f"the session of each trial of {', '.join(without)} is not known: --split-by session needs it")
    held = draw_groups([one for subject in source.subjects for one in subject.sessions], fraction, seed, "session")
    trials = [
        (pictures[name].pixels, session in held)
        for subject in source.subjects
        for name, session in zip(subject.stimuli, subject.sessions, strict=True)
    ]
    tested = {pixels for pixels, there in trials if there}
    if len(tested) == len({pixels for pixels, _ in trials}):
        raise UserError(
            "each stimulus is shown in the sessions that are held out, so that train would be empty: give a smaller "
            "--test-fraction, or --split-by stimulus"
        )
    splits = {name: "test" if picture.pixels in tested else "train" for name, picture in pictures.items()}
    left_out = {
        subject.name: {
            trial
            for trial, (name, session) in enumerate(zip(subject.stimuli, subject.sessions, strict=True))
            if splits[name] == "test" and session not in held
        }
        for subject in source.subjects
    }
    return splits, f"session {', '.join(sorted(held))}", left_out


def known_columns(source: Source) -> list[str]:
    """Those of `OPTIONAL` that the source knows of all trials."""
    there = source.categories is not None, all(subject.sessions is not None for subject in source.subjects)
    return [name for name, known in zip(OPTIONAL, there, strict=True) if known]


def constant_voxels(subject: Subject, stored: StoredResponses, splits: dict[str, str]) -> np.ndarray:
    train = [trial for trial, name in enumerate(subject.stimuli) if splits[name] == "train"]
    low, high = np.full(stored.num_voxels, np.inf), np.full(stored.num_voxels, -np.inf)
    for values in stored.blocks(train):
        low, high = np.minimum(low, values.min(0)), np.maximum(high, values.max(0))
    return np.flatnonzero(low == high)


def trials_of(subject: Subject) -> dict[str, list[int]]:
    """The trials of each stimulus, in order of its first appearance."""
    trials: dict[str, list[int]] = {}
    for trial, stimulus in enumerate(subject.stimuli):
        trials.setdefault(stimulus, []).append(trial)
    return trials


def table_of(
    subject: Subject,
    stored: StoredResponses,
    splits: dict[str, str],
    left_out: set[int],
    average: bool,
    report: Callable[[str], None],
) -> pd.DataFrame:
    """The subject's part of `voxels.parquet`, with the ceiling of one row of the corpus where it can be known.

    Many studies repeat test stimuli more often than those of train. Where rows are averages, the mean of 1 / trials
    over all of them and over those of test is kept under `repeats` in the table's `attrs`.
    """
    groups = trials_of(subject)
    ratio = subject.ncsnr
    if ratio is None:
        repeated = [trials for trials in groups.values() if len(trials) > 1]
        ratio = ncsnr_of_groups(stored.read(trials) for trials in repeated)
    columns, repeats = dict(subject.voxels), {}
    if ratio is not None:
        counts = [1]
        if average:
            averaged = {name: len(set(trials) - left_out) for name, trials in groups.items()}
            averaged = {name: number for name, number in averaged.items() if number}
            counts = list(averaged.values())
            tested = [number for name, number in averaged.items() if splits[name] == "test"]
            repeats = {"corpus": mean_share(counts), "test": mean_share(tested or counts)}
        columns["noise_ceiling"] = ceiling_of_average(ratio, counts)
        origin = f"repeats of {len(repeated)} stimuli" if subject.ncsnr is None else "the source"
        median = np.nanmedian(columns["noise_ceiling"]) if np.isfinite(ratio).any() else np.nan
        report(f"{subject.name}: noise ceiling from {origin}: median {median:.3f} of a row's variance")
    table = voxel_table(subject.name, subject.num_voxels, **columns)
    if repeats:
        table.attrs["repeats"] = {subject.name: repeats}
    return table


def corpus_rows(
    source: Source,
    images: dict[str, Callable[[], dict]],
    responses: list[StoredResponses],
    splits: dict[str, str],
    left_out: dict[str, set[int]],
    average: bool,
    bar: tqdm,
    split: str,
) -> Iterator[dict]:
    columns = known_columns(source)
    for subject, stored in zip(source.subjects, responses, strict=True):
        absent = left_out.get(subject.name, set())
        if average:
            rows = [
                (name, 0, [trial for trial in trials if trial not in absent])
                for name, trials in trials_of(subject).items()
            ]
        else:
            kept = [trial for trial in range(len(subject.stimuli)) if trial not in absent]
            names = [subject.stimuli[trial] for trial in kept]
            rows = [
                (name, number, [trial]) for name, number, trial in zip(names, number_repeats(names), kept, strict=True)
            ]
        for name, number, trials in rows:
            if splits[name] != split or not trials:
                continue
            bar.update()
            more: dict = {}
            if "category" in columns:
                more["category"] = source.categories[name]
            if "session" in columns:
                more["session"] = ", ".join(dict.fromkeys(subject.sessions[trial] for trial in trials))
            yield more | {
                "image": images[name](),
                "fmri": stored.read(trials).mean(0, dtype=np.float64).astype(np.float32),
                "subject": subject.name,
                "stimulus_id": name,
                "repeat": number,
            }
