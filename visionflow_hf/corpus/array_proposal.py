"""`prepare arrays` without keys: what a file holds, and a command to begin with, from shapes and names."""

import os
import re
import shlex
from itertools import permutations

Kinds = dict[str, tuple[tuple[int, ...], str]]

IMAGES = re.compile(r"im(age|g)|stim|pic|photo|frame|^x$", re.IGNORECASE)
RESPONSES = re.compile(r"fmri|bold|beta|resp|vox|neur|spike|^y$", re.IGNORECASE)
MASKS, NAMES = (
    re.compile(r"(roi|region).*mask", re.IGNORECASE),
    re.compile(r"(roi|region).*(label|name)", re.IGNORECASE),
)
PLACES = re.compile(r"xyz|coord", re.IGNORECASE)
CEILING = re.compile(r"ceiling", re.IGNORECASE)
CATEGORIES = re.compile(r"categor|class|(stim|image).*label", re.IGNORECASE)
SUBJECT = re.compile(r"(?<![A-Za-z])s(ub(j(ect)?)?)?[-_]?\d+(?!\d)", re.IGNORECASE)  # S1, subj01, sub-01
OTHERS = ("cell", "text", "struct", "object", "MATLAB")  # kinds that are no arrays of numbers
TRAIN, TEST = re.compile(r"training|train|trn", re.IGNORECASE), re.compile("test", re.IGNORECASE)


def listed(kinds: Kinds) -> str:
    """A line for each array: its key, its shape, its type."""
    width = max(map(len, kinds), default=0)
    return "\n".join(
        f"{key.ljust(width)}  {' x '.join(map(str, shape))}  {kind}" for key, (shape, kind) in kinds.items()
    )


def proposed(kinds: Kinds, file: str | os.PathLike, out: str | os.PathLike) -> str | None:
    """The command for the likeliest images and responses, with what else there is; None where no pair fits."""
    numbers = {key: shape for key, (shape, kind) in kinds.items() if not kind.startswith(OTHERS)}
    pairs = [
        (images, fmri)
        for images, fmri in permutations(numbers, 2)
        if len(numbers[images]) > 1 and len(numbers[fmri]) == 2 and numbers[images][0] == numbers[fmri][0] > 1
    ]
    if not pairs:
        return None
    images, fmri = max(pairs, key=lambda pair: likelihood(*pair, kinds))
    voxels = numbers[fmri][1]
    flags = ["--images", images, "--fmri", fmri]
    tests = [partner(key, numbers) for key in (images, fmri)]
    if all(tests):
        flags += ["--test-images", tests[0], "--test-fmri", tests[1]]
    if len(numbers[images]) == 2:
        for channels in (1, 3):
            side = round((numbers[images][1] / channels) ** 0.5)
            if side * side * channels == numbers[images][1]:
                flags += ["--image-shape", str(side), str(side)] + (["3"] if channels == 3 else [])
                flags += ["--column-major"] if str(file).endswith(".mat") else []
                break
    masks, names = (next(filter(pattern.search, kinds), None) for pattern in (MASKS, NAMES))
    if masks and names:
        flags += ["--rois", masks, names]
    for flag, pattern, shapes in (
        ("--xyz", PLACES, [(voxels, 3), (3, voxels)]),
        ("--noise-ceiling", CEILING, [(voxels,), (voxels, 1), (1, voxels)]),
    ):
        key = next((key for key in numbers if pattern.search(key) and numbers[key] in shapes), None)
        flags += [flag, key] if key else []
    trials = numbers[fmri][0]
    labels = [key for key, (shape, _) in kinds.items() if shape in ((trials,), (trials, 1), (1, trials))]
    category = next(filter(CATEGORIES.search, labels), None)
    flags += ["--category", category] if category and not all(tests) else []
    flags = for_all_subjects(flags, fmri, kinds)
    return f"to begin with: {shlex.join(['visionflow', 'prepare', 'arrays', str(file), str(out), *flags])}"


def for_all_subjects(flags: list[str], fmri: str, kinds: Kinds) -> list[str]:
    """The flags with `{subject}` in place of a subject's name, if the responses of another one lie beside it."""
    match = SUBJECT.search(fmri)
    if not match:
        return flags
    before, after = map(re.escape, (fmri[: match.start()], fmri[match.end() :]))
    alike = [key for key in kinds if re.fullmatch(rf"{before}[^/]+{after}", key) and not TEST.search(key)]
    if len(alike) < 2 or not all(SUBJECT.search(key) for key in alike):
        return flags
    return [flag if flag.startswith("--") else flag.replace(match[0], "{subject}") for flag in flags]


def likelihood(images: str, fmri: str, kinds: Kinds) -> int:
    """How well two keys fit as images and responses."""
    shape, kind = kinds[images]
    points = [
        2 * bool(IMAGES.search(images)),
        2 * bool(RESPONSES.search(fmri)),
        len(shape) > 2,
        kind == "uint8",
        kinds[fmri][1].startswith("float"),
        bool(TRAIN.search(images)) and bool(TRAIN.search(fmri)),
        -3 * bool(TEST.search(images + fmri)),
    ]
    return sum(points)


def partner(key: str, keys: Kinds) -> str | None:
    """The key of the test split beside that of the train split."""
    wanted = [TRAIN.sub("test", key).lower(), f"{key}_test".lower(), f"test_{key}".lower()]
    return next((other for other in keys if other != key and other.lower() in wanted), None)
