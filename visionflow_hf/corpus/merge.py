"""`visionflow merge`: two corpora as one, split by split."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, Value, concatenate_datasets

from visionflow_hf.corpus.leakage import Picture, leakage, replaced, together
from visionflow_hf.corpus.repeats import ceiling_of_average, ncsnr_of_groups
from visionflow_hf.corpus.responses import presence, responses_of
from visionflow_hf.corpus.schema import (
    FEATURES,
    MARKER,
    OPTIONAL,
    SPLIT_BY,
    SPLITS,
    Corpus,
    is_text,
    join_tables,
    read_corpus,
    save_corpus,
)
from visionflow_hf.corpus.splits import draw_test
from visionflow_hf.errors import UserError
from visionflow_hf.folders import new_folder, refuse_existing

ZSCORES = "standard deviation of the voxel within"  # begins the unit of responses that were scaled in each session
BATCH = 1000  # rows read at once


def merge(
    one: str | os.PathLike,
    other: str | os.PathLike,
    out: str | os.PathLike,
    overwrite: bool = False,
    test_fraction: float | None = None,
    seed: int = 0,
    report: Callable[[str], None] = print,
) -> None:
    """Write the corpus `out` with the rows of both.

    A subject may be in both; its voxel table is then that of `one`, but see `ceilings_of_both`, and the repeats of a
    stimulus count on in `other`.
    The columns `category` and `session` are kept; they are null in the rows of a corpus that does not have them.

    Args:
        test_fraction: share of the stimuli to draw as test from the rows of both, which then are in train or test;
            None leaves each row in its split.
        seed: for that draw.
        report: called with one line for each thing that a user of the corpus should know.

    Raises:
        UserError: a subject with two numbers of voxels or with voxels at other places, a name with two images, or a
            stimulus that would then be in two splits; nothing is written then.
    """
    refuse_existing(out, overwrite, MARKER)
    first, second = read_corpus(one), read_corpus(other)
    for path, corpus in ((one, first), (other, second)):
        others = [name for name in corpus.splits if name not in SPLITS]
        if others:
            raise UserError(f"{path} has a split {others[0]}: rename it to one of {', '.join(SPLITS)}")
    both = sorted(first.subjects.keys() & second.subjects.keys())
    for subject in both:
        here, there = first.subjects[subject], second.subjects[subject]
        if here != there:
            raise UserError(
                f"{subject} has {here} voxels in {one} and {there} in {other}: "
                "a subject must have the same voxels in both, so import one of them under another name"
            )
        refuse_other_places(subject, first, second)
        refuse_other_units(subject, first, second)
        report(f"{subject} is in both: taken for one subject; if it is not, import one of them under another name")
    pictures = together([shown for corpus in (first, second) for shown in corpus.pictures.values()])
    for subject in both:
        refuse_same_trials(subject, first, second)
    held_out = SPLIT_BY[0]
    if test_fraction is None:
        own = {name: [corpus.splits[name] for corpus in (first, second) if name in corpus.splits] for name in SPLITS}
        splits = {
            name: counted_on(*parts) if len(parts) == 2 else joined(parts) for name, parts in own.items() if parts
        }
    else:
        rows = counted_on(*(joined(corpus.splits.values()) for corpus in (first, second)))
        splits = drawn_anew(rows, pictures, test_fraction, seed, report)
    splits = DatasetDict(same_columns(splits))
    if test_fraction is None:
        held_out = still_held_out(
            [corpus.split_by for corpus in (first, second) if "test" in corpus.splits], splits, report
        )
    shown = {
        name: {stimulus: pictures[stimulus] for stimulus in rows["stimulus_id"] if stimulus in pictures}
        for name, rows in splits.items()
    }
    shared = leakage(splits, shown)
    if shared:
        raise UserError(
            f"merged there would be {shared}: a stimulus belongs to one split only, so draw the test split anew with "
            "--test-fraction 0.1, or remove it from one corpus"
        )
    voxels = second.voxels[~second.voxels["subject"].isin(list(first.subjects))]
    voxels = join_tables([first.voxels[first.voxels["subject"].isin(list(first.subjects))], voxels])
    for subject in both:
        own = voxels["subject"] == subject
        by_voxel = ceilings_of_both(subject, first, second, splits, report)
        voxels.loc[own, "noise_ceiling"] = by_voxel[voxels.loc[own, "voxel"].to_numpy()]
    for subject, mean in voxels.attrs.get("repeats", {}).items():  # the rows of test are other ones now
        drawn = test_fraction is not None
        mean["test"] = mean["corpus"] if drawn else share_of_test(subject, first, second)
    unit = one_unit(first, second, report)
    for rows in splits.values():
        rows.info.license = one_license(first, second)
    if {first.license, second.license} - {one_license(first, second)}:
        report("the licences differ: the merged corpus states none")
    with new_folder(out, overwrite, marker=MARKER) as folder:
        save_corpus(folder, splits, voxels, unit, held_out)
    report(", ".join(f"{name}: {len(rows)} rows" for name, rows in splits.items()))


def still_held_out(said: list[str], splits: DatasetDict, report: Callable[[str], None]) -> str:
    """What the merged test split holds out; categories or sessions only where train has none of them.

    Args:
        said: what the test split of each corpus holds out.
    """
    if set(said) <= {SPLIT_BY[0]} or "train" not in splits:
        return "; ".join(dict.fromkeys(said)) or SPLIT_BY[0]
    by_session = {"session" in one for one in said if one != SPLIT_BY[0]}
    column = "session" if True in by_session else "category"
    if len(by_session) == 1 and column in splits["train"].column_names:
        train, test = (set(splits[name].with_format(None)[column][:]) for name in ("train", "test"))
        if None not in train | test and not train & test:
            return "; ".join(dict.fromkeys(said))
    report("test no longer holds out whole categories or sessions, since train has rows of them: it holds out stimuli")
    return SPLIT_BY[0]


def ceilings_of_both(
    subject: str, first: Corpus, second: Corpus, splits: DatasetDict, report: Callable[[str], None]
) -> np.ndarray:
    """The noise ceilings of a subject in both corpora, array of shape (voxels,), NaN where they are not known.

    Those of `first`, or else of `second`, or else from the repeats among the rows of both. None are known where the
    rows of one average repeats and those of the other do not.
    """
    averaged = [subject in corpus.voxels.attrs.get("repeats", {}) for corpus in (first, second)]
    here, there = (
        corpus.voxels_of(subject)["noise_ceiling"].to_numpy(np.float64, na_value=np.nan) for corpus in (first, second)
    )
    if averaged[0] != averaged[1]:
        report(f"the rows of {subject} average repeats in one corpus alone: no noise ceiling holds for all of them")
        return np.full(len(here), np.nan)
    if all(averaged):  # as ceilings of averages over as many trials as those of `first`
        one, other = (corpus.voxels.attrs["repeats"][subject]["corpus"] for corpus in (first, second))
        there = there / (there + one / other * (1 - there))
    known = np.where(np.isfinite(here), here, there)
    if np.isfinite(known).any() or any(averaged):
        return known
    ratio = ncsnr_of_groups(repeated_trials(subject, splits))
    if ratio is None:
        return known
    report(f"noise ceilings of {subject}: from the repeats in both")
    return ceiling_of_average(ratio, np.ones(1))


def share_of_test(subject: str, first: Corpus, second: Corpus) -> float:
    """The mean of 1 / trials over the test rows of a subject whose rows are averages."""
    shares, rows = [], []
    for corpus in (first, second):
        if subject in corpus.voxels.attrs.get("repeats", {}):
            shares.append(corpus.voxels.attrs["repeats"][subject]["test"])
            rows.append(corpus.splits["test"]["subject"][:].count(subject) if "test" in corpus.splits else 0)
    return float(np.average(shares, weights=rows if any(rows) else None))


def one_license(first: Corpus, second: Corpus) -> str:
    """The licence that both corpora state; none where they differ, or where one states none."""
    return first.license if first.license == second.license else ""


def refuse_other_units(subject: str, first: Corpus, second: Corpus) -> None:
    """Raise `UserError` where a subject's responses are z-scores in one corpus alone."""
    scored = [corpus.unit.startswith(ZSCORES) for corpus in (first, second)]
    if scored[0] != scored[1]:
        raise UserError(
            f"{subject} is in both, once in the unit {first.unit!r} and once in {second.unit!r}: import both with "
            "--zscore-sessions, or none"
        )


