"""`prepare arrays`: every layout gives the same corpus, and what does not fit leaves one line and no folder."""

import struct
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from conftest import REAL_DATA

from visionflow_hf.cli import main
from visionflow_hf.corpus.mat5 import load_mat5
from visionflow_hf.corpus.responses import images_of, responses_of
from visionflow_hf.corpus.schema import open_corpus

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 5, 4), dtype=np.uint8)  # 5 high, 4 wide: a transposed image is seen
COLOUR = RNG.integers(0, 256, (12, 5, 4, 3), dtype=np.uint8)
FMRI = RNG.normal(size=(12, 6))


def matlab73(path, **arrays):
    """A MATLAB v7.3 file: HDF5 with a user block, in which h5py sees every array with reversed axes."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            file[name] = np.asarray(array).T
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


def npz(path, **arrays):
    np.savez(path, **arrays)


def hdf5(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


def mat5(path, **arrays):
    scipy.io.savemat(path, arrays)


WRITERS = {"data.npz": npz, "data.h5": hdf5, "five.mat": mat5, "seven.mat": matlab73}


def prepare(path, out, *flags) -> int:
    return main(["prepare", "arrays", str(path), str(out), "--images", "images", "--fmri", "fmri", *map(str, flags)])


def test_a_member_of_an_npz_that_is_no_array(tmp_path, refused):
    npz(tmp_path / "d.npz", images=IMAGES)
    with zipfile.ZipFile(tmp_path / "d.npz", "a") as file:
        file.writestr("fmri.npy", b"no array")
    refused(lambda: prepare(tmp_path / "d.npz", tmp_path / "out"), "d.npz cannot be read .*fmri is no array")


def trials(out):
    """All trials of both splits, sorted by their first voxel: (images, fmri, stimulus ids)."""
    corpus = open_corpus(out)
    images, fmri, ids = [], [], []
    for rows in corpus.splits.values():
        (subject,) = corpus.subjects
        part = responses_of(rows, subject)
        images += [np.asarray(picture) for picture in images_of(rows, part.stimulus_ids)]
        fmri.append(part.fmri)
        ids += part.stimulus_ids
    fmri = np.concatenate(fmri)
    order = np.argsort(fmri[:, 0])
    return np.stack(images)[order], fmri[order], [ids[row] for row in order]


def assert_same(out, images=IMAGES, fmri=FMRI):
    order = np.argsort(fmri[:, 0].astype(np.float32))
    seen_images, seen_fmri, _ = trials(out)
    assert np.array_equal(seen_images, images[order])
    assert np.array_equal(seen_fmri, fmri[order].astype(np.float32))


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    "stored, flags",
    [
        (IMAGES, []),
        (IMAGES[..., None], []),
        (IMAGES.reshape(12, -1), ["--image-shape", 5, 4]),
        (IMAGES.transpose(0, 2, 1).reshape(12, -1), ["--image-shape", 5, 4, "--column-major"]),
        (IMAGES.astype(np.float64), []),
        (IMAGES / 255, []),
    ],
    ids=["stacked", "one channel", "flat", "column-major", "float 0..255", "float 0..1"],
)
def test_every_file_and_layout_gives_the_same_corpus(tmp_path, name, stored, flags):
    WRITERS[name](tmp_path / name, images=stored, fmri=FMRI)
    assert prepare(tmp_path / name, tmp_path / "out", *flags) == 0
    assert_same(tmp_path / "out")


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    "stored, flags",
    [
        (COLOUR, []),
        (COLOUR.transpose(0, 3, 1, 2), []),
        (COLOUR.reshape(12, -1), ["--image-shape", 5, 4, 3]),
        (COLOUR.transpose(0, 3, 2, 1).reshape(12, -1), ["--image-shape", 5, 4, 3, "--column-major"]),
    ],
    ids=["channels last", "channels first", "flat", "column-major"],
)
def test_colour_in_every_layout(tmp_path, name, stored, flags):
    WRITERS[name](tmp_path / name, images=stored, fmri=FMRI)
    assert prepare(tmp_path / name, tmp_path / "out", *flags) == 0
    assert_same(tmp_path / "out", COLOUR)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ((IMAGES / 255).astype(np.float32) * np.float32(1 + 5e-4), IMAGES),
        (IMAGES / 255 - 5e-4, IMAGES),
        (IMAGES * (1 + 5e-4), IMAGES),
        (IMAGES.astype(np.uint16) * 257, IMAGES),
        (IMAGES.astype(">u2") * 257, IMAGES),
        (IMAGES.astype(np.uint16), IMAGES),
        (IMAGES.astype(np.int64), IMAGES),
        (IMAGES > 99, np.where(IMAGES > 99, 255, 0)),
        ((IMAGES > 99).astype(np.uint8), np.where(IMAGES > 99, 255, 0)),
    ],
    ids=[
        "just over 1",
        "just below 0",
        "just over 255",
        "16 bits",
        "big-endian",
        "8 of 16 bits",
        "int64",
        "bool",
        "0, 1",
    ],
)
def test_pixels_of_every_type_and_range(tmp_path, stored, expected):
    npz(tmp_path / "d.npz", images=stored, fmri=FMRI)
    assert prepare(tmp_path / "d.npz", tmp_path / "out") == 0
    seen, _, _ = trials(tmp_path / "out")
    assert np.abs(seen.astype(int) - expected[np.argsort(FMRI[:, 0])]).max() <= 0


def test_what_matlab_saves_beside_plain_arrays(tmp_path, refused):
    flat = scipy.sparse.csc_matrix(IMAGES.reshape(12, -1))
    scipy.io.savemat(
        tmp_path / "d.mat", {"images": flat, "fmri": scipy.sparse.csc_matrix(FMRI), "s": {"a": {"f": FMRI}}}
    )
    assert prepare(tmp_path / "d.mat", tmp_path / "out", "--image-shape", 5, 4) == 0
    assert_same(tmp_path / "out")
    flags = ["--image-shape", 5, 4, "--overwrite", "--fmri"]
    assert prepare(tmp_path / "d.mat", tmp_path / "out", *flags, "s/a/f") == 0
    assert_same(tmp_path / "out")
    for key, message in (
        ("s", "s of .*d.mat is a struct: give one of its fields, s/a"),
        ("s/b", "s of .*d.mat has no field b: its fields are a"),
        ("s/a/f/g", "s/a/f of .*d.mat has no field g: its fields are none"),
        ("t/a", "has no t: its keys are fmri, images, s"),
    ):
        refused(lambda key=key: prepare(tmp_path / "d.mat", tmp_path / "no", *flags, key), message)


def test_a_variable_that_scipy_cannot_list_is_no_obstacle(tmp_path, refused):
    """MATLAB's strings, tables and dates are objects whose name `whosmat` does not find."""

    def element(kind, data):
        return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)

    mat5(tmp_path / "d.mat", images=IMAGES, fmri=FMRI)
    words = np.array([0xDD000000, 2, 1, 1, 1, 1], dtype="<u4").tobytes()
    shape = element(6, struct.pack("<II", 13, 0)) + element(5, struct.pack("<ii", 6, 1)) + element(1, b"")
    opaque = element(6, struct.pack("<II", 17, 0)) + element(1, b"names") + element(1, b"MCOS") + element(1, b"string")
    with open(tmp_path / "d.mat", "ab") as file:
        file.write(element(14, opaque + element(14, shape + element(6, words))))
    assert prepare(tmp_path / "d.mat", tmp_path / "out") == 0
    assert_same(tmp_path / "out")
    refused(lambda: prepare(tmp_path / "d.mat", tmp_path / "no", "--fmri", "x"), "has no x: its keys are fmri, images")


