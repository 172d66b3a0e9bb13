"""`prepare arrays`: regions, coordinates and noise ceilings of the voxels, and what it proposes without keys."""

import shlex

import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import REAL_DATA
from layouts import matlab_text
from test_arrays import FMRI, IMAGES, WRITERS, mat5, prepare

from visionflow_hf.cli import main
from visionflow_hf.corpus.schema import open_corpus

RNG = np.random.default_rng(3)
NAMES = ["V1", "", "V1", "V4", "V4", "V1"]
MASKS = {"V1": np.array([1, 0, 1, 0, 0, 1]), "V4": np.array([0, 0, 0, 1, 1, 0]), "visual": np.array([1, 0, 1, 1, 1, 1])}
XYZ = RNG.normal(size=(6, 3))
VOLUME = np.zeros((3, 4, 2), dtype=np.uint8)
VOLUME.ravel()[[2, 3, 9, 10, 17, 22]] = 1


def table_of(out) -> pd.DataFrame:
    open_corpus(out)
    return pd.read_parquet(out / "voxels.parquet")


def regions_of(out) -> list[list[str]]:
    return [list(names) for names in table_of(out)["roi"]]


def of_masks(names=("V1", "V4", "visual")) -> list[list[str]]:
    return [[name for name in names if MASKS[name][voxel]] for voxel in range(6)]


def order(name) -> str:
    return "F" if name.endswith(".mat") else "C"


def in_volume(mask, name) -> np.ndarray:
    """A mask of the voxels as a volume, whose voxels the file's language takes out in their order."""
    volume = np.zeros(VOLUME.size, dtype=np.uint8)
    volume[np.flatnonzero(VOLUME.ravel(order(name)))] = mask
    return volume.reshape(VOLUME.shape, order=order(name))


def places(name) -> list[tuple[int, ...]]:
    """Of the voxels, by loops: the first axis runs fastest in MATLAB, the last one in numpy."""
    spans = [range(length) for length in VOLUME.shape]
    if order(name) == "F":
        walk = [(x, y, z) for z in spans[2] for y in spans[1] for x in spans[0]]
    else:
        walk = [(x, y, z) for x in spans[0] for y in spans[1] for z in spans[2]]
    return [place for place in walk if VOLUME[place]]


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "seven.mat"])
def test_a_name_for_each_voxel(tmp_path, name):
    names = np.array(NAMES, dtype="S") if name.endswith(".h5") else np.array(NAMES, dtype=object)
    WRITERS[name](tmp_path / name, images=IMAGES, fmri=FMRI, roi=names if name != "data.npz" else np.array(NAMES))
    assert prepare(tmp_path / name, tmp_path / "out", "--rois", "roi") == 0
    assert regions_of(tmp_path / "out") == [[one] if one else [] for one in NAMES]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("axes", ["regions first", "voxels first"])
def test_a_mask_for_each_region(tmp_path, name, axes):
    masks = np.stack(list(MASKS.values()), axis=0 if axes == "regions first" else 1)
    WRITERS[name](tmp_path / name, images=IMAGES, fmri=FMRI, masks=masks, names=np.array([1.0, 2.0, 4.0]))
    assert prepare(tmp_path / name, tmp_path / "out", "--rois", "masks", "names") == 0
    numbers = {"1": "V1", "2": "V4", "4": "visual"}
    assert [[numbers[one] for one in names] for names in regions_of(tmp_path / "out")] == of_masks()


@pytest.mark.parametrize("name", WRITERS)
def test_volumes_give_regions_and_places(tmp_path, name):
    volumes = np.stack([in_volume(mask, name) for mask in MASKS.values()])
    WRITERS[name](
        tmp_path / name, images=IMAGES, fmri=FMRI, masks=volumes, names=np.arange(3), brain=in_volume(np.ones(6), name)
    )
    assert prepare(tmp_path / name, tmp_path / "out", "--rois", "masks", "names", "--mask-volume", "brain") == 0
    table = table_of(tmp_path / "out")
    assert [tuple(place) for place in table[["x", "y", "z"]].astype(int).to_numpy()] == places(name)
    assert [[list(MASKS)[int(one)] for one in names] for names in table["roi"]] == of_masks()


