"""`prepare --stimuli-once`: each image is one file, and the rows are those of a corpus that repeats it."""

import shutil
from collections import namedtuple

import numpy as np
import pytest
from datasets import load_dataset, load_from_disk

from visionflow_hf.cli import main
from visionflow_hf.corpus.schema import open_corpus
from visionflow_hf.corpus.to_hub import write_shards

Usage = namedtuple("Usage", ["total", "used", "free"])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """20 stimuli of noise, which does not compress, shown 4 times each."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 48, 48, 3), dtype=np.uint8)
    file = tmp_path_factory.mktemp("once") / "source.npz"
    np.savez(file, images=images.repeat(4, 0), fmri=rng.normal(size=(80, 5)))
    return file, images


@pytest.fixture(scope="module")
def corpora(source):
    folder = source[0].parent
    for name, flags in (("plain", []), ("once", ["--stimuli-once"])):
        words = ["prepare", "arrays", source[0], folder / name, "--images", "images", "--fmri", "fmri", *flags]
        assert main([str(word) for word in words]) == 0
    return folder / "plain", folder / "once"


def size(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def same_rows(found, expected):
    assert found.column_names == expected.column_names and len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):
        assert np.array_equal(np.asarray(row.pop("image")), np.asarray(other.pop("image")))
        assert row == other


def test_the_rows_are_the_same_and_each_image_is_stored_once(corpora, source):
    plain, once = corpora
    for split, rows in load_from_disk(str(plain)).items():
        same_rows(load_from_disk(str(once))[split], rows)
        same_rows(open_corpus(once).splits[split], rows)
    assert len([file for file in (once / "stimuli").rglob("*") if file.is_file()]) == 20
    pixels = source[1].nbytes
    assert size(once) < 1.15 * pixels + 80 * 5 * 4 + 30_000  # tables and their headers
    assert size(plain) > 4 * pixels


def test_a_folder_that_was_moved_is_read(corpora, tmp_path):
    plain, once = corpora
    shutil.copytree(once, tmp_path / "old")
    shutil.move(tmp_path / "old", tmp_path / "new")
    shutil.move(once / "stimuli", once / "elsewhere")
    try:
        for split, rows in open_corpus(plain).splits.items():
            same_rows(open_corpus(tmp_path / "new").splits[split], rows)
    finally:
        shutil.move(once / "elsewhere", once / "stimuli")


def test_what_goes_to_the_hub_has_the_images_in_its_rows(corpora, tmp_path):
    plain, once = corpora
    write_shards(open_corpus(once), tmp_path)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    shards = load_dataset("parquet", data_files=str(tmp_path / "data" / "test-*"), cache_dir=str(tmp_path / "cache"))
    same_rows(shards["train"], load_from_disk(str(plain))["test"])
    assert all(image["bytes"] for image in shards["train"].with_format("arrow")[:]["image"].to_pylist())


def test_a_full_disk_is_told_before_anything_is_written(source, tmp_path, monkeypatch, refused):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 0, 500_000))  # 7 kB an image, 20 or 80 rows
    words = ["prepare", "arrays", source[0], tmp_path / "out", "--images", "images", "--fmri", "fmri"]
    words = [str(word) for word in words]
    refused(lambda: main(words), "less with --stimuli-once.*are free")
    assert not list(tmp_path.iterdir())
    assert main([*words, "--stimuli-once"]) == 0
