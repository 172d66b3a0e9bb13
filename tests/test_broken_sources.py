"""Broken and hostile sources leave one line and no folder; a killed import leaves nothing or the whole."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from threading import RLock

import h5py
import layouts
import numpy as np
import pandas as pd
import psutil
import pytest
import scipy.io
from sources import of, prepare, rows_of
from test_mutations import LAYOUTS
from tqdm import tqdm

from visionflow_hf.corpus.schema import open_corpus


def betas(source, name="subj01"):
    return source / "nsddata_betas" / "ppdata" / name / "func1pt8mm" / "betas_fithrf_GLMdenoise_RR"


def with_hdf5(file, change):
    with h5py.File(file, "r+") as opened:
        change(opened)


def replaced(key, values):
    def change(file):
        del file[key]
        file[key] = values if not callable(values) else values(file)

    return change


def virtual(outside):
    def change(file):
        layout = h5py.VirtualLayout(file["betas"].shape, np.int16)
        layout[:] = h5py.VirtualSource(outside, "betas", layout.shape)
        del file["betas"]
        file.create_virtual_dataset("betas", layout)

    return change


def stored_outside(file):
    shape = file["betas"].shape
    del file["betas"]
    file.create_dataset("betas", shape, np.int16, external=[("/etc/passwd", 0, 1440)])


def cell_outside(file):
    cells = file["#refs#"]
    for name in list(cells):
        del cells[name]
    foreign = cells.create_dataset("c0", (30, 1), np.uint16, external=[("/etc/passwd", 0, 60)])
    file["train_imgs/things_path"][:, 0] = [foreign.ref] * 12


def design(change):
    def way(source):
        file = source / "nsddata" / "experiments" / "nsd" / "nsd_expdesign.mat"
        arrays = {key: array for key, array in scipy.io.loadmat(file).items() if not key.startswith("__")}
        change(arrays)
        scipy.io.savemat(file, arrays)

    return way


def rewritten(file, change):
    file.write_bytes(change(file.read_bytes()))


def training(source):
    return source / "subj01" / "training_split"


SPOILED = {
    "nsd truncated": (
        "nsd",
        lambda s: os.truncate(betas(s) / "betas_session02.hdf5", 3000),
        "session02.hdf5 cannot be",
    ),
    "nsd truncated NIfTI": (
        "nsd",
        lambda s: rewritten(betas(s, "subj02") / "betas_session01.nii.gz", lambda content: content[:-200]),
        "session01.nii.gz cannot be read",
    ),
    "nsd float betas": (
        "nsd",
        lambda s: with_hdf5(betas(s) / "betas_session01.hdf5", replaced("betas", lambda f: np.zeros((6, 6, 4, 5)))),
        "type float64: int16 .* is expected",
    ),
    "nsd short session": (
        "nsd",
        lambda s: with_hdf5(
            betas(s) / "betas_session02.hdf5", replaced("betas", lambda f: np.zeros((5, 6, 4, 5), np.int16))
        ),
        r"has shape \(5, 4, 6, 5\): \(5, 4, 6, 6\)",
    ),
    "nsd axes not reversed": (
        "nsd",
        lambda s: with_hdf5(
            betas(s) / "betas_session01.hdf5", replaced("betas", lambda f: np.zeros((5, 4, 6, 6), np.int16))
        ),
        "is expected",
    ),
    "nsd no session": (
        "nsd",
        lambda s: [shutil.rmtree(betas(s, name)) for name in ("subj01", "subj02")],
        "no responses",
    ),
    "nsd ordering from 0": (
        "nsd",
        design(lambda a: a.update(masterordering=a["masterordering"] - 1)),
        "masterordering .* runs from 0 to 9: .* 1 to 10 are expected",
    ),
    "nsd images from 0": (
        "nsd",
        design(lambda a: a.update(subjectim=a["subjectim"] - a["subjectim"].min())),
        "subjectim .* runs from 0",
    ),
    "nsd images beyond": (
        "nsd",
        design(lambda a: a["subjectim"].__setitem__((0, 0), 31)),
        "runs from .* to 31: .* 1 to 30",
    ),
    "nsd session beyond": (
        "nsd",
        lambda s: (betas(s) / "betas_session04.hdf5").rename(betas(s) / "betas_session41.hdf5"),
        "session41.hdf5 is beyond",
    ),
    "nsd link outside": (
        "nsd",
        lambda s: with_hdf5(
            betas(s) / "betas_session01.hdf5", replaced("betas", h5py.ExternalLink("/etc/passwd", "betas"))
        ),
        "is a link: only values that lie in the file itself",
    ),
    "nsd virtual": (
        "nsd",
        lambda s: with_hdf5(betas(s) / "betas_session01.hdf5", virtual("/elsewhere.hdf5")),
        "lies in other files",
    ),
    "nsd stored outside": (
        "nsd",
        lambda s: with_hdf5(betas(s) / "betas_session01.hdf5", stored_outside),
        "lies in other files",
    ),
    "nsd mask of another grid": (
        "nsd",
        lambda s: layouts.nifti(
            np.ones((5, 4, 7), np.int16), s / "nsddata/ppdata/subj01/func1pt8mm/roi/nsdgeneral.nii.gz"
        ),
        r"\(5, 4, 7, 6\) \(x, y, z, trials\) is expected",
    ),
    "challenge pickled": (
        "algonauts_challenge",
        lambda s: np.save(
            training(s) / "training_fmri" / "lh_training_fmri.npy", np.array([{}], dtype=object), allow_pickle=True
        ),
        "lh_training_fmri.npy cannot be read .*Python objects",
    ),
    "challenge double": (
        "algonauts_challenge",
        lambda s: np.save(training(s) / "training_fmri" / "lh_training_fmri.npy", np.zeros((12, 7))),
        "type float64: float32 .* is expected",
    ),
    "challenge with another subject's vertices": (
        "algonauts_challenge",
        lambda s: shutil.copy(
            s / "subj06" / "roi_masks" / "lh.all-vertices_fsaverage_space.npy", s / "subj01" / "roi_masks"
        ),
        r"marks 6 vertices: numbers of shape \(163842,\) that mark the 7 vertices of the responses are expected",
    ),
    "challenge from 0": (
        "algonauts_challenge",
        lambda s: next((training(s) / "training_images").glob("train-0001_*")).rename(
            training(s) / "training_images" / "train-0000_nsd-00100.png"
        ),
        "names row 0000 of 1 to 12: these numbers count from 1",
    ),
    "challenge beyond": (
        "algonauts_challenge",
        lambda s: next((training(s) / "training_images").glob("train-0012_*")).rename(
            training(s) / "training_images" / "train-0013_nsd-00007.png"
        ),
        "names row 0013 of 1 to 12",
    ),
    "challenge unreadable image": (
        "algonauts_challenge",
        lambda s: next((training(s) / "training_images").glob("train-0008_*")).write_text("no image"),
        "the image nsd-00003 cannot be read as an image",
    ),
    "processed without testval": (
        "algonauts_processed",
        lambda s: shutil.rmtree(s / "processed" / "size-256" / "testval"),
        "no trial in test: draw the splits with --test-fraction 0.1",
    ),
    "god float32": (
        "god",
        lambda s: with_hdf5(s / "Subject1.h5", replaced("dataset", lambda f: np.zeros((22, 17), np.float32))),
        "type float32: float64 .* Label has 13 digits",
    ),
    "bold5000 climbing name": (
        "bold5000",
        lambda s: rewritten(
            s / "BOLD5000_Stimuli" / "Stimuli_Presentation_Lists" / "CSI1" / "CSI1_imgnames.txt",
            lambda c: c.replace(b"airport1", b"../../../airport1"),
        ),
        "a plain name without folders is expected",
    ),
    "things climbing name": (
        "things",
        lambda s: rewritten(
            s / "betas_csv" / "sub-01_StimulusMetadata.csv", lambda c: c.replace(b"bus_02s.jpg", b"/etc/passwd")
        ),
        "names the file '/etc/passwd'",
    ),
    "things trials from 1": (
        "things",
        lambda s: (
            pd.read_csv(s / "betas_csv" / "sub-01_StimulusMetadata.csv")
            .assign(trial_id=range(1, 22))
            .to_csv(s / "betas_csv" / "sub-01_StimulusMetadata.csv", index=False)
        ),
        r"1 column \(0\) of sub-01_ResponseData.h5 without a row",
    ),
    "things truncated image": (
        "things",
        lambda s: os.truncate(s / "images" / "bus" / "bus_02s.jpg", 400),
        "bus_02s",
    ),
    "things NaN": (
        "things",
        lambda s: with_hdf5(
            s / "betas_csv" / "sub-01_ResponseData.h5",
            lambda f: f["ResponseData/block0_values"].__setitem__((3, 4), np.nan),
        ),
        r"1 NaN or infinite values in 1 voxel \(3\)",
    ),
    "laion-fmri short table of trials": (
        "laion_fmri",
        lambda s: rewritten(
            next(s.glob("derivatives/*/sub-03/ses-01/func/*.tsv")), lambda c: c[: c[:-1].rindex(b"\n")]
        ),
        r"has shape \(5, 4, 6, 9\) and type float32: numbers \(5, 4, 6, 8\), a volume for each row",
    ),
    "laion-fmri trials from 1": (
        "laion_fmri",
        lambda s: rewritten(
            next(s.glob("derivatives/*/sub-03/ses-01/func/*.tsv")), lambda c: c.replace(b"\t0\t", b"\t9\t")
        ),
        "beta_index of .* must count the 9 trials from 0",
    ),
    "laion-fmri truncated betas": (
        "laion_fmri",
        lambda s: rewritten(
            next(s.glob("derivatives/*/sub-01/ses-03/func/*_statmap.nii.gz")), lambda content: content[:-200]
        ),
        "SingletrialBetas_statmap.nii.gz cannot be read",
    ),
    "laion-fmri region of another grid": (
        "laion_fmri",
        lambda s: layouts.nifti(
            np.ones((6, 5, 7), np.uint8), next(s.glob("derivatives/rois/sub-01/*/*1pt8_label-V1v_mask.nii.gz"))
        ),
        r"has shape \(6, 5, 7\), the betas have \(5, 4, 6\)",
    ),
    "laion-fmri an image too few": (
        "laion_fmri",
        lambda s: with_hdf5(
            s / "stimuli" / "task-images_stimuli.h5",
            replaced("images", lambda f: np.zeros(3, np.uint8)),
        ),
        "an encoded image for each of the 11 rows of task-images_metadata.csv is expected",
    ),
    "mosaic fsaverage": (
        "mosaic_small",
        lambda s: None,  # 16 numbers a trial, as long as the test does not say otherwise
        r"has shape \(16,\) and type float64: 91282 .* the grayordinates of fsLR 32k",
    ),
    "mosaic link outside": (
        "mosaic",
        lambda s: with_hdf5(s / "sub-01_GOD.hdf5", replaced("betas", h5py.ExternalLink("/etc/passwd", "betas"))),
        "betas of .* is a link: only values that lie in the file itself",
    ),
    "mosaic other names": (
        "mosaic_small",
        lambda s: with_hdf5(s / "sub-01_GOD.hdf5", lambda f: f["betas"].move(next(iter(f["betas"])), "trial-1")),
        "holds trial-1: sub-01_GOD_stimulus-NAME_phase-train_rep-0 is expected",
    ),
    "tvsd fewer electrodes": (
        "tvsd",
        lambda s: with_hdf5(s / "monkeyN" / "THINGS_normMUA.mat", replaced("train_MUA", lambda f: np.zeros((12, 512)))),
        r"has shape \(512, 12\) .* \(electrodes, images\) are expected, with 1024 electrodes and the 12 images",
    ),
    "tvsd averaged repeats": (
        "tvsd",
        lambda s: with_hdf5(
            s / "monkeyN" / "THINGS_normMUA.mat", replaced("test_MUA_reps", lambda f: f["test_MUA"][:])
        ),
        r"\(electrodes, images, repeats\) are expected",
    ),
    "tvsd names in another file": (
        "tvsd",
        lambda s: with_hdf5(s / "monkeyF" / "_logs" / "things_imgs.mat", cell_outside),
        "a cell of train_imgs/things_path .* lies in other files",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_what_is_broken_leaves_one_line_and_no_folder(tmp_path, refused, case):
    writer, spoil, message = SPOILED[case]
    source = tmp_path / "source"
    source.mkdir()
    getattr(layouts, writer)(source)
    spoil(source)
    layout = LAYOUTS.get(writer, writer)
    for flags in ([], ["--num-proc", 2]) if case == "nsd truncated NIfTI" else ([],):
        refused(lambda flags=flags: prepare(layout, source, tmp_path / "out", *flags), message)
        assert [file.name for file in tmp_path.iterdir()] == ["source"]


@of("nsd")
def test_without_nibabel_the_extra_is_named(source, tmp_path, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "nibabel", None)
    refused(lambda: prepare("nsd", source, tmp_path / "out"), r"needs nibabel: pip install 'visionflow-hf\[brain\]'")


@of("nsd")
def test_an_existing_corpus_stays_without_overwrite(source, tmp_path, refused):
    assert prepare("nsd", source, tmp_path / "out", "--subjects", "subj02") == 0
    refused(lambda: prepare("nsd", source, tmp_path / "out"), "pass --overwrite")
    assert prepare("nsd", source, tmp_path / "out", "--overwrite") == 0
    assert open_corpus(tmp_path / "out").subjects.keys() == {"subj01", "subj02"}


@of("nsd")
def test_killed_at_any_moment_it_leaves_nothing_or_the_whole(source, tmp_path):
    out = tmp_path / "out"
    assert prepare("nsd", source, out) == 0  # loads the libraries, so that what is killed is the import itself
    expected = rows_of(out)
    shutil.rmtree(out)
    start = time.monotonic()
    os.waitpid(begin(source, out), 0)
    seconds = time.monotonic() - start
    shutil.rmtree(out)
    killed = 0
    for moment in np.random.default_rng(0).uniform(0, seconds, 20):
        child = begin(source, out)
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
        if out.exists():
            assert rows_of(out).keys() == expected.keys()
            shutil.rmtree(out)
        assert prepare("nsd", source, out) == 0
        assert rows_of(out).keys() == expected.keys()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
        shutil.rmtree(out)
    assert killed > 5


def begin(source, out) -> int:
    """The process of an import that has just begun."""
    child = os.fork()
    if child == 0:
        tqdm.set_lock(RLock())  # its own: killed with the one that forks share, it would never give it back
        os._exit(prepare("nsd", source, out))
    return child


@of("nsd")
def test_the_processes_of_a_killed_import_end_too(source, tmp_path):
    words = ["prepare", "nsd", str(source), str(tmp_path / "out"), "--num-proc", "2"]
    started = subprocess.Popen([sys.executable, "-m", "visionflow_hf.cli", *words], stdout=subprocess.DEVNULL)
    workers = []
    while not workers and started.poll() is None:
        time.sleep(0.01)
        with contextlib.suppress(psutil.Error):  # a process that has just gone
            everyone = psutil.Process(started.pid).children()
            workers = [one for one in everyone if "spawn_main" in " ".join(one.cmdline())]
    assert workers
    started.kill()
    started.wait()
    assert psutil.wait_procs(workers, timeout=20)[1] == []
    assert not (tmp_path / "out").exists()
