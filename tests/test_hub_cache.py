"""What lies in the cache of the Hub is whole and of one commit, whatever happens while it is fetched."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants

from visionflow_hf.corpus.to_hub import said_before
from visionflow_hf.errors import UserError
from visionflow_hf.hub import load_model
from visionflow_hf.hub_cache import whole_files
from visionflow_hf.modeling import VisionFlowConfig, VisionFlowModel, VisionFlowProcessor

CONTENT = b"what the Hub has"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
GIT = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()


@pytest.mark.parametrize("kind", ["model", "dataset"])
@pytest.mark.parametrize("name", [SHA256, GIT])
def test_a_file_that_came_damaged_leaves_the_cache(tmp_path, monkeypatch, kind, name):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    blobs = tmp_path / f"{kind}s--lab--x" / "blobs"
    blobs.mkdir(parents=True)
    with whole_files("lab/x", kind):
        (blobs / name).write_bytes(CONTENT)
        (blobs / f"{name}.incomplete").write_bytes(b"what")
    for error in (None, OSError("cannot be read")):  # whether or not somebody noticed
        with pytest.raises(UserError, match="1 of the files of lab/x came damaged"), whole_files("lab/x", kind):
            (blobs / name).write_bytes(CONTENT.swapcase())
            if error is not None:
                raise error
        assert [file.name for file in blobs.iterdir()] == [f"{name}.incomplete"]


def test_nothing_else_is_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with whole_files("lab/x"):
        pass
    with pytest.raises(OSError, match="no connection"), whole_files("lab/x"):
        raise OSError("no connection")


def model_folder(folder: Path, factor: float) -> None:
    """A model and its processor, both with numbers that tell the commit."""
    config = VisionFlowConfig(
        image_size=[8, 8],
        num_channels=1,
        latent_dim=2,
        linear_dim=2,
        decoder_channels=4,
        bridge_hidden_size=4,
        subjects=["ann"],
        num_voxels=[3],
    )
    model = VisionFlowModel(config)
    with torch.no_grad():
        model.linear_logvar.fill_(factor)
    model.save_pretrained(folder)
    processor = VisionFlowProcessor(
        image_size=[8, 8],
        num_channels=1,
        subjects=["ann"],
        fmri_mean={"ann": np.full(3, factor, np.float32)},
        fmri_std={"ann": np.ones(3, np.float32)},
    )
    processor.save_pretrained(folder)


def test_model_and_processor_are_of_one_commit(monkeypatch):
    repository = Path(constants.HF_HUB_CACHE) / "models--lab--changes"
    for commit, factor in (("a" * 40, 1.0), ("b" * 40, 2.0)):
        model_folder(repository / "snapshots" / commit, factor)
    assert load_model(repository / "snapshots" / ("b" * 40))[0].linear_logvar[0] == 2  # a folder, too
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    read = VisionFlowModel.from_pretrained.__func__

    def and_then_it_changes(cls, *args, **kwargs):
        model = read(cls, *args, **kwargs)
        (repository / "refs" / "main").write_text("b" * 40)
        return model

    monkeypatch.setattr(VisionFlowModel, "from_pretrained", classmethod(and_then_it_changes))
    for factor in (1.0, 2.0):
        model, processor = load_model("lab/changes")
        assert model.linear_logvar[0] == factor and processor.fmri_mean["ann"][0] == factor


def test_a_damaged_card_of_a_corpus_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    blob = tmp_path / "datasets--lab--x" / "blobs" / ("0" * 40)

    class Api:
        def list_repo_files(self, name, repo_type):
            return ["README.md"]

        def hf_hub_download(self, name, file, repo_type):
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(b"another byte \xff")
            return str(blob)

    with pytest.raises(UserError, match="1 of the files of lab/x came damaged"):
        said_before(Api(), "lab/x")
    assert not blob.exists()