@pytest.mark.parametrize("kind", ["char", "cell"])
def test_names_in_a_char_matrix_or_a_cell_of_numbers(tmp_path, kind):
    path, names = tmp_path / "d.mat", [f"im{number:02d}" for number in range(12)]
    matlab73(path, images=IMAGES, fmri=FMRI)
    with h5py.File(path, "r+") as file:
        if kind == "char":
            codes = np.array([list(map(ord, name)) for name in names], dtype=np.uint16)
            file.create_dataset("names", data=codes.T).attrs["MATLAB_class"] = np.bytes_("char")
        else:
            cells = file.create_dataset("names", (1, 12), dtype=h5py.ref_dtype)
            for number in range(12):
                cells[0, number] = file.create_dataset(f"#refs#/{number}", data=[[number + 1.0]]).ref
    assert prepare(path, tmp_path / "out", "--stimulus-ids", "names") == 0
    assert set(trials(tmp_path / "out")[2]) == set(names if kind == "char" else map(str, range(1, 13)))


def test_splits_that_share_images_are_drawn_anew_on_request(tmp_path):
    shown = IMAGES[np.arange(12) % 6]
    npz(tmp_path / "d.npz", images=shown[:6], fmri=FMRI[:6], ti=shown[6:], tf=FMRI[6:])
    flags = ["--test-images", "ti", "--test-fmri", "tf", "--test-fraction", 0.4]
    assert prepare(tmp_path / "d.npz", tmp_path / "out", *flags) == 0
    splits = open_corpus(tmp_path / "out").splits
    assert len(splits["train"]) + len(splits["test"]) == 12 and len(splits["test"]) % 2 == 0
    assert not set(splits["train"]["stimulus_id"]) & set(splits["test"]["stimulus_id"])