def refuse_same_trials(subject: str, first: Corpus, second: Corpus) -> None:
    """Raise `UserError` where trials of a subject are in both corpora, which would count as repeats."""
    known = set(trials_as_hashes(subject, first))
    same = sum(one in known for one in trials_as_hashes(subject, second))
    if same:
        raise UserError(
            f"{same} trials of {subject} are in both, with the same stimulus and response: they would count twice, so "
            f"import one of them without {subject}, or without these trials"
        )


def trials_as_hashes(subject: str, corpus: Corpus) -> Iterator[bytes]:
    """A hash of stimulus and response of each trial of a subject."""
    for rows in corpus.splits.values():
        mine = np.flatnonzero((np.asarray(rows["subject"][:], dtype=object) == subject) & presence(rows)[1])
        some = rows.select(mine).select_columns(["stimulus_id", "fmri"]).with_format("arrow")
        for batch in some.iter(BATCH):
            fmri = batch["fmri"].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float32)
            for stimulus, response in zip(batch["stimulus_id"].to_pylist(), fmri.reshape(len(batch), -1), strict=True):
                yield hashlib.sha256(repr(stimulus).encode() + response.tobytes()).digest()


def repeated_trials(subject: str, splits: DatasetDict) -> Iterator[np.ndarray]:
    """The responses (trials, voxels) to each stimulus that the subject saw more than once."""
    for rows in splits.values():
        _, has_fmri = presence(rows)
        mine = np.flatnonzero((np.asarray(rows["subject"][:], dtype=object) == subject) & has_fmri)
        trials: dict[str, list[int]] = {}
        for row, stimulus in zip(mine.tolist(), rows.select(mine)["stimulus_id"][:], strict=True):
            trials.setdefault(stimulus, []).append(row)
        for stimulus, own in trials.items():
            if stimulus is not None and len(own) > 1:
                yield responses_of(rows.select(own), subject).fmri


