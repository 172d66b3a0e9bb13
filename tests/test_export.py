"""`visionflow export`: ONNX files that give in onnxruntime what the model gives in torch, to 1e-4."""

import json
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from visionflow_hf.cli import main
from visionflow_hf.hub import load_model


@pytest.fixture(scope="module")
def colour_run(colour_corpus, tmp_path_factory):
    """Of two subjects with 12 and 7 voxels, whose images are 18 x 24 px RGB."""
    folder = tmp_path_factory.mktemp("run") / "colour"
    assert main(["train", str(colour_corpus), str(folder), "--max_steps", "6", "--disable_tqdm", "true"]) == 0
    return folder


@pytest.fixture(scope="module")
def files(colour_run, tmp_path_factory):
    """The folder that `visionflow export` wrote."""
    out = tmp_path_factory.mktemp("onnx") / "files"
    assert main(["export", str(colour_run), str(out)]) == 0
    return out


def test_both_directions_equal_the_model(colour_run, files, capsys):
    model, processor = load_model(colour_run)
    encode, decode = (onnxruntime.InferenceSession(files / f"{name}.onnx") for name in ("encode", "decode"))
    about = encode.get_modelmeta().custom_metadata_map
    assert json.loads(about["subjects"]) == ["ann", "bob"] and json.loads(about["num_voxels"]) == [12, 7]
    rng = np.random.default_rng(1)
    for subjects in (["bob"], ["ann", "bob", "bob", "ann", "ann"]):  # neither is the batch that was exported
        images = [Image.fromarray(rng.integers(0, 256, (18, 24, 3), dtype=np.uint8)) for _ in subjects]
        batch = processor(images=images, subject=subjects)
        given = {"pixel_values": batch["pixel_values"].numpy(), "subject": batch["subject_ids"].numpy()}
        [fmri] = encode.run(["fmri"], given)
        expected = model.predict_fmri(**batch).numpy()
        assert fmri.shape == (len(subjects), 12)
        np.testing.assert_allclose(fmri[:, : expected.shape[1]], expected, atol=1e-4)

        [pixels] = decode.run(["pixel_values"], {"fmri": fmri, "subject": given["subject"]})
        rows = [row[: 12 if name == "ann" else 7] for row, name in zip(fmri, subjects, strict=True)]
        expected = model.reconstruct_image(**processor(fmri=rows, subject=subjects), refine=0).numpy()
        assert pixels.shape == (len(subjects), 3, 18, 24)
        np.testing.assert_allclose(pixels, expected, atol=1e-4)


@pytest.mark.nightly
def test_the_command_tells_how_close_they_are(run, tmp_path, capsys):
    capsys.readouterr()
    assert main(["export", str(run), str(tmp_path / "onnx")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrote")]
    assert [line.split(":")[0].rsplit("/")[-1] for line in lines] == ["encode.onnx", "decode.onnx"]
    assert all(0 < float(line.split("within ")[1].split()[0]) < 1e-4 for line in lines), lines


def test_what_cannot_be_exported(run, files, tmp_path, refused, monkeypatch):
    refused(lambda: main(["export", str(tmp_path), str(tmp_path / "out")]), "is no model folder")
    refused(lambda: main(["export", str(run), str(files)]), "exists and is not empty")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    refused(lambda: main(["export", str(run), str(tmp_path / "out")]), r"pip install 'visionflow-hf\[onnx\]'")
    assert not (tmp_path / "out").exists() and torch.is_grad_enabled()
