"""A lab's own files, through the commands that docs/data.md shows: table, training, report, brain image."""

import json
import re
import shlex

import nibabel
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from datasets import load_from_disk
from PIL import Image

from visionflow_hf.cli import main
from visionflow_hf.hub import load_model

SIDE, SESSIONS, TRIALS = 20, 4, 50
GRID = (6, 5, 7)
AFFINE = np.array([[-1.8, 0, 0.3, 20], [0.1, 2.0, 0, -80], [0, -0.2, 2.2, -5], [0, 0, 0, 1]])
PAGE = (ROOT / "docs" / "data.md").read_text().partition("### A table of trials")[2].partition("### BIDS")[0]
COMMANDS = re.findall(r"^visionflow (.+)$", PAGE, flags=re.MULTILINE)
NAMES = {1: "V1", 2: "V2", 7: "hV4"}


def in_mask(subject: str, x: int, y: int, z: int) -> bool:
    return (x + 2 * y + 3 * z + int(subject)) % 4 == 0


def label(x: int, y: int, z: int) -> int:
    """The number in the volume of labels; 5 has no name."""
    return [1, 2, 7, 0, 5][(x + y + z) % 5]


def beta(pixels: np.ndarray, x: int, y: int, z: int) -> float:
    """The response of a voxel, which reads one pixel."""
    return float(pixels[3 * x + 1, 4 * y + z // 2]) * (1 + z) + 100 * x


def shown_in(subject: str, session: int) -> list[int]:
    """The numbers of the pictures, in the order of the trials; each subject sees each of the 200 once."""
    step = {"01": 7, "02": 11}[subject]
    return [(step * (TRIALS * (session - 1) + trial) + 3) % 200 for trial in range(TRIALS)]


def voxels_of(subject: str) -> list[tuple[int, int, int]]:
    """The voxels in the mask, z running fastest."""
    grid = [(x, y, z) for x in range(GRID[0]) for y in range(GRID[1]) for z in range(GRID[2])]
    return [voxel for voxel in grid if in_mask(subject, *voxel)]


def save(values: np.ndarray, file) -> None:
    file.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), file)


def run(command: str, folder) -> None:
    short = ["--max_steps", "3", "--disable_tqdm", "true"] if command.startswith("train") else []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*shlex.split(command), *short]) == 0


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """200 grey pictures: blobs of any place and size on a slope."""
    rng = np.random.default_rng(5)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    found = []
    for _ in range(200):
        y, x, size = rng.uniform(3, 17), rng.uniform(3, 17), rng.uniform(2, 6)
        blob = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / size**2)
        found.append(40 + 150 * blob + rng.uniform(-1, 1) * columns + rng.integers(0, 8, (SIDE, SIDE)))
    return np.array(found).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def lab(pictures, tmp_path_factory):
    """The files of a lab, and the corpus that the first command of the page makes of them."""
    root = tmp_path_factory.mktemp("lab")
    (root / "images").mkdir()
    for number, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(root / "images" / f"p{number:03d}.png")
    for number, name in enumerate(("cat", "house")):
        Image.fromarray(pictures[number].T).save(root / f"{name}.png")
    lines = []
    for subject in ("01", "02"):
        for session in range(1, SESSIONS + 1):
            shown = shown_in(subject, session)
            lines += [f"{subject}\t{session}\tp{number:03d}.png" for number in shown]
            values = np.zeros((*GRID, TRIALS))
            for x, y, z in np.ndindex(GRID):
                values[x, y, z] = [beta(pictures[number], x, y, z) for number in shown]
            save(values.astype(np.float32), root / "betas" / f"{subject}_{session}_betas.nii.gz")
        mask, labels = np.zeros(GRID, np.uint8), np.zeros(GRID, np.int16)
        for voxel in np.ndindex(GRID):
            mask[voxel], labels[voxel] = in_mask(subject, *voxel), label(*voxel)
        save(mask, root / "masks" / f"{subject}_visual.nii.gz")
        save(labels, root / "rois" / f"{subject}_labels.nii.gz")
    (root / "rois" / "labels.tsv").write_text("index\tname\n" + "".join(f"{i}\t{name}\n" for i, name in NAMES.items()))
    (root / "trials.tsv").write_text("subject\tsession\timage\n" + "\n".join(lines) + "\n")
    run(COMMANDS[0], root)
    return root