def test_cells_of_masks_whose_union_is_the_mask(tmp_path, capsys):
    """As a MATLAB file before v7.3 has them, and as one of v7.3 has them."""
    everywhere = {**MASKS, "primary.nii": np.ones(6), "nowhere": np.zeros(6)}
    cells, names = (np.empty((1, 5), dtype=object) for _ in range(2))
    for place, (name, mask) in enumerate(everywhere.items()):
        cells[0, place], names[0, place] = in_volume(mask, "five.mat"), name
    mat5(tmp_path / "five.mat", images=IMAGES, fmri=FMRI, masks=cells, names=names)
    WRITERS["seven.mat"](tmp_path / "seven.mat", images=IMAGES, fmri=FMRI)
    with h5py.File(tmp_path / "seven.mat", "r+") as file:
        for key, entries in (("names", list(everywhere)), ("masks", cells[0])):
            references = [
                matlab_text(file, entry) if key == "names" else file.create_dataset(f"#refs#/m{n}", data=entry.T).ref
                for n, entry in enumerate(entries)
            ]
            file.create_dataset(key, (5, 1), h5py.ref_dtype)[:, 0] = references
    for name in ("five.mat", "seven.mat"):
        assert prepare(tmp_path / name, tmp_path / name[:4], "--rois", "masks", "names") == 0
        table = table_of(tmp_path / name[:4])
        assert [tuple(place) for place in table[["x", "y", "z"]].astype(int).to_numpy()] == places(name)
        assert [list(one) for one in table["roi"]] == [[*one, "primary"] for one in of_masks()]
        assert "1 region (nowhere) without a voxel" in capsys.readouterr().out


def test_groups_and_structs_of_masks(tmp_path):
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["images"], file["fmri"] = IMAGES, FMRI
        for name, mask in MASKS.items():
            file[f"regions/{name}"] = mask
    mat5(tmp_path / "five.mat", images=IMAGES, fmri=FMRI, regions=MASKS)
    for name in ("data.h5", "five.mat"):
        assert prepare(tmp_path / name, tmp_path / name[:4], "--rois", "regions") == 0
        assert regions_of(tmp_path / name[:4]) == of_masks()


@pytest.mark.parametrize("name", WRITERS)
def test_coordinates_and_noise_ceilings(tmp_path, name, capsys):
    ceiling = np.array([0.5, 30, 99, np.nan, 0, 12])
    WRITERS[name](tmp_path / name, images=IMAGES, fmri=FMRI, xyz=XYZ, share=ceiling / 100, percent=ceiling[None])
    assert prepare(tmp_path / name, tmp_path / "out", "--xyz", "xyz", "--noise-ceiling", "share") == 0
    table = table_of(tmp_path / "out")
    assert np.array_equal(table[["x", "y", "z"]], XYZ)
    np.testing.assert_allclose(table["noise_ceiling"], ceiling / 100)
    assert prepare(tmp_path / name, tmp_path / "percent", "--noise-ceiling", "percent") == 0
    np.testing.assert_allclose(table_of(tmp_path / "percent")["noise_ceiling"], ceiling / 100)
    assert "percent runs to 99: read as percent" in capsys.readouterr().out
    alone = ["prepare", "arrays", str(tmp_path / name), str(tmp_path / "alone"), "--fmri", "fmri", "--xyz", "xyz"]
    assert main(alone) == 0
    assert np.array_equal(pd.read_parquet(tmp_path / "alone" / "voxels.parquet")[["x", "y", "z"]], XYZ)


def test_the_ceiling_of_one_trial_becomes_that_of_the_average(tmp_path):
    ids = np.repeat(np.arange(4), 3)
    np.savez(tmp_path / "data.npz", images=IMAGES[ids], fmri=FMRI, ids=ids, share=np.full(6, 0.2))
    flags = ["--stimulus-ids", "ids", "--noise-ceiling", "share", "--test-fraction", 0.5]
    assert prepare(tmp_path / "data.npz", tmp_path / "out", *flags, "--average-repeats") == 0
    ratio = 0.2 / 0.8  # signal over noise variance
    np.testing.assert_allclose(table_of(tmp_path / "out")["noise_ceiling"], ratio / (ratio + 1 / 3))


