"""Image files: upright, 8 bits a channel, grey or RGB, by one function for all commands."""

import io

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as DatasetsImage
from PIL import Image, ImageOps

from visionflow_hf.cli import main
from visionflow_hf.corpus.leakage import look
from visionflow_hf.corpus.responses import images_of
from visionflow_hf.errors import UserError
from visionflow_hf.images import open_image, pixel_hash

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
RAMP = np.linspace(0, 65535, 54).reshape(6, 9).astype(np.uint16)


def encoded(picture, format="PNG", **how) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **how)
    return file.getvalue()


def turned(orientation: int, format: str = "PNG") -> bytes:
    """`PHOTO` as a camera stores it that was held in another way."""
    back = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    exif = Image.Exif()
    exif[0x0112] = back
    picture = Image.fromarray(PHOTO)
    picture.getexif()[0x0112] = back
    stored = ImageOps.exif_transpose(picture)
    exif[0x0112] = orientation
    return encoded(stored, format, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_stands_upright(orientation, tmp_path):
    file = tmp_path / "photo.png"
    file.write_bytes(turned(orientation))
    assert np.array_equal(open_image(file), PHOTO) and np.array_equal(open_image(file.read_bytes(), "it"), PHOTO)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_to_eight(format):
    header = f"P5 {RAMP.shape[1]} {RAMP.shape[0]} 65535\n".encode()
    file = header + RAMP.astype(">u2").tobytes() if format == "PPM" else encoded(Image.fromarray(RAMP), format)
    picture = open_image(file, "it")
    assert picture.mode == "L" and np.array_equal(picture, np.rint(RAMP / 257))


@pytest.mark.parametrize(
    ("picture", "mode"),
    [(Image.fromarray(PHOTO[..., 0]), "L"), (Image.fromarray(PHOTO[..., 0] > 99), "L")]
    + [(Image.fromarray(PHOTO).convert(mode), "RGB") for mode in ("RGB", "RGBA", "P", "LA", "CMYK")],
)
def test_other_modes_become_grey_or_rgb(picture, mode):
    file = encoded(picture, "TIFF" if picture.mode == "CMYK" else "PNG")
    assert open_image(file, "it").mode == mode
    assert np.array_equal(open_image(file, "it").convert("RGB"), picture.convert("RGB"))


def test_pixels_are_compared_across_files_and_modes():
    grey = Image.fromarray(PHOTO[..., 0])
    assert pixel_hash(grey) == pixel_hash(grey.convert("RGB")) != pixel_hash(ImageOps.flip(grey))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (encoded(Image.fromarray(PHOTO))[:90], "it cannot be read as an image"),
        (b"no image", r"it cannot be read as an image \(of another format, or damaged\): replace or remove it"),
        (encoded(Image.new("1", (14000, 14000))), "it has too many pixels: at most"),
        (encoded(Image.new("1", (12000, 12000))), r"it has too many pixels \(12000 x 12000\): at most"),
        (encoded(Image.new("F", (3, 3)), "TIFF"), "it has 32 bits a pixel: 8 or 16 are expected"),
        (encoded(Image.new("I", (3, 3)), "TIFF"), "it has 32 bits a pixel: 8 or 16 are expected"),
        (encoded(Image.fromarray(PHOTO), "EPS"), "it cannot be read as an image"),
    ],
    ids=["cut short", "text", "bomb", "large", "float", "32 bits", "run by another program"],
)
def test_what_cannot_be_read_is_refused_in_one_line(file, message):
    with pytest.raises(UserError, match=message) as caught:
        open_image(file, "it")
    assert "\n" not in str(caught.value) and " object at " not in str(caught.value)


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(UserError, match=f"there is no image {tmp_path}/absent.png"):
        open_image(tmp_path / "absent.png")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        open_image(tmp_path)


def test_a_fault_of_the_code_is_no_damaged_file(monkeypatch):
    monkeypatch.setattr(ImageOps, "exif_transpose", lambda picture: 1 / None if picture is None else picture.nothing)
    with pytest.raises(AttributeError):
        open_image(encoded(Image.fromarray(PHOTO)), "it")


def test_the_rows_of_a_corpus_are_read_the_same_way():
    files = [turned(6, "JPEG"), encoded(Image.fromarray(RAMP))]
    features = Features({"image": DatasetsImage(), "stimulus_id": Value("string")})
    rows = [
        {"image": {"bytes": file, "path": None}, "stimulus_id": name} for file, name in zip(files, "ab", strict=True)
    ]
    split = Dataset.from_list(rows, features=features)
    photo, deep = images_of(split, ["a", "b"])
    assert (photo.size, photo.mode) == ((9, 6), "RGB") and np.array_equal(deep, np.rint(RAMP / 257))
    assert {name: shown.size for name, shown in look({"train": split})["train"].items()} == {"a": (9, 6), "b": (9, 6)}


def test_a_folder_of_photos_and_deep_images_is_a_corpus(tmp_path, refused):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "photo.jpg").write_bytes(turned(6, "JPEG"))
    (tmp_path / "in" / "deep.png").write_bytes(encoded(Image.fromarray(RAMP)))
    (tmp_path / "in" / "drawing.eps").write_bytes(encoded(Image.fromarray(PHOTO), "EPS"))
    assert main(["prepare", "images", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    from visionflow_hf.corpus.schema import read_corpus

    assert {name: shown.size for name, shown in read_corpus(tmp_path / "out").pictures["train"].items()} == {
        "photo.jpg": (9, 6),
        "deep.png": (9, 6),
    }
    Image.new("1", (14000, 14000)).save(tmp_path / "in" / "scan.png")
    refused(lambda: main(["prepare", "images", str(tmp_path / "in"), str(tmp_path / "no")]), "scan.png has too many")
    assert not (tmp_path / "no").exists()
