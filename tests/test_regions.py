"""The voxel table of a model: responses by region, and predictions as a brain image."""

import io
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from nilearn.surface import load_surf_data
from PIL import Image
from transformers import pipeline

from visionflow_hf.cli import main
from visionflow_hf.corpus.schema import Volume, join_tables, voxel_table
from visionflow_hf.evaluation.brain import draw_slices
from visionflow_hf.hub import load_model
from visionflow_hf.modeling import VisionFlowModel
from visionflow_hf.modeling.voxel_table import VoxelTable

AFFINE = np.array([[-2, 0.25, 0, 40], [0.5, 1.5, 0, -60.125], [0, 0, 2.5, -30], [0, 0, 0, 1]])
SHAPE = (5, 4, 6)
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 16, 16), dtype=np.uint8)


@pytest.fixture(scope="module")
def model_and_processor(run):
    return load_model(run)


@pytest.fixture(scope="module")
def regions(corpus) -> dict[str, dict[str, list[int]]]:
    """The voxels of each region of each subject, as voxels.parquet of the corpus has them."""
    found: dict = {}
    for row in pd.read_parquet(corpus / "voxels.parquet").itertuples():
        for name in row.roi:
            found.setdefault(row.subject, {}).setdefault(name, []).append(row.voxel)
    return found


@pytest.fixture
def pictures(tmp_path) -> list[str]:
    for number, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return [str(tmp_path / f"{number}.png") for number in range(3)]


@pytest.fixture
def places() -> dict[str, np.ndarray]:
    """For each subject 30 places in a volume, flattened in C order, in the order of the voxels."""
    rng = np.random.default_rng(1)
    return {name: np.sort(rng.permutation(np.prod(SHAPE))[:30]) for name in ("subj01", "subj02")}


@pytest.fixture
def in_brain(run, tmp_path, places):
    """The model folder `run`, whose voxel table knows a volume, and V1 and V4 of which one voxel is in both."""
    roi = [["V1"]] * 10 + [["V1", "V4"]] + [["V4"]] * 4 + [[]] * 15
    tables = [voxel_table(name, 30, Volume(SHAPE, AFFINE, places[name]), roi=roi) for name in places]
    model, processor = load_model(run)
    model.voxels = VoxelTable.read(io.BytesIO(join_tables(tables).to_parquet(index=False)))
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_voxel_table_of_the_corpus_is_in_the_model_folder(run, corpus):
    theirs, ours = (pd.read_parquet(folder / "voxels.parquet") for folder in (run, corpus))
    pd.testing.assert_frame_equal(theirs, ours)
    assert len(theirs) == 60 and len({name for names in theirs["roi"] for name in names}) > 1


def test_rois_give_a_dict_by_region(model_and_processor, regions):
    model, processor = model_and_processor
    batch = processor(images=list(PIXELS), subject="subj02")
    whole = model.predict_fmri(**batch)
    asked = sorted(regions["subj02"])[:2][::-1]
    found = model.predict_fmri(**batch, rois=asked)
    assert list(found) == asked
    for name, values in found.items():
        assert torch.equal(values, whole[:, regions["subj02"][name]])
    (alone,) = model.predict_fmri(**batch, rois=asked[0]).values()
    assert torch.equal(alone, found[asked[0]])
    sampled = model.predict_fmri(**batch, rois=asked, num_samples=2, generator=torch.Generator().manual_seed(0))
    drawn = model.predict_fmri(**batch, num_samples=2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sampled[asked[0]], drawn[..., regions["subj02"][asked[0]]])
    known = {name: voxels.tolist() for name, voxels in model.roi_voxels("subj01").items()}
    assert known == regions["subj01"]


def test_the_pipeline_gives_a_dict_by_region(run, regions):
    encode = pipeline("image-to-fmri", model=str(run), trust_remote_code=True)
    name = sorted(regions["subj01"])[0]
    whole = encode(list(PIXELS), subject="subj01")
    narrow = encode(list(PIXELS), subject="subj01", rois=[name], batch_size=2)
    for all_voxels, own in zip(whole, narrow, strict=True):
        assert list(own) == [name]
        np.testing.assert_allclose(own[name], all_voxels[regions["subj01"][name]], atol=1e-5)


def test_unknown_regions_are_told(model_and_processor):
    model, processor = model_and_processor
    batch = processor(images=list(PIXELS), subject="subj02")
    with pytest.raises(ValueError, match="unknown region V9 of subj02: it has V1"):
        model.predict_fmri(**batch, rois=["V1", "V9"])
    with pytest.raises(ValueError, match="rows of 2 subjects: with rois"):
        model.predict_fmri(**processor(images=list(PIXELS[:2]), subject=["subj01", "subj02"]), rois=["V1"])
    with pytest.raises(ValueError, match="unknown subject ann"):
        model.roi_voxels("ann")


