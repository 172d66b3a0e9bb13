"""The processor: images of every kind, raw fMRI, its way back, its files, and errors that name what was expected."""

import io
import os
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from loopback_hub import LoopbackHub, environment
from PIL import Image
from safetensors.numpy import load_file
from stranger import STRANGER

from visionflow_hf import VisionFlowProcessor


@pytest.fixture
def processor() -> VisionFlowProcessor:
    return VisionFlowProcessor(
        image_size=[6, 8],
        num_channels=3,
        subjects=["ann", "bob"],
        fmri_mean={"ann": np.array([1.0, 2.0, 3.0]), "bob": np.array([10.0, 20.0])},
        fmri_std={"ann": np.array([2.0, 1.0, 0.5]), "bob": np.array([4.0, 1.0])},
    )


def test_fmri_is_standardised_and_padded_by_subject(processor):
    batch = processor(fmri=[[3.0, 2.0, 2.0], [14.0, 19.0]], subject=["ann", "bob"])
    torch.testing.assert_close(batch["fmri"], torch.tensor([[1.0, 0.0, -2.0], [1.0, -1.0, 0.0]]))
    assert batch["subject_ids"].tolist() == [0, 1]
    restored = batch["fmri"] * batch["fmri_std"] + batch["fmri_mean"]
    torch.testing.assert_close(restored, torch.tensor([[3.0, 2.0, 2.0], [14.0, 19.0, 0.0]]))


@pytest.mark.parametrize(
    "fmri", [np.ones(3), [1.0, 1, 1], torch.ones(3), np.ones((1, 3)), torch.ones(1, 3), [np.ones(3)]]
)
def test_one_response_in_every_form(processor, fmri):
    assert processor(fmri=fmri, subject="ann")["fmri"].shape == (1, 3)


def test_a_row_without_a_response_needs_no_subject(processor):
    image = Image.new("RGB", (8, 6))
    batch = processor(images=[image, image], fmri=[None, [14.0, 19.0]], subject=[None, "bob"])
    assert batch["subject_ids"].tolist() == [-1, 1] and batch["has_fmri"].tolist() == [False, True]
    assert batch["fmri"].tolist() == [[0, 0], [1, -1]] and batch["fmri_mean"].tolist() == [[0, 0], [10, 20]]
    assert batch["fmri_std"].tolist() == [[1, 1], [4, 1]]
    alone = processor(images=[image], fmri=[None], subject=[None])
    assert alone["subject_ids"].tolist() == [-1] and alone["fmri"].shape == (1, 0)
    assert processor(images=[image, image], subject=["ann", None])["subject_ids"].tolist() == [0, -1]
    assert VisionFlowProcessor([6, 8])(images=[image], subject=[None])["subject_ids"].tolist() == [-1]
    message = "a row has fMRI but no subject: name the subject of every response; this model knows ann, bob"
    with pytest.raises(ValueError, match=message):
        processor(images=[image, image], fmri=[None, [14.0, 19.0]], subject=["ann", None])
    with pytest.raises(ValueError, match=message):
        processor.post_process_fmri(batch["fmri"], subject=[None, "bob"])


def test_images_of_every_kind_become_the_same_pixels(processor):
    array = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    expected = torch.from_numpy(array).permute(2, 0, 1)[None] / 255
    for image in (
        Image.fromarray(array),
        array,
        array / 255,
        expected[0],
        expected,
        [array],
        torch.from_numpy(array),
        Image.fromarray(array).convert("RGBA"),
    ):
        torch.testing.assert_close(processor(images=image)["pixel_values"], expected)


def test_columns_of_datasets_are_batches(processor):
    images = [Image.new("L", (16, 16), value) for value in (10, 200)]
    rows = Dataset.from_dict({"image": images, "fmri": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]})
    ours = processor(images=rows["image"], fmri=rows["fmri"], subject="ann")
    plain = processor(images=images, fmri=[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], subject="ann")
    for name in plain:
        torch.testing.assert_close(ours[name], plain[name])


