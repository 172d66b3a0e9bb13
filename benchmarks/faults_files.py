"""Fuzzing of every reader: files spoiled at random give a result or one line, within 10 s and 2 GiB."""

import contextlib
import io
import json
import os
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import layouts  # of tests/
import numpy as np
import scipy.io
from datasets import load_from_disk
from faults_kills import SHORT, simulate
from forked import poll, run, start
from mutations import LAYOUTS, SECRET, spoil, write_secrets
from PIL import Image
from sources import table_of
from table import Row

from visionflow_hf.cli import main
from visionflow_hf.corpus import mosaic

SECONDS, BYTES = 10, 2 * 2**30
STUCK = 30  # seconds without a sign, in a library that hears no signal


@dataclass
class Reader:
    """What is spoiled, and the command that reads it.

    Attributes:
        make: writes a sound source into an empty folder.
        words: the command line, from the folder of the source and that for the result.
        corpus: whether the result is a corpus, which may hold nothing from outside the source.
    """

    name: str
    make: Callable[[Path], None]
    words: Callable[[Path, Path], list]
    corpus: bool = True


def fuzz(reader: Reader, work: Path, mutations: int, seed: int = 0) -> Row:
    """Spoil the source as many times, in a fork that is begun anew where a library crashes."""
    row = Row(f"fuzzing: {reader.name}")
    folder = work / reader.name.replace(" ", "-").replace("/", "-")
    folder.mkdir(parents=True)
    (folder / "sound").mkdir()
    reader.make(folder / "sound")
    write_secrets(folder / "secrets")
    results, first = folder / "results", 0
    while first < mutations:
        results.write_text("")
        child = start(lambda first=first: spoil_many(reader, folder, range(first, mutations), seed), folder / "log")
        grown, since, status = 0, time.monotonic(), None
        while status is None:
            time.sleep(0.05)
            status = poll(child)
            size = results.stat().st_size
            if size > grown:
                grown, since = size, time.monotonic()
            if status is None and time.monotonic() - since > STUCK:
                os.kill(child, signal.SIGKILL)
        found = [json.loads(line) for line in results.read_text().splitlines()]
        for one in found:
            row.add([f"{reader.name} {one['number']}: {one['problem']}"] if one["problem"] else [])
        first += len(found)
        if first < mutations and status != 0:
            said = (folder / "log").read_text(errors="replace").strip().splitlines()
            row.add([f"{reader.name} {first}: the process ended with {status} ({said[-1] if said else ''})"])
            first += 1
    shutil.rmtree(folder)
    return row


def spoil_many(reader: Reader, folder: Path, numbers: range, seed: int) -> int:
    signal.signal(signal.SIGALRM, hang)
    with open(folder / "results", "a") as results:
        for number in numbers:
            problem = spoil_once(reader, folder, np.random.default_rng([seed, number, *reader.name.encode()]))
            print(json.dumps({"number": number, "problem": problem}), file=results, flush=True)
    return 0


def spoil_once(reader: Reader, folder: Path, rng: np.random.Generator) -> str:
    """What is wrong with how a spoiled source is read; empty if nothing is."""
    source, place = folder / "source", folder / "place"
    for path in (source, place):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(folder / "sound", source)
    place.mkdir()
    done = []
    try:
        done.append(spoil(source, folder / "secrets", rng))
        if rng.random() < 0.2:
            done.append(spoil(source, folder / "secrets", rng, again=True))
    except Exception as error:  # of the spoiling itself: the file is as it is by then
        done.append(f"{type(error).__name__} while spoiling")
    source.mkdir(exist_ok=True)  # removed by the spoiling, maybe
    words = [str(word) for word in reader.words(source, place / "out")]
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory is counted anew
    before, started = memory("VmRSS"), time.monotonic()
    said = io.StringIO()
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = main(words)
        signal.alarm(0)
    except BaseException as error:
        signal.alarm(0)
        return f"{'; '.join(done)}: {type(error).__name__} {error} in {place_of(error)}"
    used = memory("VmHWM") - before
    errors = [line for line in said.getvalue().splitlines() if line.startswith("error: ")]
    case = f"{'; '.join(done)}:"
    if used > BYTES:
        return f"{case} {used / 2**30:.1f} GiB"
    if time.monotonic() - started > SECONDS:
        return f"{case} {time.monotonic() - started:.0f} s"
    if code not in (0, 2) or (code == 2 and len(errors) != 1):
        return f"{case} exit code {code}, {len(errors)} lines of error: {said.getvalue()[-300:]}"
    left = sorted(path.name for path in place.iterdir() if code or not path.name.startswith("out"))
    left += sorted({path.name for path in folder.iterdir()} - KEPT)
    if left:
        return f"{case} left {', '.join(left)}"
    if code == 0 and reader.corpus:
        for split in load_from_disk(str(place / "out")).values():
            for row in split:
                if row["fmri"] is not None and np.any(np.array(row["fmri"]) == SECRET):
                    return f"{case} the corpus holds responses from outside the source"
                if row["image"] is not None and row["image"].getpixel((0, 0)) == (1, 2, 3):
                    return f"{case} the corpus holds an image from outside the source"
    return ""