def test_a_model_without_a_voxel_table_works_as_before(run, pictures, tmp_path, refused):
    plain = shutil.copytree(run, tmp_path / "plain", ignore=shutil.ignore_patterns("voxels.parquet", "checkpoint-*"))
    model, processor = load_model(plain)
    batch = processor(images=list(PIXELS), subject="subj02")
    assert torch.equal(model.predict_fmri(**batch), load_model(run)[0].predict_fmri(**batch))
    with pytest.raises(ValueError, match="knows no regions of subj02's voxels: leave out rois, or train it on"):
        model.predict_fmri(**batch, rois=["V1"])
    words = ["encode", str(plain), *pictures, "--subject", "subj01", "--output"]
    refused(lambda: main([*words, str(tmp_path / "a.npz"), "--rois", "V1"]), "knows no regions of subj01's voxels")
    refused(lambda: main([*words, str(tmp_path / "a.nii.gz")]), "does not know where the voxels of subj01 lie")
    refused(lambda: main([*words, str(tmp_path / "a.csv")]), "a.csv is no .npz, .nii, .nii.gz or .gii")
    assert not list(tmp_path.glob("*a.*"))


def test_a_removed_subject_takes_its_regions_along(run, tmp_path):
    model, _ = load_model(run)
    model.remove_subject("subj01")
    model.save_pretrained(tmp_path / "model")
    assert set(pd.read_parquet(tmp_path / "model" / "voxels.parquet")["subject"]) == {"subj02"}
    model.add_subject("subj01", 7)
    with pytest.raises(ValueError, match="knows no regions of subj01's voxels"):
        model.roi_voxels("subj01")
    assert VisionFlowModel.from_pretrained(tmp_path / "model").roi_voxels("subj02")


def test_a_damaged_voxel_table_is_told_in_one_line(run, corpus, tmp_path, refused):
    folder = shutil.copytree(run, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    words = ["evaluate", str(folder), str(corpus), str(tmp_path / "report")]
    table = pd.read_parquet(folder / "voxels.parquet")
    (folder / "voxels.parquet").write_bytes((run / "voxels.parquet").read_bytes()[:-50])
    refused(lambda: main(words), "voxels.parquet of .* is damaged")
    table.drop(columns="roi").to_parquet(folder / "voxels.parquet")
    refused(lambda: main(words), "it has no column roi")
    table[:-1].to_parquet(folder / "voxels.parquet")
    refused(lambda: main(words), "has 29 voxels of subj02, the model has 30")
    table.assign(voxel=table["voxel"] + 1).to_parquet(folder / "voxels.parquet")
    refused(lambda: main(words), "not numbered from 0 to 29")


@pytest.mark.parametrize("name", ["brain.nii.gz", "brain.nii"])
def test_a_brain_image_has_each_voxel_in_its_place(in_brain, pictures, places, tmp_path, name):
    words = ["encode", str(in_brain), *pictures, "--subject", "subj02", "--output"]
    assert main([*words, str(tmp_path / "fmri.npz")]) == 0 and main([*words, str(tmp_path / name)]) == 0
    image = nibabel.load(tmp_path / name)
    assert image.shape == (*SHAPE, 3) and image.get_data_dtype() == np.float32
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-6)
    assert image.header.get_xyzt_units()[0] == "mm"
    values, left = image.get_fdata(), np.ones(SHAPE, dtype=bool)
    fmri = np.load(tmp_path / "fmri.npz")["fmri"]
    for voxel, place in enumerate(places["subj02"].tolist()):
        x, y, z = place // 24, place // 6 % 4, place % 6
        assert values[x, y, z].tolist() == fmri[:, voxel].tolist()
        left[x, y, z] = False
    assert left.sum() == 90 and not values[left].any()


def test_regions_alone_are_encoded(in_brain, pictures, places, tmp_path):
    words = ["encode", str(in_brain), *pictures, "--subject", "subj01", "--output"]
    assert main([*words, str(tmp_path / "fmri.npz")]) == 0
    assert main([*words, str(tmp_path / "v4.npz"), "--rois", "V4"]) == 0
    assert main([*words, str(tmp_path / "both.npz"), "--rois", "V4", "V1"]) == 0
    assert main([*words, str(tmp_path / "v4.nii.gz"), "--rois", "V4"]) == 0
    fmri, v4 = np.load(tmp_path / "fmri.npz")["fmri"], np.load(tmp_path / "v4.npz")
    assert v4["voxel"].tolist() == [10, 11, 12, 13, 14] and np.array_equal(v4["fmri"], fmri[:, 10:15])
    both = np.load(tmp_path / "both.npz")
    assert both["voxel"].tolist() == list(range(15)) and both["roi"].tolist() == ["V1"] * 10 + ["V4,V1"] + ["V4"] * 4
    values = nibabel.load(tmp_path / "v4.nii.gz").get_fdata()
    assert np.flatnonzero(values.any(-1)).tolist() == places["subj01"][10:15].tolist()