def test_images_are_resized_and_converted(processor):
    grey = Image.new("L", (30, 20), 51)
    pixels = processor(images=grey)["pixel_values"]
    assert pixels.shape == (1, 3, 6, 8)
    torch.testing.assert_close(pixels, torch.full((1, 3, 6, 8), 0.2))
    one_channel = VisionFlowProcessor(image_size=[4, 4], num_channels=1)
    red = one_channel(images=Image.new("RGB", (4, 4), (255, 0, 0)))["pixel_values"]
    assert red.shape == (1, 1, 4, 4)


def test_to_images_is_the_way_back(processor):
    array = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    (picture,) = processor.to_images(processor(images=array)["pixel_values"])
    assert np.array_equal(np.asarray(picture), array)
    (clamped,) = processor.to_images(torch.tensor([[[[-1.0, 2.0]]]]))
    assert np.asarray(clamped).tolist() == [[0, 255]]


def test_rows_may_lack_a_part(processor):
    image = Image.new("RGB", (8, 6), (255, 255, 255))
    batch = processor(images=[image, None], fmri=[None, [14.0, 19.0]], subject=["ann", "bob"])
    assert batch["has_image"].tolist() == [True, False] and batch["has_fmri"].tolist() == [False, True]
    assert batch["pixel_values"][1].eq(0).all() and batch["fmri"][0].eq(0).all()


def test_the_only_subject_need_not_be_named():
    processor = VisionFlowProcessor([4, 4], 1, ["ann"], {"ann": np.zeros(2)}, {"ann": np.ones(2)})
    assert processor(fmri=[1.0, 2.0])["subject_ids"].tolist() == [0]


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({}, "give one or both"),
        ({"fmri": np.ones(3)}, "needs its subject: this model knows ann, bob"),
        ({"fmri": np.ones(3), "subject": "eve"}, "unknown subject eve: this model knows ann, bob"),
        ({"fmri": np.ones(4), "subject": "ann"}, "ann has 3 voxels"),
        ({"fmri": [1.0, np.nan, 1.0], "subject": "ann"}, "1 NaN or infinite"),
        ({"fmri": np.ones((2, 3)), "subject": ["ann"]}, "1 subjects for 2 rows"),
        ({"fmri": np.float32(1), "subject": "ann"}, r"shape \(\): \(voxels,\) or \(batch, voxels\)"),
        (
            {"fmri": np.ones((2, 3)), "images": [np.zeros((6, 8), np.uint8)], "subject": "ann"},
            "1 images and 2 responses",
        ),
        ({"images": np.full((6, 8), 7.0)}, "values in 0..1"),
        ({"images": np.zeros((6, 8), np.int64)}, "uint8"),
        ({"images": np.zeros((6, 8, 5), np.uint8)}, "1 or 3 channels"),
        ({"images": np.zeros((6, 8), np.uint8), "return_tensors": "np"}, "only 'pt'"),
        ({"images": np.full((6, 8), 1.01)}, r"values in 1.01..1.01: values in 0..1"),
        ({"images": np.array([[-0.01, 1.0]])}, r"values in -0.01..1"),
        ({"images": np.array([[np.nan, 1.0]])}, r"values in nan..nan"),
        ({"images": Image.fromarray(np.full((6, 8), 7.0, np.float32))}, r"values in 7..7"),
        ({"images": Image.fromarray(np.full((6, 8), 70000, np.int32))}, "type int32"),
        ({"images": np.zeros((2, 6, 8), np.uint8)}, "1 or 3 channels"),
        ({"images": np.zeros((0, 8), np.uint8)}, r"shape \(0, 8\)"),
        ({"images": "image.png"}, "image.png is a path"),
        ({"fmri": np.zeros((2, 4)), "subject": "ann"}, "ann has 3 voxels"),
        ({"fmri": np.ones((2, 3)), "subject": ["ann", "bob"]}, "bob has 2 voxels"),
    ],
)
def test_wrong_input_is_named(processor, inputs, message):
    with pytest.raises(ValueError, match=message):
        processor(**inputs)


class OnGpu(torch.Tensor):
    """A tensor that refuses NumPy, as one on a GPU does."""

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor first.")

    def __array__(self, *args, **kwargs):
        return self.numpy()

    def cpu(self):
        return self.as_subclass(torch.Tensor).clone()


