"""The pipelines of both directions: every kind of input, batches, samples, and that every kind of save carries them."""

import http.server
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline

from visionflow_hf.hub import load_model


@pytest.fixture(scope="module")
def encode(run):
    return pipeline("image-to-fmri", model=str(run), trust_remote_code=True)


@pytest.fixture(scope="module")
def decode(run):
    return pipeline("fmri-to-image", model=str(run), trust_remote_code=True)


RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 16, 16), dtype=np.uint8)
FMRI = RNG.normal(size=(5, 30)).astype(np.float32)


def test_pipelines_of_a_folder_are_its_own_code(encode, decode):
    for made in (encode, decode):
        assert type(made).__module__.startswith("transformers_modules.")


def test_encoding_equals_the_model(encode, run):
    model, processor = load_model(run)
    expected = model.predict_fmri(**processor(images=list(PIXELS), subject="subj02")).numpy()
    found = encode(list(PIXELS), subject="subj02")
    assert [fmri.shape for fmri in found] == [(30,)] * 5 and found[0].dtype == np.float32
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
        for image in (str(path), url, PIXELS[0], torch.from_numpy(PIXELS[0] / 255.0)):
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
    with pytest.raises(ValueError, match="num_samples is 0"):
        encode(PIXELS[0], subject="subj01", num_samples=0)


def test_the_subject_may_be_given_once_for_all(run):
    encode = pipeline("image-to-fmri", model=str(run), trust_remote_code=True, subject="subj02", num_samples=2)
    assert encode(PIXELS[0]).shape == (2, 30)
    with pytest.raises(ValueError, match="unknown subject ann: this model knows subj01, subj02"):
        encode(PIXELS[0], subject="ann")


def test_a_missing_subject_is_named(decode):
    with pytest.raises(ValueError, match="fmri needs its subject: this model knows subj01, subj02"):
        decode(FMRI[0])


def test_a_model_at_hand_makes_its_pipeline(run):
    model = AutoModel.from_pretrained(run, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(run, trust_remote_code=True)
    assert model.pipeline("image-to-fmri", processor)(PIXELS[0], subject="subj01").shape == (30,)
    with pytest.raises(ValueError, match="unknown task image-to-text: image-to-fmri, fmri-to-image are there"):
        model.pipeline("image-to-text", processor)


def test_every_kind_of_save_carries_them(encode, run, tmp_path):
    expected = encode(PIXELS[0], subject="subj01")
    encode.save_pretrained(tmp_path / "by pipeline")
    encode.model.save_pretrained(tmp_path / "by model")
    encode.processor.save_pretrained(tmp_path / "by model")
    ours, processor = load_model(run)
    ours.save_pretrained(tmp_path / "by package")
    processor.save_pretrained(tmp_path / "by package")
    for folder in ("by pipeline", "by model", "by package"):
        again = pipeline("image-to-fmri", model=str(tmp_path / folder), trust_remote_code=True)
        np.testing.assert_allclose(again(PIXELS[0], subject="subj01"), expected, atol=1e-5)
        decode = pipeline("fmri-to-image", model=str(tmp_path / folder), trust_remote_code=True)
        assert decode(FMRI[0], subject="subj01").size == (16, 16)