KEPT = {"log", "place", "results", "secrets", "sound", "source"}


def memory(name: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def hang(signum, frame):
    raise TimeoutError(f"more than {SECONDS} s")


def place_of(error: BaseException) -> str:
    """The last frames of the package and the last one at all."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "visionflow_hf" in frame.filename or "/modeling/" in frame.filename][-2:]
    return " > ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in [*ours, frames[-1]])


def make_model(work: Path) -> None:
    """The model, corpus and responses that spoiled ones are mixed with."""
    for name, number in (("LEFT", 7), ("CORTEX", 13), ("GRAYORDINATES", 16)):  # of `layouts.mosaic_small`
        setattr(mosaic, name, number)
    if not (work / "corpus").exists():
        simulate(work / "corpus", work / "log")
    if (work / "responses").exists():
        return
    ended = run(["train", work / "corpus", work / "model", *SHORT], work / "log")
    if ended.code:
        raise SystemExit(ended.text)
    (work / "responses").mkdir()
    responses(work / "responses")


def readers(work: Path) -> Iterator[Reader]:
    """All readers; `work` has a trained model in `model` and its corpus in `corpus`."""
    arrays = ["--images", "images", "--fmri", "fmri", "--stimulus-ids", "ids"]
    for name, write in (("mat5", mat5), ("mat73", mat73), ("npz", npz), ("h5", h5)):
        suffix = {"mat5": "mat", "mat73": "mat"}.get(name, name)
        yield Reader(
            f"arrays {name}",
            lambda folder, write=write, suffix=suffix: write(folder / f"a.{suffix}"),
            lambda source, out, suffix=suffix: ["prepare", "arrays", source / f"a.{suffix}", out, *arrays],
        )
    voxels = ["--rois", "masks", "regions", "--mask-volume", "brain"]
    voxels += ["--noise-ceiling", "ceiling", "--category", "kind"]
    for name, suffix in (("mat5", "mat"), ("mat73", "mat"), ("npz", "npz"), ("h5", "h5")):
        yield Reader(
            f"arrays with voxels {name}",
            lambda folder, name=name, suffix=suffix: with_voxels(folder / f"a.{suffix}", name),
            lambda source, out, suffix=suffix: ["prepare", "arrays", source / f"a.{suffix}", out, *arrays, *voxels],
        )
    subjects = ["--images", "images", "--fmri", "{subject}/fmri", "--rois", "{subject}/roi", "--xyz", "{subject}/xyz"]
    for name, write in (("mat5", layouts.five), ("mat73", layouts.seven)):
        yield Reader(
            f"arrays of subjects {name}",
            lambda folder, write=write: of_subjects(folder / "a.mat", write),
            lambda source, out: ["prepare", "arrays", source / "a.mat", out, *subjects],
        )
        yield Reader(
            f"arrays in cells {name}",
            lambda folder, write=write: in_cells(folder / "a.mat", write),
            lambda source, out: [
                *("prepare", "arrays", source / "a.mat", out, "--images", "images", "--fmri", "fmri/{subject}"),
                *("--stimulus-ids", "ids", "--category", "kind"),
            ],
        )
    for writer, layout in LAYOUTS.items():
        yield Reader(
            f"layout {writer}",
            getattr(layouts, writer),
            lambda source, out, writer=writer, layout=layout: (
                ["prepare", "table", table_of(writer, source)[0], out, *table_of(writer, source)[1:]]
                if layout == "table"
                else ["prepare", layout, source, out]
            ),
        )
    yield Reader("images of prepare images", images, lambda source, out: ["prepare", "images", source, out])
    model, subject, cpu = work / "model", ["--subject", "subj01"], ["--device", "cpu"]
    yield Reader(
        "corpus folder",
        lambda folder: shutil.copytree(work / "corpus", folder / "corpus"),
        lambda source, out: ["inspect", source / "corpus", "--json"],
        corpus=False,
    )
    yield Reader(
        "images of encode",
        images,
        lambda source, out: [
            "encode",
            model,
            *sorted(source.iterdir()),
            *subject,
            "--output",
            out.with_suffix(".npz"),
            *cpu,
        ],
        corpus=False,
    )
    yield Reader(
        "responses of decode",
        responses,
        lambda source, out: ["decode", model, source / "fmri.npz", *subject, "--output", out, *cpu],
        corpus=False,
    )
    yield Reader(
        "responses and candidates of identify",
        lambda folder: [responses(folder), (folder / "candidates").mkdir(), images(folder / "candidates")],
        lambda source, out: [
            *("identify", model, source / "fmri.npz", *subject, "--candidates", source / "candidates"),
            *("--output", out.with_suffix(".csv"), *cpu),
        ],
        corpus=False,
    )
    kept = ("config.json", "processor_config.json", "fmri_statistics.safetensors", "model.safetensors")
    for name in kept:
        yield Reader(
            f"model folder {name}",
            lambda folder, name=name: shutil.copy(model / name, folder / name),
            lambda source, out, name=name: [
                *("decode", assembled(model, source, name, kept), work / "responses" / "fmri.npz"),
                *(*subject, "--output", out, *cpu),
            ],
            corpus=False,
        )


def assembled(model: Path, source: Path, name: str, kept: tuple) -> Path:
    """A model folder of the sound files and the spoiled one."""
    folder = source / "assembled"
    folder.mkdir()
    for other in kept:
        if other != name:
            (folder / other).symlink_to(model / other)
    for file in source.iterdir():
        if file != folder:
            file.rename(folder / file.name)
    return folder


def some(trials: int = 12, voxels: int = 7) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "images": rng.integers(0, 256, (trials, 8, 8, 3), dtype=np.uint8),
        "fmri": rng.normal(size=(trials, voxels)).astype(np.float32),
        "ids": np.arange(trials),
    }


def npz(file: Path) -> None:
    np.savez(file, **some())


def mat5(file: Path) -> None:
    scipy.io.savemat(file, some() | {"ids": np.arange(12)[:, None]})


def h5(file: Path) -> None:
    with h5py.File(file, "w") as out:
        for name, array in some().items():
            out.create_dataset(name, data=array, chunks=True, compression="gzip")


def mat73(file: Path) -> None:
    with h5py.File(file, "w", userblock_size=512) as out:
        for name, array in some().items():
            out[name] = array.T
    with open(file, "r+b") as out:
        out.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


def with_voxels(file: Path, name: str) -> None:
    """Regions as volumes, the mask, ceilings and categories beside `some`."""
    rng = np.random.default_rng(1)
    brain = np.zeros(24)
    brain[rng.permutation(24)[:7]] = 1
    brain = brain.reshape(2, 3, 4)
    values = some() | {"brain": brain, "ceiling": rng.random(7), "masks": np.stack([brain, brain * (brain > 2), brain])}
    values |= {"regions": np.array([1.0, 2, 3]), "kind": np.arange(12) % 3}
    if name == "npz":
        np.savez(file, **values)
    elif name == "h5":
        with h5py.File(file, "w") as out:
            for key, array in values.items():
                out.create_dataset(key, data=array, chunks=True, compression="gzip")
    else:
        {"mat5": layouts.five, "mat73": layouts.seven}[name](file, **values)


def of_subjects(file: Path, write: Callable) -> None:
    """A struct of each subject, with a cell for the region of each voxel."""
    both = {f"S{number}": some(voxels=number + 3) for number in (1, 2)}
    names = {name: layouts.cells(*["V1", "V4"] * 2, *[""] * (int(name[1]) - 1)) for name in both}
    structs = {
        name: {"fmri": both[name]["fmri"], "roi": names[name], "xyz": np.ones((int(name[1]) + 3, 3))} for name in both
    }
    write(file, images=some()["images"], **structs)


def in_cells(file: Path, write: Callable) -> None:
    """A cell for each subject, for each image, and for each name."""
    both = [some(voxels=number)["fmri"] for number in (4, 5)]
    words = {"ids": layouts.cells(*[f"im{n}" for n in range(12)]), "kind": layouts.cells(*["face", "house"] * 6)}
    write(file, images=layouts.cells(*some()["images"]), fmri=layouts.cells(*both), **words)


def images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for number, suffix in enumerate(("png", "jpg", "gif", "bmp", "tif", "webp", "ppm", "jp2")):
        picture = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        picture.save(folder / f"image000{number}.{suffix}")


def responses(folder: Path) -> None:
    np.savez(folder / "fmri.npz", fmri=np.random.default_rng(0).normal(size=(3, 20)).astype(np.float32))