@pytest.mark.parametrize("kind", ["gpu", "bfloat16", "float16", "float64", "gradient"])
def test_tensors_of_every_dtype_and_device(processor, kind):
    image = torch.randint(0, 2, (3, 6, 8)).float()
    fmri = torch.tensor([[3.0, 2.0, 2.0], [5.0, 1.0, 4.0]])
    images, responses = image[None].repeat(2, 1, 1, 1), fmri
    if kind == "gpu":
        images, responses = images.as_subclass(OnGpu), responses.as_subclass(OnGpu)
        with pytest.raises(TypeError, match="cuda"):
            np.asarray(responses)
    elif kind == "gradient":
        images, responses = images.clone().requires_grad_(), responses.clone().requires_grad_()
    else:
        images, responses = images.to(getattr(torch, kind)), responses.to(getattr(torch, kind))
    expected = processor(images=[image.numpy()] * 2, fmri=fmri.numpy(), subject="ann")
    for given in ((images, responses), (list(images), list(responses))):
        batch = processor(images=given[0], fmri=given[1], subject="ann")
        assert all(batch[name].dtype == torch.float32 for name in ("pixel_values", "fmri", "fmri_mean", "fmri_std"))
        for name in expected:
            torch.testing.assert_close(batch[name].as_subclass(torch.Tensor), expected[name], atol=0, rtol=0)
    if kind == "gradient":
        batch["fmri"].sum().backward()
        torch.testing.assert_close(responses.grad, torch.tensor([[0.5, 1.0, 2.0]] * 2))


def test_results_are_on_the_device_of_the_tensor(processor, monkeypatch):
    """The tests run on a CPU, so a tensor claims to be on `meta`, which results can be moved to."""

    class Elsewhere(torch.Tensor):
        device = torch.device("meta")

    monkeypatch.setattr(processor, "_pixels", lambda image: torch.zeros(3, 6, 8))
    images = torch.zeros(1, 3, 6, 8).as_subclass(Elsewhere)
    batch = processor(images=images, subject="ann")
    devices = {name: values.device.type for name, values in batch.items()}
    assert devices == dict.fromkeys(("pixel_values", "subject_ids", "fmri_mean", "fmri_std"), "meta")
    assert {values.device.type for values in processor(images=np.zeros((6, 8)), subject="ann").values()} == {"cpu"}


def test_unknown_arguments_are_refused(processor):
    with pytest.raises(TypeError, match="subjects"):
        processor(images=np.zeros((6, 8), np.uint8), subjects="ann")


RAMP = np.linspace(0, 1, 48).reshape(6, 8)


@pytest.mark.parametrize(
    "image",
    [
        (RAMP * 65535).astype(np.uint16),
        torch.from_numpy((RAMP * 65535).astype(np.uint16)),
        Image.fromarray((RAMP * 65535).astype(np.uint16)),
        Image.fromarray((RAMP * 65535).astype(np.int32)),
        Image.fromarray((RAMP * 65535).astype(">u2")),
        Image.fromarray(RAMP.astype(np.float32)),
        Image.fromarray((RAMP * 255).round().astype(np.uint8)),
        RAMP * 1.0008,
        RAMP * 1.0016 - 0.0008,
        RAMP.astype(np.float16),
        torch.from_numpy(RAMP).bfloat16(),
    ],
    ids=lambda image: f"{type(image).__name__} {getattr(image, 'dtype', None) or image.mode}",
)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_depth_is_scaled(image, channels):
    pixels = VisionFlowProcessor([6, 8], channels)(images=image)["pixel_values"]
    assert pixels.shape == (1, channels, 6, 8)
    for channel in pixels[0]:
        np.testing.assert_allclose(channel, RAMP, atol=0.004)


def test_sixteen_bits_of_a_png(tmp_path):
    Image.fromarray((RAMP * 65535).astype(np.uint16)).save(tmp_path / "deep.png")
    pixels = VisionFlowProcessor([6, 8], 1)(images=Image.open(tmp_path / "deep.png"))["pixel_values"]
    np.testing.assert_allclose(pixels[0, 0], RAMP, atol=0.004)


