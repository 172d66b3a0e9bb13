"""Throughput and peak memory of `visionflow prepare nsd` on synthetic sources of the real dimensions.

    python benchmarks/prepare.py WORK [--sessions 2] [--vast-sessions 16]

writes two sources in WORK and prints the table of benchmarks/prepare.md: one full of noise, whose import is timed
beside a plain copy of the same bytes, and one of at least 8 GiB whose files are mostly holes, for the memory alone.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import nibabel
import numpy as np
import scipy.io
from PIL import Image

VOLUME, VOXELS, TRIALS = (81, 104, 83), 15724, 750  # of subj01; trials a session
IMAGES, SIDE = 73000, 425
COLOURS = 24  # a side, of which a picture is made


def write_source(root: Path, sessions: int, full: bool, stimuli: int = 10000, one_in: int = 10) -> np.ndarray:
    """subj01 with these sessions, in which it sees so many images three times, one in `one_in` of which all see.

    Where `full`, all images that it sees are written, and each voxel follows one colour of one place under noise twice
    as strong; files are mostly holes otherwise.

    Returns:
        The numbers of the images that it sees.
    """
    rng = np.random.default_rng(0)
    for folder in ("nsddata_stimuli/stimuli/nsd", "nsddata/experiments/nsd", "nsddata/ppdata/subj01/func1pt8mm/roi"):
        (root / folder).mkdir(parents=True)
    betas = root / "nsddata_betas" / "ppdata" / "subj01" / "func1pt8mm" / "betas_fithrf_GLMdenoise_RR"
    betas.mkdir(parents=True)
    subjectim = np.stack([1 + rng.permutation(IMAGES)[:10000] for _ in range(8)])
    subjectim[:, :1000] = subjectim[0, :1000]
    order = np.arange(1, 1000 * one_in + 1).reshape(one_in, 1000).T.ravel()  # the first thousand are those that all see
    ordering = np.concatenate([rng.permutation(np.repeat(some, 3)) for some in np.split(order, [stimuli])])
    design = {"masterordering": ordering[None], "subjectim": subjectim, "sharedix": subjectim[:1, :1000]}
    scipy.io.savemat(root / "nsddata/experiments/nsd/nsd_expdesign.mat", design)
    shown = np.unique(subjectim[0, ordering[: sessions * TRIALS] - 1]) - 1
    places = np.argwhere(np.ones((40, 30, 30)))[rng.choice(36000, VOXELS, replace=False)] + (20, 10, 20)
    read, signal = rng.integers(0, COLOURS**2 * 3, VOXELS), {}
    with h5py.File(root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5", "w") as file:
        brick = holes(file, "imgBrick", (IMAGES, SIDE, SIDE, 3), np.uint8)
        for image in shown:
            if full:
                colours = rng.integers(0, 256, (COLOURS, COLOURS, 3), dtype=np.uint8)
                brick[image] = photograph(rng, colours)
                signal[image] = 12 * (colours.ravel()[read].astype(np.int16) - 128)  # standard deviation 886
            else:
                brick[image, 0] = rng.integers(0, 256, (SIDE, 3))
    for session in range(1, sessions + 1):
        with h5py.File(betas / f"betas_session{session:02d}.hdf5", "w") as file:
            values = holes(file, "betas", (TRIALS, *VOLUME[::-1]), np.int16)
            if full:
                for trial in range(TRIALS):
                    volume = rng.integers(-3000, 3000, VOLUME[::-1], dtype=np.int16)
                    image = subjectim[0, ordering[(session - 1) * TRIALS + trial] - 1] - 1
                    volume[tuple(places.T[::-1])] += signal[image]
                    values[trial] = volume
            else:
                values[::250] = rng.integers(-3000, 3000, (TRIALS // 250, *VOLUME[::-1]), dtype=np.int16)
    mask = np.zeros(VOLUME, dtype=np.int16)
    mask[tuple(places.T)] = 1
    affine = np.diag([1.8, 1.8, 1.8, 1])
    nibabel.save(nibabel.Nifti1Image(mask, affine), root / "nsddata/ppdata/subj01/func1pt8mm/roi/nsdgeneral.nii.gz")
    ncsnr = rng.random(VOLUME).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(ncsnr, affine), betas / "ncsnr.nii.gz")
    return shown


def holes(file: h5py.File, key: str, shape: tuple[int, ...], kind: type) -> h5py.Dataset:
    """A contiguous data set that takes disk only where it is written."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space, kind = h5py.h5s.create_simple(shape), h5py.h5t.py_create(np.dtype(kind))
    return h5py.Dataset(h5py.h5d.create(file.id, key.encode(), kind, space, plan))


