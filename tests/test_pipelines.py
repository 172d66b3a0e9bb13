"""The pipelines of both directions: every kind of input, batches, samples, and that every kind of save carries them."""

import base64
import http.server
import shutil
import threading

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from PIL import EpsImagePlugin, Image
from transformers import AutoModel, AutoProcessor, ViTConfig, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from visionflow_hf import VisionFlowConfig, VisionFlowModel, VisionFlowProcessor
from visionflow_hf.errors import UserError
from visionflow_hf.hub import load_model
from visionflow_hf.images import FORMATS as of_commands
from visionflow_hf.modeling.handler import FORMATS as of_handler
from visionflow_hf.modeling.handler import image_of
from visionflow_hf.modeling.pipeline_visionflow import FORMATS

VOXELS = {"subj01": 30, "subj02": 20}
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 16, 16), dtype=np.uint8)
FMRI = RNG.normal(size=(5, 30)).astype(np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a small model of grey images with random weights."""
    vit = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = VisionFlowConfig(
        vision_config=ViTConfig(**vit, image_size=16, patch_size=8, num_channels=1),
        image_size=[16, 16],
        num_channels=1,
        feature_grid=2,
        latent_dim=8,
        linear_dim=8,
        bridge_hidden_size=16,
        decoder_channels=4,
        subjects=list(VOXELS),
        num_voxels=list(VOXELS.values()),
    )
    model = VisionFlowModel(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    mean = {name: RNG.normal(size=voxels) for name, voxels in VOXELS.items()}
    std = {name: 1 + RNG.random(voxels) for name, voxels in VOXELS.items()}
    folder = tmp_path_factory.mktemp("run") / "model"
    model.save_pretrained(folder)
    VisionFlowProcessor([16, 16], 1, list(VOXELS), mean, std).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encode(run):
    return pipeline("image-to-fmri", model=str(run), trust_remote_code=True)


@pytest.fixture(scope="module")
def decode(run):
    return pipeline("fmri-to-image", model=str(run), trust_remote_code=True)


def test_pipelines_of_a_folder_are_its_own_code(encode, decode):
    for made in (encode, decode):
        assert type(made).__module__.startswith("transformers_modules.")


def test_encoding_equals_the_model(encode, run):
    model, processor = load_model(run)
    expected = model.predict_fmri(**processor(images=list(PIXELS), subject="subj02")).detach().numpy()
    assert expected.std(0).min() > 1e-3  # each image has its own response
    found = encode(list(PIXELS), subject="subj02")
    assert [fmri.shape for fmri in found] == [(20,)] * 5 and found[0].dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(encode(PIXELS[..., None], subject="subj02", batch_size=4), expected, atol=1e-5)


def test_images_of_every_kind(encode, tmp_path):
    expected = encode(Image.fromarray(PIXELS[0]), subject="subj01")
    path = tmp_path / "image.png"
    Image.fromarray(PIXELS[0]).save(path)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/image.png"
        base = base64.b64encode(path.read_bytes()).decode()
        array = PIXELS[0]
        for image in (
            str(path),
            path,
            url,
            base,
            f"data:image/png;base64,{base}",
            array,
            torch.from_numpy(array / 255),
        ):
            np.testing.assert_allclose(encode(image, subject="subj01"), expected, atol=1e-5)
        server.shutdown()


def test_decoding_equals_the_model(decode, run):
    model, processor = load_model(run)
    expected = processor.to_images(model.reconstruct_image(**processor(fmri=FMRI, subject="subj01")))
    for found in (
        decode(FMRI, subject="subj01"),
        decode(list(FMRI), subject="subj01", batch_size=3),
        [decode(row, subject="subj01") for row in FMRI.tolist()],
    ):
        assert len(found) == 5
        for image, other in zip(found, expected, strict=True):
            assert np.abs(np.asarray(image, dtype=int) - np.asarray(other)).max() <= 1


def test_samples_scatter_around_the_mean_and_follow_their_generator(encode, decode):
    first, again = (
        encode(PIXELS[0], subject="subj01", num_samples=200, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert first.shape == (200, 30) and np.array_equal(first, again) and first.std(0).min() > 0
    images = decode(FMRI[:2], subject="subj01", num_samples=3, batch_size=2)
    assert [len(samples) for samples in images] == [3, 3] and all(image.size == (16, 16) for image in images[0])
    assert not np.array_equal(images[0][0], images[0][1])
    both = encode(rows_of(["subj01", "subj02"]), num_samples=4, batch_size=2)
    assert [samples.shape for samples in both] == [(4, 30), (4, 20)]
    with pytest.raises(ValueError, match="num_samples is 0"):
        encode(PIXELS[0], subject="subj01", num_samples=0)


def test_the_subject_may_be_given_once_for_all(run):
    encode = pipeline("image-to-fmri", model=str(run), trust_remote_code=True, subject="subj02", num_samples=2)
    assert encode(PIXELS[0]).shape == (2, 20)
    with pytest.raises(ValueError, match="unknown subject ann: this model knows subj01, subj02"):
        encode(PIXELS[0], subject="ann")


def test_a_missing_subject_is_named(encode, decode):
    with pytest.raises(ValueError, match="fmri needs its subject: this model knows subj01, subj02"):
        decode(FMRI[0])
    with pytest.raises(ValueError, match=r"the subject is missing: .* the model knows subj01, subj02"):
        encode(PIXELS[0])
    with pytest.raises(ValueError, match="subject is a list: give one name, or a row"):
        encode(list(PIXELS), subject=["subj01"] * 5)


def rows_of(subjects) -> list[dict]:
    return [
        {"image": Image.fromarray(image), "fmri": fmri[: VOXELS[subject]], "subject": subject}
        for image, fmri, subject in zip(PIXELS, FMRI, subjects, strict=False)
    ]


@pytest.fixture(scope="module")
def rows() -> Dataset:
    """A data set of one subject."""
    table = Dataset.from_list([row | {"fmri": row["fmri"].tolist()} for row in rows_of(["subj01"] * 5)])
    return table.add_column("unused", list(range(5)))


KINDS = {
    "column": lambda rows, name: rows[name],
    "column of arrays": lambda rows, name: rows.with_format("numpy")[name],
    "column of tensors": lambda rows, name: rows.with_format("torch")[name],
    "tuple": lambda rows, name: tuple(rows[name]),
    "list": lambda rows, name: list(rows[name]),
    "array": lambda rows, name: np.stack([np.asarray(value) for value in rows[name]]),
    "tensor": lambda rows, name: torch.stack([torch.tensor(np.asarray(value)) for value in rows[name]]),
    "dicts": lambda rows, name: list(rows),
    "data set": lambda rows, name: rows,
    "series": lambda rows, name: pd.Series(list(rows[name])),
    "KeyDataset": lambda rows, name: KeyDataset(rows, name),
    "generator": lambda rows, name: (value for value in rows[name]),
    "iterator": lambda rows, name: iter(rows[name]),
}


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_one_result_for_each_row(encode, decode, rows, kind, batch_size):
    lazy = kind in ("KeyDataset", "generator", "iterator")
    for run, name in ((encode, "image"), (decode, "fmri")):
        results = run(KINDS[kind](rows, name), subject="subj01", batch_size=batch_size)
        assert isinstance(results, list) != lazy
        results = [np.asarray(result, dtype=float) for result in results]
        expected = [np.asarray(run(value, subject="subj01"), dtype=float) for value in rows[name]]
        assert len(results) == 5
        for result, other in zip(results, expected, strict=True):
            np.testing.assert_allclose(result, other, atol=1e-4 if name == "image" else 1)


def test_a_table_of_responses(decode):
    frame = pd.DataFrame(FMRI)
    assert len(decode(frame, subject="subj01")) == 5
    assert decode(frame.loc[0], subject="subj01").size == (16, 16)


def test_no_rows_give_no_results(encode, decode):
    assert encode([], subject="subj01") == decode(np.zeros((0, 30)), subject="subj01") == []


def test_a_batch_of_three_grey_images_is_three(encode):
    for number in (2, 3, 4):
        for images in (PIXELS[:number], torch.from_numpy(PIXELS[:number])):
            assert len(encode(images, subject="subj01")) == number
    assert encode(PIXELS[:1], subject="subj01").shape == (30,)  # one image, channels first


@pytest.mark.parametrize("batch_size", [1, 4])
def test_rows_name_their_own_subject(encode, decode, batch_size):
    subjects = ["subj01", "subj02", "subj02", "subj01"]
    found = encode(rows_of(subjects), batch_size=batch_size)
    assert [len(fmri) for fmri in found] == [30, 20, 20, 30]
    for fmri, image, subject in zip(found, PIXELS, subjects, strict=False):
        np.testing.assert_allclose(fmri, encode(image, subject=subject), atol=1e-4)
    images = decode(rows_of(subjects), batch_size=batch_size, subject="subj01")  # a row's own name comes first
    for image, row in zip(images, rows_of(subjects), strict=True):
        other = decode(row["fmri"], subject=row["subject"])
        assert np.abs(np.asarray(image, dtype=int) - np.asarray(other)).max() <= 1
    assert len(encode(rows_of(["subj02"])[0])) == 20
    with pytest.raises(ValueError, match="a row has no image, only fmri, subject"):
        encode({"fmri": FMRI[0], "subject": "subj01"})


def test_sixteen_bits_and_orientation_of_a_file(encode, tmp_path):
    expected = encode(PIXELS[0], subject="subj01")
    Image.fromarray(PIXELS[0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(PIXELS[0, ::-1, ::-1]).save(tmp_path / "turned.png", exif=exif)
    for name in ("deep.png", "turned.png"):
        np.testing.assert_allclose(encode(tmp_path / name, subject="subj01"), expected, atol=1e-4)
    encoded = base64.b64encode((tmp_path / "deep.png").read_bytes()).decode()
    np.testing.assert_allclose(encode(encoded, subject="subj01"), expected, atol=1e-4)
    with pytest.raises(ValueError, match=r"absent\.png cannot .* \(no image file\): give the path of a file"):
        encode("absent.png", subject="subj01")


def test_an_image_that_cannot_be_read_is_named(encode, tmp_path):
    Image.fromarray(PIXELS[0]).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:-40])
    (tmp_path / "text.png").write_text("no image")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        for source, cause in (
            (f"{tmp_path}/cut.png", "truncated"),
            (f"{tmp_path}/text.png", "no image file"),
            (f"{url}/cut.png", "truncated"),
            (f"{url}/text.png", "no image file"),
            (f"{url}/absent.png", "HTTP Error 404"),
            (f"{url}/an image.png", "URL can't contain control characters"),
            (base64.b64encode(b"no image" * 100).decode(), "no image file"),
        ):
            with pytest.raises(ValueError, match=cause) as error:
                encode([PIXELS[0], source], subject="subj01")
            assert str(error.value).startswith(f"{source[:200]} cannot be read as an image (")
            assert len(str(error.value)) < 400
        server.shutdown()


def test_parameters_of_another_kind_are_refused(encode, decode):
    for given in ("4", 1.5, True, [2]):
        with pytest.raises(ValueError, match=r"num_samples is .*: a whole number, at least 1, is needed"):
            decode(FMRI[0], subject="subj01", num_samples=given)
    assert len(decode(FMRI[0], subject="subj01", num_samples=np.int64(2))) == 2
    for given in (5, [5]):
        with pytest.raises(ValueError, match=r"rois is .*: give a list of names of regions"):
            encode(PIXELS[0], subject="subj01", rois=given)


def test_a_model_at_hand_makes_its_pipeline(run):
    model = AutoModel.from_pretrained(run, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(run, trust_remote_code=True)
    assert model.pipeline("image-to-fmri", processor)(PIXELS[0], subject="subj01").shape == (30,)
    with pytest.raises(ValueError, match="unknown task image-to-text"):
        model.pipeline("image-to-text", processor)
    expected = model.pipeline("image-to-fmri", processor)(PIXELS[0], subject="subj01")
    for ours, theirs in ((model, processor), load_model(run)):
        found = pipeline("image-to-fmri", model=ours, processor=theirs)(PIXELS[0], subject="subj01")
        np.testing.assert_allclose(found, expected, atol=1e-5)
        image = pipeline("fmri-to-image", model=ours, processor=theirs)(FMRI[0], subject="subj01")
        assert image.size == (16, 16)


def test_subjects_that_differ_are_refused(run, tmp_path):
    model, processor = load_model(run)
    processor.remove_subject("subj02")
    message = r"only the processor has none, only the model subj02 \(20 voxels\)"
    with pytest.raises(ValueError, match=message):
        pipeline("image-to-fmri", model=model, processor=processor)
    other = shutil.copytree(run, tmp_path / "other")
    processor.save_pretrained(other)
    with pytest.raises(UserError, match=message):
        load_model(other)
    with pytest.raises(ValueError, match="the pipeline has no processor"):
        type(pipeline("image-to-fmri", model=str(run), trust_remote_code=True))(model=model)


def test_a_folder_without_its_statistics_is_refused(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    (other / "fmri_statistics.safetensors").unlink()
    with pytest.raises(UserError, match="train the model again") as error:
        load_model(other)
    assert "pickle" not in str(error.value)


def test_every_kind_of_save_carries_them(encode, run, tmp_path):
    expected = encode(PIXELS[0], subject="subj01")
    encode.save_pretrained(tmp_path / "by pipeline")
    encode.model.save_pretrained(tmp_path / "by model")
    encode.processor.save_pretrained(tmp_path / "by model")
    ours, processor = load_model(run)
    ours.save_pretrained(tmp_path / "by package")
    processor.save_pretrained(tmp_path / "by package")
    at_hand = pipeline("fmri-to-image", model=ours, processor=processor)
    at_hand.save_pretrained(tmp_path / "by registered pipeline")
    for folder in ("by pipeline", "by model", "by package", "by registered pipeline"):
        again = pipeline("image-to-fmri", model=str(tmp_path / folder), trust_remote_code=True)
        np.testing.assert_allclose(again(PIXELS[0], subject="subj01"), expected, atol=1e-5)
        decode = pipeline("fmri-to-image", model=str(tmp_path / folder), trust_remote_code=True)
        assert decode(FMRI[0], subject="subj01").size == (16, 16)


def test_a_row_that_is_none_is_no_image(encode):
    with pytest.raises(ValueError, match="a row is None: image is needed of each"):
        encode([np.zeros((16, 16), np.uint8), None], subject="subj01")


def test_a_format_that_other_programs_draw_is_no_image(encode, tmp_path, monkeypatch):
    monkeypatch.setattr(EpsImagePlugin.EpsImageFile, "load", lambda self: pytest.fail("another program would run"))
    (tmp_path / "drawn.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EOF\n")
    with pytest.raises(ValueError, match="no image file"):
        encode(tmp_path / "drawn.eps", subject="subj01")
    encoded = base64.b64encode((tmp_path / "drawn.eps").read_bytes()).decode()
    with pytest.raises(ValueError, match="not the base64 of an image file"):
        image_of(encoded)
    assert FORMATS == of_handler == of_commands


def test_a_pipeline_from_the_cache_alone(run):
    words = {"model": str(run), "trust_remote_code": True, "local_files_only": True}
    assert pipeline("image-to-fmri", **words)(PIXELS[0], subject="subj01").shape == (30,)