def test_images_are_turned_upright(processor, tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    Image.fromarray(np.rot90(array)).save(tmp_path / "turned.png", exif=exif)
    pixels = processor(images=Image.open(tmp_path / "turned.png"))["pixel_values"]
    torch.testing.assert_close(pixels[0], torch.from_numpy(array).permute(2, 0, 1) / 255)


def test_modes_of_pil():
    colour, grey = VisionFlowProcessor([1, 2], 3), VisionFlowProcessor([1, 2], 1)

    def pixels(processor, image):
        return (processor(images=image)["pixel_values"][0] * 255).round().int().flatten(1).T.tolist()

    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putdata([0, 1])
    assert pixels(colour, palette) == [[10, 20, 30], [200, 100, 50]]
    transparent = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    assert pixels(colour, transparent) == [[10, 20, 30]] * 2  # transparency is ignored
    assert pixels(grey, Image.new("LA", (2, 1), (70, 0))) == [[70]] * 2
    assert pixels(colour, Image.new("LA", (2, 1), (70, 255))) == [[70] * 3] * 2
    assert pixels(colour, Image.new("CMYK", (2, 1), (0, 255, 255, 0))) == [[255, 0, 0]] * 2
    bits = Image.new("1", (2, 1))
    bits.putdata([0, 1])
    assert pixels(grey, bits) == [[0], [255]]
    assert pixels(grey, np.array([[False, True]])) == [[0], [255]]
    assert pixels(colour, torch.tensor([[False, True]])) == [[0] * 3, [255] * 3]


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, lambda array: array / 255])
@pytest.mark.parametrize("number", [2, 3, 4])
def test_three_axes_are_a_batch_for_a_grey_model(number, kind):
    arrays = np.random.default_rng(0).integers(0, 256, (number, 6, 8), dtype=np.uint8)
    pixels = VisionFlowProcessor([6, 8], 1)(images=kind(arrays))["pixel_values"]
    torch.testing.assert_close(pixels, torch.from_numpy(arrays)[:, None] / 255)


def test_three_axes_that_are_one_image():
    grey, colour = VisionFlowProcessor([6, 8], 1), VisionFlowProcessor([6, 8], 3)
    for shape in ((1, 6, 8), (6, 8, 1), (6, 8, 3)):
        assert grey(images=np.zeros(shape, np.uint8))["pixel_values"].shape == (1, 1, 6, 8)
    for shape in ((3, 6, 8), (6, 8, 3), (1, 6, 8)):
        assert colour(images=np.zeros(shape, np.uint8))["pixel_values"].shape == (1, 3, 6, 8)
    assert grey(images=np.zeros((2, 3, 6, 8), np.uint8))["pixel_values"].shape == (2, 1, 6, 8)
    assert grey(images=[np.zeros((3, 6, 8), np.uint8)])["pixel_values"].shape == (1, 1, 6, 8)


def test_padded_responses_of_several_subjects(processor):
    """What `predict_fmri` returns for a batch of subjects with different numbers of voxels."""
    padded = torch.tensor([[3.0, 2.0, 2.0], [14.0, 19.0, 0.0]])
    batch = processor(fmri=padded, subject=["ann", "bob"])
    torch.testing.assert_close(batch["fmri"], torch.tensor([[1.0, 0.0, -2.0], [1.0, -1.0, 0.0]]))