def refuse_other_places(subject: str, first: Corpus, second: Corpus) -> None:
    """Raise `UserError` where the two voxel tables have the subject's voxels at different places."""
    tables = (corpus.voxels[corpus.voxels["subject"] == subject] for corpus in (first, second))
    here, there = (table.sort_values("voxel") for table in tables)
    grids = [corpus.voxels.attrs.get("grids", {}).get(subject) for corpus in (first, second)]
    same = None in grids or grids[0].get("shape") == grids[1].get("shape")  # places are counted in the grid
    for name in ("place", "vertex", "x", "y", "z"):
        if name not in here or name not in there:
            continue
        one, other = (table[name].to_numpy(np.float64, na_value=np.nan) for table in (here, there))
        known = np.isfinite(one) & np.isfinite(other)
        if not np.allclose(one[known], other[known], rtol=0, atol=1e-3) or (name == "place" and not same):
            raise UserError(
                f"the voxels of {subject} differ in {name} between the two: a subject must have the same voxels "
                "in both, so import one of them under another name"
            )


def joined(splits: Iterable[Dataset]) -> Dataset:
    """The rows of several splits, with the types that `prepare` writes."""
    return concatenate_datasets([as_in_corpora(split) for split in splits])


def counted_on(first: Dataset, second: Dataset) -> Dataset:
    """The rows of both, with the types that `prepare` writes; the repeats of the second are counted on."""
    first, second = as_in_corpora(first), as_in_corpora(second)
    repeats = pa.array(repeats_after(first, second), pa.int32())
    return concatenate_datasets([first, replaced(second, "repeat", repeats)])


def as_in_corpora(rows: Dataset) -> Dataset:
    """The columns of `FEATURES`, and those of `OPTIONAL` that are there, with the types that `prepare` writes."""
    more = {name: Value("string") for name in OPTIONAL if is_text(rows.features.get(name))}
    features = Features({**FEATURES, **more})
    rows = rows.select_columns(list(features))
    return rows if rows.features == features else rows.cast(features)


def same_columns(splits: dict[str, Dataset]) -> dict[str, Dataset]:
    """All splits with the columns of `OPTIONAL` that any of them has, null where a split has none."""
    for column in OPTIONAL:
        if any(column in rows.column_names for rows in splits.values()):
            for name, rows in splits.items():
                if column not in rows.column_names:
                    empty = pa.nulls(len(rows), pa.string())
                    splits[name] = rows.add_column(column, empty, feature=Value("string"))
    return splits


def drawn_anew(
    rows: Dataset, pictures: dict[str, Picture], fraction: float, seed: int, report: Callable[[str], None]
) -> dict[str, Dataset]:
    """Train and test, drawn among the stimuli of pairs.

    Rows of a test stimulus that lack their image or their fMRI are left out: test has pairs alone, and train nothing
    of its stimuli.
    """
    has_image, has_fmri = presence(rows)
    names = rows["stimulus_id"][:]
    keys = [pictures[name].pixels if name in pictures else None for name in names]
    paired = has_image & has_fmri
    test = draw_test((key for key, pair in zip(keys, paired, strict=True) if pair), fraction, seed, report)
    in_test = np.array([key in test for key in keys], dtype=bool)
    left_out = int((in_test & ~paired).sum())
    if left_out:
        report(f"{left_out} rows of test stimuli without image or fMRI: left out")
    parts = {"train": ~in_test, "test": in_test & paired}
    return {name: rows.select(np.flatnonzero(part)) for name, part in parts.items()}


def repeats_after(first: Dataset, second: Dataset) -> list[int]:
    """The repeats of the second, counted on where the first has trials of the same subject and stimulus."""
    columns = ("subject", "stimulus_id", "repeat")
    count: dict[tuple, int] = {}
    for subject, stimulus, repeat in zip(*(first[column] for column in columns), strict=True):
        count[subject, stimulus] = max(count.get((subject, stimulus), 0), (repeat or 0) + 1)
    return [
        (repeat or 0) + count.get((subject, stimulus), 0)
        for subject, stimulus, repeat in zip(*(second[column] for column in columns), strict=True)
    ]


def one_unit(first: Corpus, second: Corpus, report: Callable[[str], None]) -> str:
    """What the merged corpus says of its unit, and a word where the two differ."""
    units = {corpus.unit: list(corpus.subjects) for corpus in (second, first) if corpus.subjects}
    if len(units) < 2:
        return next(iter(units), first.unit)
    unit = "; ".join(f"{unit} ({', '.join(subjects)})" for unit, subjects in reversed(units.items()))
    report(f"the units differ: {unit}. Voxels are standardised subject by subject, so a subject in both needs one unit")
    return unit