def photograph(rng: np.random.Generator, colours: np.ndarray) -> np.ndarray:
    """Smooth colours with fine noise: compresses about as a photograph does."""
    coarse = Image.fromarray(colours).resize((SIDE, SIDE), Image.BICUBIC)
    return (np.asarray(coarse, dtype=np.int16) + rng.integers(-4, 5, (SIDE, SIDE, 3))).clip(0, 255).astype(np.uint8)


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def number_of_shards(corpus: Path) -> int:
    return len(list(corpus.rglob("*.arrow")))


CHILD = """
import resource, sys
from visionflow_hf.cli import main

code = main(sys.argv[1:])
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(sum(one.ru_utime + one.ru_stime for one in used), max(one.ru_maxrss for one in used), file=sys.stderr)
sys.exit(code)
"""


def prepare(source: Path, out: Path, *flags: str) -> tuple[float, float, float]:
    """Seconds, seconds of CPU time in all, and the peak memory of the largest of its processes in MiB."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-c", CHILD, "prepare", "nsd", str(source), str(out), *flags]
    start = time.monotonic()
    done = subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    cpu, peak = done.stderr.split()[-2:]
    return time.monotonic() - start, float(cpu), int(peak) / 1024


def copy(source: Path, target: Path, images: np.ndarray) -> float:
    """Seconds to copy the sessions, and of the images those that were shown, byte for byte."""
    target.mkdir()
    start = time.monotonic()
    for file in source.rglob("betas_session*"):
        shutil.copyfile(file, target / file.name)
    with h5py.File(next(source.rglob("nsd_stimuli.hdf5"))) as file, open(target / "images", "wb") as copied:
        for image in images:
            copied.write(file["imgBrick"][image].tobytes())
    seconds = time.monotonic() - start
    shutil.rmtree(target)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--sessions", type=int, default=2, help="full of noise (2, 1 GiB each)")
    parser.add_argument("--vast-sessions", type=int, default=16, help="mostly holes (16)")
    args = parser.parse_args()
    out = args.work / "corpus"
    print("| what | source GiB | s | CPU s | MiB/s of the source | corpus GiB | shards | peak MiB |")
    print("|---|---|---|---|---|---|---|---|")

    source = args.work / "full"
    images = write_source(source, args.sessions, full=True)
    read = sum(file.stat().st_size for file in source.rglob("betas_session*")) + len(images) * SIDE * SIDE * 3
    seconds = copy(source, args.work / "copy", images)
    print_row("plain copy, noise", read / 2**30, seconds, "-", read / 2**20 / seconds, "-", "-", "-")
    for flags in ([], ["--num-proc", "2"], ["--average-repeats"]):
        seconds, cpu, peak = prepare(source, out, *flags)
        row = (read / 2**30, seconds, cpu, read / 2**20 / seconds, size(out) / 2**30, number_of_shards(out), peak)
        print_row(" ".join(["prepare", *flags]) + ", noise", *row)
    shutil.rmtree(source)

    source = args.work / "vast"
    write_source(source, args.vast_sessions, full=False)
    for flags in ([], ["--average-repeats"]):
        seconds, cpu, peak = prepare(source, out, *flags)
        row = (size(source) / 2**30, seconds, cpu, "-", size(out) / 2**30, number_of_shards(out), peak)
        print_row(" ".join(["prepare", *flags]) + ", mostly holes", *row)
    shutil.rmtree(source)
    shutil.rmtree(out)


def print_row(what: str, *cells: str | float) -> None:
    def word(cell: str | float) -> str:
        if isinstance(cell, str):
            return cell
        return f"{cell:.2f}" if isinstance(cell, float) and cell < 10 else f"{cell:.0f}"

    print(f"| {what} | {' | '.join(map(word, cells))} |", flush=True)


if __name__ == "__main__":
    main()