@pytest.fixture
def on_surface(run, tmp_path) -> tuple[Path, dict[str, list]]:
    """The model folder `run`, whose voxel table knows vertices of subj02 alone; and its hemispheres and vertices."""
    rng = np.random.default_rng(2)
    known = {"roi": [["rh" if voxel % 3 else "lh", *["V1"][: voxel < 8]] for voxel in range(30)]}
    known["vertex"] = [
        *rng.permutation(163840)[:27],
        163841,
        163841,
        163840,
    ]  # 27 is left, 28 right
    tables = [voxel_table("subj01", 30), voxel_table("subj02", 30, **known)]
    folder = shutil.copytree(run, tmp_path / "on_surface", ignore=shutil.ignore_patterns("checkpoint-*"))
    join_tables(tables).to_parquet(folder / "voxels.parquet", index=False)
    return folder, known


def test_a_surface_has_each_voxel_at_its_vertex(on_surface, pictures, tmp_path, capsys):
    folder, known = on_surface
    words = ["encode", str(folder), *pictures, "--subject", "subj02", "--output"]
    assert main([*words, str(tmp_path / "fmri.npz")]) == 0
    capsys.readouterr()
    assert main([*words, str(tmp_path / "a.func.gii")]) == 0
    files = {side: tmp_path / f"a_hemi-{side[0].upper()}.func.gii" for side in ("lh", "rh")}
    assert capsys.readouterr().out == f"wrote {files['lh']} and {files['rh']}\n"
    fmri = np.load(tmp_path / "fmri.npz")["fmri"]
    for side, structure in (("lh", "CortexLeft"), ("rh", "CortexRight")):
        image = nibabel.load(files[side])
        assert image.meta["AnatomicalStructurePrimary"] == structure
        assert [array.meta["Name"] for array in image.darrays] == pictures
        assert all(array.data.dtype == np.float32 for array in image.darrays)
        expected = [[0.0] * 163842 for _ in pictures]
        for voxel in range(30):
            if known["roi"][voxel][0] == side:
                for row in range(3):
                    expected[row][known["vertex"][voxel]] = fmri[row, voxel].item()
        assert [array.data.tolist() for array in image.darrays] == expected
    assert load_surf_data(files["lh"]).shape == (163842, 3)


def test_regions_alone_are_written_to_a_surface(on_surface, pictures, tmp_path):
    folder, known = on_surface
    words = ["encode", str(folder), pictures[0], "--subject", "subj02", "--rois", "V1", "--output"]
    assert main([*words, str(tmp_path / "v1.gii")]) == 0
    for side, voxels in (("L", [0, 3, 6]), ("R", [1, 2, 4, 5, 7])):
        (array,) = nibabel.load(tmp_path / f"v1_hemi-{side}.gii").darrays
        assert set(np.flatnonzero(array.data)) == {known["vertex"][voxel] for voxel in voxels}


def test_vertices_that_are_not_known_are_told(on_surface, pictures, tmp_path, refused):
    folder, _ = on_surface
    words = ["encode", str(folder), *pictures, "--output", str(tmp_path / "a.gii"), "--subject"]
    refused(lambda: main([*words, "subj01"]), "does not know the vertices of subj01 on fsaverage: write an .npz")
    table = pd.read_parquet(folder / "voxels.parquet")
    without_side = [["V1"] if name == "subj02" else [] for name in table["subject"]]
    for damaged, message in (
        (
            table.assign(vertex=table["vertex"] + 1),
            "the vertices of subj02 in .* are not those of fsaverage",
        ),
        (table.assign(vertex=7), "are not those of fsaverage"),
        (table.assign(vertex="left"), "are no whole numbers"),
        (table.assign(roi=without_side), "does not tell the hemisphere of each voxel of subj02"),
    ):
        damaged.to_parquet(folder / "voxels.parquet")
        refused(lambda: main([*words, "subj02"]), message)
    assert not list(tmp_path.glob("*.gii*"))


def test_slices_show_each_voxel_in_its_place():
    places = np.array([[3, 2, 5], [4, 2, 5], [3, 3, 7], [5, 4, 9]])
    figure = draw_slices(places, np.array([0.1, 0.5, -0.3, 0.4]))
    shown = {
        axis.get_title(): np.argwhere(~np.ma.getmaskarray(axis.images[0].get_array())).tolist()
        for axis in figure.axes
        if axis.images
    }
    plt.close(figure)
    assert shown["slice 5"] == [[0, 0], [0, 1]] and shown["slice 7"] == [[1, 0]] and shown["slice 9"] == [[2, 2]]
    assert shown["slice 6"] == shown["slice 8"] == []


def test_places_beyond_the_volume_are_told(in_brain, pictures, tmp_path, refused):
    table = pd.read_parquet(in_brain / "voxels.parquet")
    words = ["encode", str(in_brain), *pictures, "--subject", "subj01", "--output", str(tmp_path / "brain.nii")]
    for damaged, message in (
        (table.assign(place=table["place"] + 100), "are not within its volume"),
        (table.assign(place=None), "does not tell where the voxels of subj01 lie"),
    ):
        damaged.to_parquet(in_brain / "voxels.parquet")
        refused(lambda: main(words), message)
    assert not list(tmp_path.glob("*brain*"))