def test_post_process_fmri_is_the_way_back(processor):
    raw = np.array([[3.0, 2.0, 2.5], [5.0, 1.0, 4.0]], dtype=np.float32)
    standard = processor(fmri=raw, subject="ann")["fmri"]
    back = processor.post_process_fmri(standard, "ann")
    assert isinstance(back, torch.Tensor)
    np.testing.assert_allclose(back, raw, rtol=1e-6)
    back = processor.post_process_fmri(standard.numpy(), ["ann", "ann"])
    assert isinstance(back, np.ndarray) and back.dtype == np.float32
    np.testing.assert_allclose(back, raw, rtol=1e-6)
    one = processor.post_process_fmri(standard[0].bfloat16(), "ann")
    assert one.shape == (3,) and one.dtype == torch.float32
    cut = processor.post_process_fmri(torch.zeros(2, 3), "bob")  # padded to the width of the other subject
    assert cut.tolist() == [[10.0, 20.0]] * 2
    samples = processor.post_process_fmri(torch.zeros(2, 5, 3), "ann")
    assert samples.shape == (2, 5, 3) and samples[1, 4].tolist() == [1.0, 2.0, 3.0]
    both = processor.post_process_fmri(np.zeros((2, 3)), ["ann", "bob"])
    assert [row.tolist() for row in both] == [[1.0, 2.0, 3.0], [10.0, 20.0]] and isinstance(both[0], np.ndarray)
    leaf = torch.zeros(3, requires_grad=True)
    processor.post_process_fmri(leaf, "ann").sum().backward()
    assert leaf.grad.tolist() == [2.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("fmri", "subject", "message"),
    [
        (np.zeros(2), "ann", "fmri has 2 columns, ann has 3 voxels"),
        (np.zeros((1, 4)), "bob", "fmri has 4 columns, bob has 2 voxels"),
        (np.zeros(3), None, "needs its subject"),
        (np.zeros(3), "eve", "unknown subject eve"),
        (np.zeros((2, 3)), ["ann"], "1 subjects for 2 rows"),
        (np.float32(0), "ann", "a single number"),
    ],
)
def test_post_process_fmri_names_wrong_input(processor, fmri, subject, message):
    with pytest.raises(ValueError, match=message):
        processor.post_process_fmri(fmri, subject)


def test_post_process_images_takes_any_tensor(processor):
    pixels = torch.rand(2, 3, 6, 8)
    expected = processor.to_images(pixels)
    for found in (
        processor.post_process_images(pixels.clone().requires_grad_()),
        processor.post_process_images(pixels.as_subclass(OnGpu)),
        processor.post_process_images(pixels.double()),
    ):
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert len(processor.post_process_images(pixels.bfloat16())) == 2


def test_names_of_inputs_and_a_short_repr():
    mean = np.random.default_rng(0).normal(size=5000)
    processor = VisionFlowProcessor([6, 8], 3, ["ann"], {"ann": mean}, {"ann": np.ones(5000)})
    assert len(repr(processor)) < 3000
    image = Image.new("RGB", (8, 6))
    batch = processor(images=[image, None], fmri=[None, mean], subject="ann")
    assert set(batch) == set(processor.model_input_names)


NAMES = ["ann", "a/b", "mean/ann", "__metadata__", "é 中", 'quote" \n\\', "", "."]


def test_a_saved_processor_comes_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    mean = {name: rng.normal(size=2 + index).astype(np.float32) for index, name in enumerate(NAMES)}
    std = {name: rng.random(2 + index).astype(np.float32) for index, name in enumerate(NAMES)}
    mean["ann"] = np.array([np.pi, 1e-30, -1e30], dtype=np.float32)[::-1]
    std["ann"] = np.ones(3)
    processor = VisionFlowProcessor([6, 8], 3, NAMES, mean, std)
    files = processor.save_pretrained(tmp_path)
    assert {os.path.basename(file) for file in files} == {"processor_config.json", "fmri_statistics.safetensors"}
    assert len((tmp_path / "processor_config.json").read_text()) < 1000
    assert len(load_file(tmp_path / "fmri_statistics.safetensors")) == 2 * len(NAMES)
    for path in (tmp_path, str(tmp_path), tmp_path / "processor_config.json"):
        loaded = VisionFlowProcessor.from_pretrained(path)
        assert loaded.subjects == NAMES and loaded.image_size == [6, 8] and loaded.num_channels == 3
        for name in NAMES:
            assert np.array_equal(loaded.fmri_mean[name], processor.fmri_mean[name])
            assert np.array_equal(loaded.fmri_std[name], processor.fmri_std[name])


def test_a_processor_in_a_subfolder(processor, tmp_path):
    processor.save_pretrained(tmp_path / "inner")
    assert VisionFlowProcessor.from_pretrained(tmp_path, subfolder="inner").subjects == ["ann", "bob"]


def test_a_processor_without_subjects(tmp_path):
    VisionFlowProcessor([4, 4], 1).save_pretrained(tmp_path)
    assert VisionFlowProcessor.from_pretrained(tmp_path).subjects == []