@pytest.fixture(scope="module")
def trained(lab):
    """The same with what the other commands make."""
    for command in COMMANDS[1:]:
        run(command, lab)
    return lab


def test_the_page_has_the_commands():
    assert [command.split()[0] for command in COMMANDS] == ["prepare", "train", "evaluate", "encode"]


def test_every_value_is_in_its_place(lab, pictures):
    expected = {}
    for subject in ("01", "02"):
        for session in range(1, SESSIONS + 1):
            shown = shown_in(subject, session)
            raw = np.array([[beta(pictures[number], *voxel) for voxel in voxels_of(subject)] for number in shown])
            standard = (raw - raw.mean(0)) / raw.std(0)
            expected |= {(subject, f"p{number:03d}.png"): row for number, row in zip(shown, standard, strict=True)}
    assert len(expected) == 400
    splits = load_from_disk(lab / "corpus")
    assert set(splits["train"]["stimulus_id"]).isdisjoint(splits["test"]["stimulus_id"])
    for row in (row for split in splits.values() for row in split):
        number = int(row["stimulus_id"][1:4])
        assert np.array_equal(np.asarray(row["image"].convert("L")), pictures[number]) and row["repeat"] == 0
        fmri = expected.pop((row["subject"], row["stimulus_id"]))
        np.testing.assert_allclose(row["fmri"], fmri, atol=1e-4)
    assert not expected


def test_every_voxel_has_its_region_and_place(lab):
    table = pd.read_parquet(lab / "corpus" / "voxels.parquet")
    for subject in ("01", "02"):
        own = table[table["subject"] == subject]
        assert len(own) == len(voxels_of(subject)) > 40
        for (x, y, z), row in zip(voxels_of(subject), own.itertuples(), strict=True):
            name = NAMES.get(label(x, y, z))
            assert list(row.roi) == ([name] if name else [])
            mm = (-1.8 * x + 0.3 * z + 20, 0.1 * x + 2 * y - 80, -0.2 * y + 2.2 * z - 5)
            np.testing.assert_allclose((row.x, row.y, row.z), mm, atol=1e-4)


@pytest.mark.nightly
def test_the_report_has_regions_and_a_brain_map(trained):
    metrics = json.loads((trained / "report" / "metrics.json").read_text())
    for subject in ("01", "02"):
        found = {name: block["n_voxels"] for name, block in metrics["subjects"][subject]["rois"].items()}
        names = [NAMES.get(label(*voxel)) for voxel in voxels_of(subject)]
        assert found == {name: names.count(name) for name in NAMES.values()}
    page = (trained / "report" / "report.html").read_text()
    for subject in ("01", "02"):
        for shown in ("three views", "slices"):
            assert f'alt="Voxel r of {subject} in {shown}"' in page


@pytest.mark.nightly
def test_the_encoded_voxels_lie_where_those_of_the_mask_do(trained):
    tables = [pd.read_parquet(trained / owner / "voxels.parquet") for owner in ("corpus", "model")]
    pd.testing.assert_frame_equal(*tables)
    assert tables[0].attrs == tables[1].attrs
    image = nibabel.load(trained / "responses.nii.gz")
    mask = nibabel.load(trained / "masks" / "01_visual.nii.gz")
    assert image.shape == (*GRID, 2)
    np.testing.assert_allclose(image.affine, mask.affine, atol=1e-6)
    model, processor = load_model(trained / "model")
    pictures = [Image.open(trained / f"{name}.png") for name in ("cat", "house")]
    predicted = model.predict_fmri(**processor(images=pictures, subject="01")).detach().numpy()
    values = np.zeros((*GRID, 2))
    for voxel, (x, y, z) in enumerate(voxels_of("01")):
        values[x, y, z] = predicted[:, voxel]
    np.testing.assert_allclose(image.get_fdata(), values, atol=1e-4)