def test_a_group_of_an_hdf5_file_and_a_subject_of_ones_own(tmp_path):
    hdf5(tmp_path / "data.h5", **{"s1/im": IMAGES, "s1/resp": FMRI})
    out = tmp_path / "out"
    flags = ["--images", "s1/im", "--fmri", "s1/resp", "--subject", "ann"]
    assert main(["prepare", "arrays", str(tmp_path / "data.h5"), str(out), *flags]) == 0
    assert open_corpus(out).subjects == {"ann": 6}


def test_given_splits_are_kept(tmp_path):
    npz(tmp_path / "d.npz", images=IMAGES[:8], fmri=FMRI[:8], ti=IMAGES[8:], tf=FMRI[8:])
    assert prepare(tmp_path / "d.npz", tmp_path / "out", "--test-images", "ti", "--test-fmri", "tf") == 0
    test = responses_of(open_corpus(tmp_path / "out").splits["test"], "subj01")
    assert np.array_equal(test.fmri, FMRI[8:].astype(np.float32))


def test_splits_are_drawn_by_stimulus_and_repeats_numbered(tmp_path):
    npz(tmp_path / "d.npz", images=np.tile(IMAGES[:6], (2, 1, 1)), fmri=FMRI)
    assert prepare(tmp_path / "d.npz", tmp_path / "out", "--test-fraction", 0.34) == 0
    splits = open_corpus(tmp_path / "out").splits
    number = len(splits["test"]) // 2
    assert 1 <= number <= 4 and sorted(splits["test"]["repeat"]) == [0] * number + [1] * number
    assert not set(splits["test"]["stimulus_id"]) & set(splits["train"]["stimulus_id"])


def test_averaged_repeats_and_their_ceiling(tmp_path):
    signal = RNG.normal(size=(50, 4))
    fmri = np.repeat(signal, 4, axis=0) + RNG.normal(size=(200, 4))
    images = np.repeat(RNG.integers(0, 256, (50, 5, 4), dtype=np.uint8), 4, axis=0)
    npz(tmp_path / "d.npz", images=images, fmri=fmri)
    assert prepare(tmp_path / "d.npz", tmp_path / "kept", "--keep-repeats") == 0
    assert prepare(tmp_path / "d.npz", tmp_path / "averaged", "--average-repeats") == 0
    kept, averaged = open_corpus(tmp_path / "kept"), open_corpus(tmp_path / "averaged")
    assert sum(map(len, kept.splits.values())) == 200 and sum(map(len, averaged.splits.values())) == 50
    means, ids, _ = (lambda part: (part[0].fmri, part[0].stimulus_ids, part[1]))(
        responses_of(kept.splits["train"], "subj01").averaged()
    )
    stored = responses_of(averaged.splits["train"], "subj01")
    assert stored.stimulus_ids == ids
    np.testing.assert_allclose(stored.fmri, means, rtol=1e-6)
    # signal and noise variance are 1: a trial's ceiling is 1 / 2, that of a mean of four is 4 / 5
    np.testing.assert_allclose(kept.voxels_of("subj01")["noise_ceiling"], 0.5, atol=0.15)
    np.testing.assert_allclose(averaged.voxels_of("subj01")["noise_ceiling"], 0.8, atol=0.12)