def test_a_folder_without_its_statistics_is_refused(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    (tmp_path / "fmri_statistics.safetensors").write_bytes(b"cut")
    with pytest.raises(OSError, match="damaged"):
        VisionFlowProcessor.from_pretrained(tmp_path)
    (tmp_path / "fmri_statistics.safetensors").unlink()
    with pytest.raises(OSError, match=r"has no fmri_statistics\.safetensors .*train the model again") as error:
        VisionFlowProcessor.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


PULL = """
from transformers import AutoProcessor

name, revision, expected = sys.argv[1:]
processor = AutoProcessor.from_pretrained(name, revision=revision, trust_remote_code=True)
assert type(processor).__module__.startswith("transformers_modules."), type(processor)
assert processor.fmri_mean["ann"].tolist() == [float(expected), 2, 3], processor.fmri_mean
"""

PUSH = """
from transformers import AutoProcessor

folder, name, how = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
if how == "push_to_hub":
    processor.push_to_hub(name)
else:
    processor.save_pretrained("again", push_to_hub=True, repo_id=name)
"""


@pytest.mark.parametrize("how", ["push_to_hub", pytest.param("save_pretrained", marks=pytest.mark.nightly)])
def test_the_hub_holds_a_whole_processor(processor, tmp_path, how):
    """Pushed and pulled without this package, by revision, and then from the cache, offline."""
    with LoopbackHub() as hub:

        def stranger(script, *words, **settings):
            command = [sys.executable, "-I", "-c", STRANGER + script, *map(str, words)]
            env = environment(hub, tmp_path / "home", **settings)
            result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
            assert result.returncode == 0, result.stderr[-3000:]

        processor.save_pretrained(tmp_path / "first")
        stranger(PUSH, "first", "lab/one", how)
        assert {"processor_config.json", "fmri_statistics.safetensors"} <= hub.files("lab/one").keys()
        if how == "save_pretrained":
            return
        first, _ = hub.repositories["models/lab/one"].commits[-1]
        processor.fmri_mean["ann"] = np.array([7.0, 2.0, 3.0], dtype=np.float32)
        processor.save_pretrained(tmp_path / "second")
        stranger(PUSH, "second", "lab/one", "push_to_hub")
        stranger(PULL, "lab/one", "main", 7)
        stranger(PULL, "lab/one", first, 1)


def test_subjects_are_compared_with_the_config(processor):
    def config(**voxels):
        return type("Config", (), {"subjects": list(voxels), "num_voxels": list(voxels.values())})

    processor.check_subjects(config(ann=3, bob=2))
    for voxels, message in (
        ({"ann": 3}, r"only the processor has bob \(2 voxels\), only the model none"),
        ({"ann": 3, "bob": 5}, r"only the processor has bob \(2 voxels\), only the model bob \(5 voxels\)"),
        ({"bob": 2, "ann": 3}, "order is ann, bob, the model's bob, ann"),
    ):
        with pytest.raises(ValueError, match=message):
            processor.check_subjects(config(**voxels))


def rows_of(images, fmri, subjects) -> Dataset:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "fmri": datasets.List(datasets.Value("float32")),
            "subject": datasets.Value("string"),
        }
    )
    return Dataset.from_dict({"image": images, "fmri": fmri, "subject": subjects}, features=features)


