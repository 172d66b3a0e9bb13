"""The processor: raw fMRI in, raw units out, pictures of every kind, and errors that name what is known."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

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
    ],
)
def test_wrong_input_is_named(processor, inputs, message):
    with pytest.raises(ValueError, match=message):
        processor(**inputs)


def test_a_saved_processor_comes_back_bit_for_bit(processor, tmp_path):
    processor.fmri_mean["ann"] = np.array([np.pi, 1e-30, -1e30], dtype=np.float32)
    processor.save_pretrained(tmp_path)
    loaded = VisionFlowProcessor.from_pretrained(tmp_path)
    assert loaded.subjects == ["ann", "bob"] and loaded.image_size == [6, 8] and loaded.num_channels == 3
    for name in ("ann", "bob"):
        assert np.array_equal(loaded.fmri_mean[name], processor.fmri_mean[name])
        assert np.array_equal(loaded.fmri_std[name], processor.fmri_std[name])
