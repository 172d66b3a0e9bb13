"""`encode` and `decode`: files in, files out, the round trip, and what they refuse."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from visionflow_hf.cli import main
from visionflow_hf.corpus.responses import images_of, responses_of
from visionflow_hf.corpus.schema import open_corpus
from visionflow_hf.errors import UserError
from visionflow_hf.hub import load_model
from visionflow_hf.inference import read_fmri


@pytest.fixture
def pictures(corpus, tmp_path):
    """Two test stimuli as files."""
    test = open_corpus(corpus).splits["test"]
    files = []
    for index, picture in enumerate(images_of(test, list(dict.fromkeys(test["stimulus_id"]))[:2])):
        files.append(tmp_path / f"stimulus{index}.png")
        picture.save(files[-1])
    return files


def encode(run, *rest) -> int:
    return main(["encode", str(run), *map(str, rest)])


def decode(run, *rest) -> int:
    return main(["decode", str(run), *map(str, rest)])


def test_the_round_trip_image_fmri_image(run, pictures, tmp_path):
    assert encode(run, *pictures, "--subject", "subj02", "--output", tmp_path / "fmri.npz") == 0
    with np.load(tmp_path / "fmri.npz") as written:
        fmri = written["fmri"]
        assert written["image"].tolist() == [str(file) for file in pictures] and written["subject"] == "subj02"
    model, processor = load_model(run)
    images = [Image.open(file) for file in pictures]
    with torch.no_grad():
        predicted = model.predict_fmri(**processor(images=images, subject="subj02"))
    np.testing.assert_allclose(fmri, predicted, atol=1e-5)
    assert decode(run, tmp_path / "fmri.npz", "--subject", "subj02", "--output", tmp_path / "images") == 0
    assert sorted(file.name for file in (tmp_path / "images").iterdir()) == ["0000.png", "0001.png"]
    with torch.no_grad():
        expected = processor.to_images(model.reconstruct_image(**processor(fmri=fmri, subject="subj02")))
    for index, image in enumerate(expected):
        found = np.asarray(Image.open(tmp_path / "images" / f"{index:04d}.png"), dtype=int)
        assert np.abs(found - np.asarray(image)).max() <= 1


def test_measured_fmri_of_a_corpus_is_decoded(run, corpus, tmp_path):
    fmri = responses_of(open_corpus(corpus).splits["test"], "subj01").fmri
    np.savez(tmp_path / "fmri.npz", fmri=fmri[0])  # one row may come without its axis
    assert decode(run, tmp_path / "fmri.npz", "--subject", "subj01", "--output", tmp_path / "images") == 0
    assert Image.open(tmp_path / "images" / "0000.png").size == (16, 16)


def test_a_npy_is_read_as_it_is_meant(tmp_path):
    fmri = np.random.default_rng(0).normal(size=(3, 30)).astype(np.float32)
    for name, array in (("rows", fmri), ("row", fmri[0])):
        np.save(tmp_path / f"{name}.npy", array)
        assert np.array_equal(read_fmri(tmp_path / f"{name}.npy"), np.atleast_2d(array))


def test_damaged_fmri_is_refused_in_one_line(tmp_path):
    np.savez(tmp_path / "whole.npz", fmri=np.zeros((3, 30)))
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "spoilt.npz").write_bytes(whole[:200] + bytes([whole[200] ^ 255]) + whole[201:])
    (tmp_path / "text.npy").write_text("no numbers")
    for name in ("cut.npz", "spoilt.npz", "text.npy", "pickled.npy"):
        with pytest.raises(UserError, match=f"{name} cannot be read .*: is it whole"):
            read_fmri(tmp_path / name)


def test_a_photo_and_its_upright_copy_evoke_the_same(run, pictures, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    photo.save(tmp_path / "turned.png", exif=exif)
    photo.rotate(-90, expand=True).save(tmp_path / "upright.png")
    files = [tmp_path / "turned.png", tmp_path / "upright.png"]
    assert encode(run, *files, "--subject", "subj01", "--output", tmp_path / "fmri.npz") == 0
    turned, upright = np.load(tmp_path / "fmri.npz")["fmri"]
    assert np.array_equal(turned, upright)


def test_encode_refuses_what_does_not_fit(run, pictures, tmp_path, refused):
    def encoded(*images, subject="subj01", output=tmp_path / "fmri.npz"):
        return encode(run, *images, "--subject", subject, "--output", output)

    (tmp_path / "notes.txt").write_text("no picture")
    refused(lambda: encoded(tmp_path / "absent.png"), "there is no image .*absent.png")
    refused(lambda: encoded(pictures[0], tmp_path / "notes.txt"), "notes.txt cannot be read as an image")
    Image.new("1", (14000, 14000)).save(tmp_path / "scan.png")
    refused(lambda: encoded(tmp_path / "scan.png"), "scan.png has too many pixels: at most")
    refused(lambda: encoded(pictures[0], subject="ann"), "unknown subject ann: this model knows subj01, subj02")
    refused(lambda: encoded(pictures[0], output=tmp_path / "no" / "fmri.npz"), "no is no folder")
    refused(lambda: encoded(pictures[0], output=tmp_path), "is a folder: --output names a file")
    refused(
        lambda: encoded(pictures[0], output=tmp_path / f"{'long' * 99}.npz"), "cannot be written: File name too long"
    )
    assert not list(tmp_path.glob("*.npz*"))


def test_decode_refuses_what_does_not_fit(run, tmp_path, refused):
    file, out = tmp_path / "fmri.npz", tmp_path / "images"

    def decoded(subject="subj01", output=out, **arrays):
        np.savez(file, **arrays)
        return decode(run, file, "--subject", subject, "--output", output)

    good = np.zeros((2, 30), np.float32)
    bad = good.copy()
    bad[1, 3] = np.nan
    refused(lambda: decoded(betas=good, ids=good), "has no array fmri: its keys are betas, ids")
    refused(lambda: decoded(fmri=good[:, :29]), "has 29 voxels, subj01 has 30")
    refused(lambda: decoded(fmri=bad), "1 NaN or infinite values in 1 voxel \\(3\\)")
    refused(lambda: decoded(fmri=good, subject="ann"), "unknown subject ann: this model knows subj01, subj02")
    refused(lambda: decoded(fmri=good[None]), "numbers \\(trials, voxels\\) are expected")
    refused(lambda: decoded(fmri=good[:0]), "numbers \\(trials, voxels\\) are expected")
    refused(lambda: decode(run, tmp_path / "no.npz", "--subject", "subj01", "--output", out), "there is no file")
    file.write_bytes(b"PK no zip")
    refused(lambda: decode(run, file, "--subject", "subj01", "--output", out), "fmri.npz cannot be read")
    assert not out.exists()
    out.mkdir()
    (out / "holiday.jpg").write_bytes(b"")
    refused(lambda: decoded(fmri=good), "pass --overwrite")
    assert [item.name for item in out.iterdir()] == ["holiday.jpg"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda weights: weights.pop("image_decoder.seed.bias"), "image_decoder.seed.bias"),
        (lambda weights: weights.update(stale=torch.zeros(3)), "stale"),
        (lambda weights: weights.update({"image_decoder.seed.bias": torch.zeros(3)}), "image_decoder.seed.bias"),
    ],
    ids=["missing", "unknown", "of another size"],
)
def test_weights_of_another_version_are_refused(run, pictures, tmp_path, refused, change, named):
    other = shutil.copytree(run, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    change(weights)
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    message = rf"other does not fit this version of VisionFlow: 1 weight \({named}\) missing, unknown or of another"
    refused(lambda: encode(other, *pictures, "--subject", "subj01", "--output", tmp_path / "o.npz"), message)


def test_a_model_folder_that_cannot_be_read_is_named(run, pictures, tmp_path, refused):
    other = shutil.copytree(run, tmp_path / "other")
    weights = other / "model.safetensors"
    whole = weights.read_bytes()
    for content in (whole[:1000], whole[: len(whole) // 2], b""):
        weights.write_bytes(content)
        refused(lambda: encode(other, *pictures, "--subject", "subj01", "--output", tmp_path / "o.npz"), "no model at")
    weights.write_bytes(whole)
    config = json.loads((run / "config.json").read_text())
    damaged = (
        ("latent_dim", "x"),
        ("image_size", 0.5),
        ("vision_config", []),
        ("subjects", None),
        ("feature_layers", [40]),
        ("feature_widths", [3]),
    )
    texts = ["{", "[]", '{"a":' * 10**4, *(json.dumps(config | {name: value}) for name, value in damaged)]
    for text in texts:
        (other / "config.json").write_text(text)
        refused(lambda: encode(other, *pictures, "--subject", "subj01", "--output", tmp_path / "o.npz"), "no model at")
    shutil.copy(run / "config.json", other)
    processor = json.loads((run / "processor_config.json").read_text())
    (other / "processor_config.json").write_text(json.dumps(processor | {"image_size": [16, 0.5]}))
    message = "image_size is .16, 0.5. in the processor"
    refused(lambda: encode(other, *pictures, "--subject", "subj01", "--output", tmp_path / "o.npz"), message)


def test_debug_shows_the_traceback(run, tmp_path):
    from visionflow_hf.errors import UserError

    with pytest.raises(UserError):
        main(["--debug", "encode", str(run), "absent.png", "--subject", "subj01", "--output", str(tmp_path / "o.npz")])