WRONG = {
    (
        "--rois",
        "short",
    ): "short has 5 entries for 6 voxels: a name for each voxel is expected, or a mask for each region",
    ("--rois", "masks", "short"): r"masks has shape \(3, 6\) for 5 names",
    ("--rois", "a", "b", "c"): "takes one key, or two of masks and their names: 3 were given",
    ("--rois", "absent"): "has no absent: its keys are",
    ("--rois", "volumes", "names"): "marks 4 voxels, the responses have 6: give the mask .* as --mask-volume",
    ("--mask-volume", "masks"): r"has shape \(3, 6\) and type int64: numbers \(x, y, z\)",
    ("--xyz", "masks"): r"has shape \(3, 6\)|numbers",
    ("--xyz", "short"): r"has shape \(5,\).*coordinates of each",
    ("--xyz", "xyz", "--mask-volume", "brain"): "both tell where the voxels lie",
    ("--noise-ceiling", "xyz"): "one number for each of the 6 voxels is expected",
    ("--noise-ceiling", "negative"): "runs from -1 to 1: shares of the variance",
}


@pytest.mark.parametrize("flags", [flags for flags in WRONG if flags != ("--xyz", "masks")])
def test_what_does_not_fit_leaves_one_line_and_no_folder(tmp_path, refused, flags):
    np.savez(
        tmp_path / "data.npz",
        images=IMAGES,
        fmri=FMRI,
        short=np.array(["a"] * 5),
        masks=np.stack(list(MASKS.values())),
        volumes=np.stack([VOLUME, VOLUME, VOLUME]) * (np.arange(24).reshape(3, 4, 2) < 15),
        names=np.array(["a", "b", "c"]),
        brain=VOLUME,
        xyz=XYZ,
        negative=np.array([-1.0, 0, 0, 0, 0, 1]),
    )
    refused(lambda: prepare(tmp_path / "data.npz", tmp_path / "out", *flags), WRONG[flags])
    assert [file.name for file in tmp_path.iterdir()] == ["data.npz"]


@pytest.mark.parametrize("name", WRITERS)
def test_without_keys_the_file_is_listed_and_a_command_proposed(tmp_path, name, capsys):
    arrays = {"stim": IMAGES.reshape(12, 20)[:, :16], "betas": FMRI, "noise_ceiling": np.full(6, 0.3), "voxel_xyz": XYZ}
    WRITERS[name](tmp_path / name, **arrays, age=np.array([[30.0]]))
    assert main(["prepare", "arrays", str(tmp_path / name), str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert "stim" in printed.out and "12 x 16  uint8" in printed.out and "12 x 6  float64" in printed.out
    (line,) = printed.err.splitlines()
    command = shlex.split(line.split("to begin with: visionflow ")[1])
    assert command[2:4] == [str(tmp_path / name), str(tmp_path / "out")]
    assert main(command) == 0
    table = table_of(tmp_path / "out")
    assert np.array_equal(table[["x", "y", "z"]], XYZ) and np.allclose(table["noise_ceiling"], 0.3)


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="real data absent")
def test_the_regions_of_digit69(tmp_path, capsys):
    """Its 13 masks are volumes in the order of MATLAB."""
    file = REAL_DATA / "digit69" / "69dataset2.mat"
    assert main(["prepare", "arrays", str(file), str(tmp_path / "out")]) == 2
    command = shlex.split(capsys.readouterr().err.split("to begin with: visionflow ")[1])
    assert main(command) == 0
    table = table_of(tmp_path / "out")
    members = [name for names in table["roi"] for name in names]
    sizes = {"primary": 3092, "lh.V1d": 314, "lh.V1v": 321, "lh.V2d": 225, "lh.V2v": 290, "lh.V3d": 144, "lh.V3v": 198}
    sizes |= {"rh.V1d": 264, "rh.V1v": 330, "rh.V2d": 43, "rh.V2v": 65, "rh.V3v": 2}
    assert {name: members.count(name) for name in set(members)} == sizes
    assert not table[["x", "y", "z"]].duplicated().any()
    fmri = np.concatenate([np.array(split["fmri"]) for split in open_corpus(tmp_path / "out").splits.values()])
    fmri = (fmri - fmri.mean(0)) / fmri.std(0)
    place = {tuple(one): voxel for voxel, one in enumerate(table[["x", "y", "z"]].astype(int).to_numpy())}
    neighbours = [(voxel, place[x + 1, y, z]) for (x, y, z), voxel in place.items() if (x + 1, y, z) in place]
    assert np.mean([fmri[:, one] @ fmri[:, other] for one, other in neighbours]) / len(fmri) > 0.3