@pytest.mark.parametrize(
    "name, kind",
    [
        (name, kind)
        for name in WRITERS
        for kind in ("numbers", "floats", "text")
        if (name, kind) != ("seven.mat", "text")
    ],
)
def test_stimulus_names_become_text(tmp_path, name, kind):
    numbers = np.arange(100, 112)
    names = {"numbers": numbers, "floats": numbers.astype(float), "text": np.array([f"im{n}" for n in numbers])}[kind]
    if kind == "text":
        names = names.astype(object) if name == "five.mat" else names.astype("S") if name == "data.h5" else names
    WRITERS[name](tmp_path / name, images=IMAGES, fmri=FMRI, names=names)
    assert prepare(tmp_path / name, tmp_path / "out", "--stimulus-ids", "names") == 0
    expected = {f"im{n}" if kind == "text" else str(n) for n in numbers}
    assert set(trials(tmp_path / "out")[2]) == expected


def test_the_cells_of_a_matlab_file_become_text(tmp_path):
    path = tmp_path / "seven.mat"
    matlab73(path, images=IMAGES, fmri=FMRI)
    with h5py.File(path, "r+") as file:
        cells = file.create_dataset("names", (1, 12), dtype=h5py.ref_dtype)
        for index in range(12):
            text = np.array([[ord(letter)] for letter in f"im{index}"], dtype=np.uint16)
            cells[0, index] = file.create_dataset(f"#refs#/{index}", data=text).ref
    assert prepare(path, tmp_path / "out", "--stimulus-ids", "names") == 0
    assert set(trials(tmp_path / "out")[2]) == {f"im{index}" for index in range(12)}


@pytest.mark.parametrize(
    "names, flags", [(np.arange(12), []), (np.arange(8), []), (np.arange(8), ["--test-stimulus-ids", "tn"])]
)
def test_names_with_given_splits(tmp_path, names, flags):
    splits = {"images": IMAGES[:8], "fmri": FMRI[:8], "ti": IMAGES[8:], "tf": FMRI[8:]}
    npz(tmp_path / "d.npz", **splits, n=names, tn=np.arange(8, 12))
    keys = ["--test-images", "ti", "--test-fmri", "tf", "--stimulus-ids", "n", *flags]
    assert prepare(tmp_path / "d.npz", tmp_path / "out", *keys) == 0
    splits = open_corpus(tmp_path / "out").splits
    assert splits["train"]["stimulus_id"][:] == [str(n) for n in range(8)]
    if len(names) == 12 or flags:
        assert splits["test"]["stimulus_id"][:] == ["8", "9", "10", "11"]
    else:
        assert all(len(name) == 16 for name in splits["test"]["stimulus_id"])


def test_a_constant_voxel_is_kept_and_reported(tmp_path, capsys):
    fmri = FMRI.copy()
    fmri[:, 2] = 7
    npz(tmp_path / "d.npz", images=IMAGES, fmri=fmri)
    assert prepare(tmp_path / "d.npz", tmp_path / "out") == 0
    assert "1 voxel (2) constant in train" in capsys.readouterr().out
    assert open_corpus(tmp_path / "out").subjects == {"subj01": 6}


def spoiled(array, place, value):
    array = np.array(array, dtype=float)
    array[place] = value
    return array