def test_from_dataset(monkeypatch):
    monkeypatch.setattr(sys.modules[VisionFlowProcessor.__module__], "ROWS", 4)  # so that there are many parts
    rng = np.random.default_rng(0)
    number = 21
    subjects = [("bob", "ann", "cut")[index % 3] for index in range(number)]
    fmri = [rng.normal(1000, 0.01, 5 if name == "bob" else 3).astype(np.float32) for name in subjects]
    for row in fmri:
        row[1] = 0.1  # constant, and no sum of it is exact
    images = [Image.fromarray(rng.integers(0, 256, (6, 8), dtype=np.uint8)) for _ in subjects]
    images[0] = Image.new("RGB", (8, 6))
    for index in range(2, number, 3):
        images[index] = None  # "cut" has no pair
    images[3] = images[4] = None
    fmri[6] = None
    images[6] = Image.new("RGB", (400, 300))  # without fMRI, so no stimulus
    for rows in (rows_of(images, fmri, subjects), rows_of(images, fmri, subjects).with_format("numpy")):
        processor = VisionFlowProcessor.from_dataset(rows)
        assert processor.subjects == ["ann", "bob"]
        assert processor.image_size == [6, 8] and processor.num_channels == 3
        for name in processor.subjects:
            own = np.stack(
                [row for row, other in zip(fmri, subjects, strict=True) if other == name and row is not None]
            )
            mean, std = processor.fmri_mean[name], processor.fmri_std[name]
            assert mean.dtype == std.dtype == np.float32
            np.testing.assert_allclose(mean, own.mean(0, dtype=np.float64), rtol=1e-7)
            assert std[1] == 1 and mean[1] == np.float32(0.1)
            np.testing.assert_allclose(np.delete(std, 1), np.delete(own.astype(float).std(0), 1), rtol=1e-5)


def test_from_dataset_reads_the_rows_once(monkeypatch):
    images = [Image.new("L", (8, 6))] * 6
    rows = rows_of(images, np.random.default_rng(0).normal(size=(6, 4)), ["ann", "bob"] * 3)
    passes = []
    read = Dataset.iter
    monkeypatch.setattr(Dataset, "iter", lambda self, *args, **kwargs: passes.append(1) or read(self, *args, **kwargs))
    monkeypatch.setattr(Dataset, "__getitem__", lambda *args: pytest.fail("rows are read a second time"))
    assert VisionFlowProcessor.from_dataset(rows).subjects == ["ann", "bob"]
    assert passes == [1]


def test_the_image_size_of_a_dataset():
    def size(images, **kwargs):
        rows = rows_of(images, [[1.0, 2.0]] * len(images), ["ann"] * len(images))
        processor = VisionFlowProcessor.from_dataset(rows, **kwargs)
        return processor.image_size, processor.num_channels

    wide, tall = Image.new("L", (40, 30)), Image.new("RGB", (10, 20))
    assert size([wide, tall, wide]) == ([30, 40], 3)
    assert size([wide, wide]) == ([30, 40], 1)
    assert size([Image.new("RGB", (448, 100))]) == ([50, 224], 3)
    assert size([wide], image_size=80) == ([60, 80], 1)
    for mode in ("1", "LA", "I;16"):
        assert size([Image.new(mode, (8, 8))]) == ([8, 8], 1)
    exif = Image.Exif()
    exif[0x0112] = 8
    file = io.BytesIO()
    tall.save(file, "PNG", exif=exif)
    assert size([{"bytes": file.getvalue(), "path": None}]) == ([10, 20], 3)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (Dataset.from_dict({"fmri": [[1.0]]}), "no column image, subject"),
        (rows_of([None], [[1.0]], ["ann"]), "no row has both an image and fMRI"),
        (rows_of([Image.new("L", (2, 2))] * 2, [[1.0, 2.0], [3.0]], ["ann"] * 2), "ann have 2 and 1 voxels"),
        (rows_of([Image.new("L", (2, 2))], [[1.0, 2.0]], [None]), "fMRI but no subject"),
        (
            rows_of([Image.new("L", (2, 2))] * 3, [[1.0, np.nan], [np.inf, 2.0], [1.0, 2.0]], ["ann"] * 3),
            "fmri of ann has 2 NaN or infinite values",
        ),
        (Dataset.from_dict({"image": [[1]], "fmri": [[1.0]], "subject": ["ann"]}), "holds no encoded images"),
    ],
)
def test_a_dataset_that_cannot_be_read_is_named(rows, message):
    with pytest.raises(ValueError, match=message):
        VisionFlowProcessor.from_dataset(rows)


@pytest.mark.parametrize("shape", [(1, 4), (5,), ()])
def test_means_and_deviations_are_one_number_a_voxel(shape):
    with pytest.raises(ValueError, match=r"fmri_mean and fmri_std of ann have the shapes \(4,\) and .*: one number a"):
        VisionFlowProcessor(subjects=["ann"], fmri_mean={"ann": np.zeros(4)}, fmri_std={"ann": np.ones(shape)})