HOSTILE = {
    "missing key": ({"images": IMAGES, "resp": FMRI}, [], "has no fmri: its keys are images, resp"),
    "counts": ({"images": IMAGES[:11], "fmri": FMRI}, [], "images has 11 images, fmri has 12 responses"),
    "flat": ({"images": IMAGES.reshape(12, 20), "fmri": FMRI}, [], "flat rows of 20 pixels: say --image-shape"),
    "shape": ({"images": IMAGES.reshape(12, 20), "fmri": FMRI}, ["--image-shape", 5, 5], "5 5 makes 25 pixels"),
    "stacked shape": ({"images": IMAGES, "fmri": FMRI}, ["--image-shape", 4, 5], "4 5 does not fit"),
    "NaN": (
        {"images": IMAGES, "fmri": spoiled(FMRI, (3, 4), np.nan)},
        [],
        r"1 NaN or infinite values in 1 voxel \(4\)",
    ),
    "infinite": ({"images": IMAGES, "fmri": spoiled(FMRI, (3, [1, 5]), np.inf)}, [], r"2 .* in 2 voxels \(1, 5\)"),
    "range": ({"images": IMAGES * 2.0, "fmri": FMRI}, [], "0..1 or 0..255 is expected"),
    "ambiguous": ({"images": IMAGES / 200.0, "fmri": FMRI}, [], r"pixel values \(float64\) run from 0.* clip or scale"),
    "dark": ({"images": IMAGES / 50.0, "fmri": FMRI}, [], "run from .*: 0..1 or 0..255 is expected"),
    "12 bits": ({"images": IMAGES.astype(np.uint16) * 16, "fmri": FMRI}, [], r"\(uint16\) run from .* 0..65535 is exp"),
    "two ranges": (
        {"images": IMAGES[:8], "fmri": FMRI[:8], "ti": IMAGES[8:] / 255, "tf": FMRI[8:]},
        ["--test-images", "ti", "--test-fmri", "tf"],
        r"pixel values are 0..255 \(uint8\) and 0..1 \(float64\) in train and test",
    ),
    "trials last": (
        {"images": IMAGES.reshape(12, 20).T, "fmri": FMRI.T},
        ["--image-shape", 5, 4],
        r"images has shape \(20, 12\), fmri has \(6, 12\): the first axis must count trials.* transpose",
    ),
    "negative": ({"images": IMAGES / 255.0 - 0.5, "fmri": FMRI}, [], "0..1 or 0..255 is expected"),
    "image NaN": ({"images": spoiled(IMAGES, 0, np.nan), "fmri": FMRI}, [], "0..1 or 0..255 is expected"),
    "channels": ({"images": np.zeros((12, 5, 4, 2), np.uint8), "fmri": FMRI}, [], "2 channels"),
    "dimensions": ({"images": np.zeros(12, np.uint8), "fmri": FMRI}, [], r"images has shape \(12,\)"),
    "3-d fmri": ({"images": IMAGES, "fmri": FMRI[..., None]}, [], r"fmri has shape \(12, 6, 1\)"),
    "one test key": (
        {"images": IMAGES, "fmri": FMRI},
        ["--test-images", "images"],
        "both --test-images and --test-fmri",
    ),
    "names": ({"images": IMAGES, "fmri": FMRI, "n": np.arange(5)}, ["--stimulus-ids", "n"], "n has 5 entries for 12"),
    "two images": (
        {"images": IMAGES, "fmri": FMRI, "n": [1] * 12},
        ["--stimulus-ids", "n"],
        "1 of n has several images",
    ),
    "fraction": ({"images": IMAGES, "fmri": FMRI}, ["--test-fraction", 1.5], "between 0 and 1"),
    "voxels": (
        {"images": IMAGES[:8], "fmri": FMRI[:8], "ti": IMAGES[8:], "tf": FMRI[8:, :5]},
        ["--test-images", "ti", "--test-fmri", "tf"],
        "fmri has 6 voxels, tf has 5",
    ),
    "leak by pixels": (
        {"images": IMAGES[:8], "fmri": FMRI[:8], "ti": IMAGES[7:], "tf": FMRI[7:]},
        ["--test-images", "ti", "--test-fmri", "tf"],
        r"1 stimulus \([0-9a-f]{16}\) in both train and test: .* --test-fraction 0.1",
    ),
    "leak by name": (
        {
            "images": IMAGES[:8],
            "fmri": FMRI[:8],
            "ti": IMAGES[8:],
            "tf": FMRI[8:],
            "n": np.arange(8),
            "tn": [3, 4, 20, 21],
        },
        ["--test-images", "ti", "--test-fmri", "tf", "--stimulus-ids", "n", "--test-stimulus-ids", "tn"],
        r"2 stimuli \(3, 4\) in both train and test",
    ),
    "leak under two names": (
        {
            "images": IMAGES[:8],
            "fmri": FMRI[:8],
            "ti": IMAGES[7:],
            "tf": FMRI[7:],
            "n": np.arange(8),
            "tn": np.arange(20, 25),
        },
        ["--test-images", "ti", "--test-fmri", "tf", "--stimulus-ids", "n", "--test-stimulus-ids", "tn"],
        r"7 = 20 \(same pixels\)",
    ),
    "leak of grey images in colour": (
        {
            "images": IMAGES[:8],
            "fmri": FMRI[:8],
            "ti": np.repeat(IMAGES[7:, ..., None], 3, axis=-1),
            "tf": FMRI[7:],
            "n": np.arange(8),
            "tn": np.arange(20, 25),
        },
        ["--test-images", "ti", "--test-fmri", "tf", "--stimulus-ids", "n", "--test-stimulus-ids", "tn"],
        r"7 = 20 \(same pixels\)",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_does_not_fit_leaves_one_line_and_no_folder(tmp_path, capsys, refused, case):
    arrays, flags, message = HOSTILE[case]
    npz(tmp_path / "d.npz", **arrays)
    refused(lambda: prepare(tmp_path / "d.npz", tmp_path / "out", *flags), message)
    assert [file.name for file in tmp_path.iterdir()] == ["d.npz"]


@pytest.mark.parametrize("name", ["broken.npz", "broken.mat", "broken.h5", "other.txt"])
def test_files_that_cannot_be_read(tmp_path, refused, name):
    (tmp_path / name).write_bytes(b"no such thing" * 20)
    refused(lambda: prepare(tmp_path / name, tmp_path / "out"), name)


def test_a_truncated_file(tmp_path, refused):
    for name, write in WRITERS.items():
        write(tmp_path / name, images=IMAGES, fmri=FMRI)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        refused(lambda name=name: prepare(tmp_path / name, tmp_path / "out"), name)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", ["type", "type of a compressed one", "complex"])
def test_what_would_make_scipy_end_the_process(tmp_path, refused, change):
    mat5(tmp_path / "five.mat", images=IMAGES, fmri=FMRI, others=FMRI)
    content = bytearray((tmp_path / "five.mat").read_bytes())
    tag = content.index(FMRI.tobytes(order="F")) - 8
    begin, end = tag - 48, tag + 8 + FMRI.nbytes
    assert content[begin : begin + 4] == struct.pack("<I", 14)
    if change == "complex":
        content[begin + 17] |= 8  # of the flags: scipy would take the next variable for the imaginary part
    else:
        content[tag + 1] = 0x31  # scipy would look far behind its table of types
    if "compressed" in change:
        packed = zlib.compress(content[begin:end])
        content[begin:end] = struct.pack("<II", 15, len(packed)) + packed
    (tmp_path / "five.mat").write_bytes(content)
    refused(lambda: prepare(tmp_path / "five.mat", tmp_path / "out"), r"five.mat cannot be read \(an element of")
    assert not (tmp_path / "out").exists()


def test_cells_within_cells_without_end(tmp_path):
    cell = np.zeros((1, 1))
    for _ in range(120):
        outer = np.empty((1, 1), dtype=object)
        outer[0, 0] = cell
        cell = outer
    mat5(tmp_path / "five.mat", fmri=FMRI, cells=cell)
    assert np.array_equal(load_mat5(tmp_path / "five.mat", ["fmri"])["fmri"], FMRI)
    with pytest.raises(ValueError, match="nested deeper than 100"):
        load_mat5(tmp_path / "five.mat")


MATLAB = sorted((Path(scipy.io.__file__).parent / "matlab" / "tests" / "data").glob("*.mat"))


@pytest.mark.skipif(not MATLAB, reason="this scipy comes without its tests")
def test_no_file_of_matlab_that_scipy_reads_is_refused():
    for file in MATLAB:
        try:
            expected = scipy.io.loadmat(file)
        except Exception:
            continue
        assert load_mat5(file).keys() == expected.keys()


def test_values_that_lie_in_other_files_are_refused(tmp_path, refused):
    hdf5(tmp_path / "other.h5", fmri=FMRI)
    layout = h5py.VirtualLayout(FMRI.shape, float)
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "fmri", FMRI.shape)
    hdf5(tmp_path / "virtual.h5", images=IMAGES)
    hdf5(tmp_path / "linked.h5", images=IMAGES)
    with h5py.File(tmp_path / "virtual.h5", "r+") as file:
        file.create_virtual_dataset("fmri", layout)
    with h5py.File(tmp_path / "linked.h5", "r+") as file:
        file["fmri"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "fmri")
    refused(lambda: prepare(tmp_path / "virtual.h5", tmp_path / "out"), "fmri of .* lies in other files")
    refused(lambda: prepare(tmp_path / "linked.h5", tmp_path / "out"), "has no fmri: its keys are images")


def test_pickled_arrays_are_refused(tmp_path, refused):
    np.savez(tmp_path / "d.npz", images=np.array([{"a": 1}], dtype=object), fmri=FMRI)
    refused(lambda: prepare(tmp_path / "d.npz", tmp_path / "out"), "cannot be read")


def test_an_existing_corpus_is_replaced_only_on_request(tmp_path, refused):
    npz(tmp_path / "d.npz", images=IMAGES, fmri=FMRI)
    out = tmp_path / "out"
    assert prepare(tmp_path / "d.npz", out) == 0
    refused(lambda: prepare(tmp_path / "d.npz", out), "pass --overwrite")
    npz(tmp_path / "d.npz", images=IMAGES, fmri=FMRI * 2)
    assert prepare(tmp_path / "d.npz", out, "--overwrite") == 0
    assert_same(out, fmri=FMRI * 2)


@pytest.mark.skipif(not (REAL_DATA / "digit69").is_dir(), reason="the recordings of digit69 are not at hand")
def test_real_digits_stand_upright(tmp_path):
    file = REAL_DATA / "digit69" / "digit69_28x28.mat"
    out = tmp_path / "out"
    keys = ["--images", "stimTrn", "--fmri", "fmriTrn", "--test-images", "stimTest", "--test-fmri", "fmriTest"]
    assert main(["prepare", "arrays", str(file), str(out), *keys, "--image-shape", "28", "28", "--column-major"]) == 0
    source = scipy.io.loadmat(file)
    rows = open_corpus(out).splits["train"]
    assert np.array_equal(np.asarray(rows[3]["image"]), source["stimTrn"][3].reshape(28, 28).T)
    assert np.array_equal(responses_of(rows, "subj01").fmri, source["fmriTrn"].astype(np.float32))


@pytest.mark.parametrize("suffix", ["npz", "h5", "mat"])
def test_arrays_that_unpack_to_far_more_than_is_stored_are_refused(tmp_path, monkeypatch, refused, suffix):
    monkeypatch.setattr("visionflow_hf.corpus.files.MOST_UNPACKED", 2**20)
    file, zeros = tmp_path / f"a.{suffix}", np.zeros((2**11, 2**10), np.float32)
    if suffix == "npz":
        np.savez_compressed(file, fmri=zeros)
    elif suffix == "h5":
        with h5py.File(file, "w") as out:
            out.create_dataset("fmri", zeros.shape, zeros.dtype, chunks=(8, 8))  # of which no chunk is stored
    else:
        scipy.io.savemat(file, {"fmri": zeros}, do_compression=True)
    refused(lambda: main(["prepare", "arrays", str(file), str(tmp_path / "out"), "--fmri", "fmri"]), "claims 0.0 GiB")
    assert not (tmp_path / "out").exists()
