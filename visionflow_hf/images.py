"""Opening image files, the one way for all commands: upright by EXIF, 8 bits a channel, grey or RGB."""

import hashlib
import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from visionflow_hf.errors import UserError

MAX_PIXELS = 2**27  # of one image, 400 MB as RGB: a small file can claim any number
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")  # PIL would hand others to other programs
SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".jpe", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    *(".pgm", ".ppm", ".pnm", ".pbm", ".jp2", ".j2k"),
}
GREY_MODES = ("1", "L", "I;16", "I;16L", "I;16B", "I;16N", "I")
DEEP_FORMATS = ("PNG", "PPM")  # PIL shows their 16 bits in mode I, too
DECODING_ERRORS = (  # what PIL's decoders raise on damaged files
    *(OSError, ValueError, TypeError, LookupError, SyntaxError, EOFError, ArithmeticError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)

Encoded = bytes | str | os.PathLike


def open_image(file: Encoded, name: str | None = None) -> Image.Image:
    """The image in a file, in mode L or RGB, turned as its EXIF orientation says.

    16 bits a pixel are scaled to 8; a transparent background is left out.

    Args:
        file: path, or the bytes of the file.
        name: what the image is called in errors; the path without.

    Raises:
        UserError: no file, or one that cannot be read as an image, with more pixels than `MAX_PIXELS`, or with 32 bits
            a pixel.
    """
    name = name or str(file)
    with opened(file, name) as picture:
        return eight_bits(ImageOps.exif_transpose(picture), picture.format, name)


def is_plain_rgb(file: bytes, name: str) -> bool:
    """Whether any reader shows the file as `open_image` does: RGB, and upright as it is stored."""
    with opened(file, name) as picture:
        return picture.mode == "RGB" and picture.getexif().get(ExifTags.Base.Orientation, 1) == 1


def is_transparent(file: bytes, name: str) -> bool:
    """Whether a pixel is transparent, in part or as a whole."""
    with opened(file, name) as picture:
        return picture.has_transparency_data and picture.convert("RGBA").getextrema()[3][0] < 255


@contextmanager
def opened(file: Encoded, name: str) -> Iterator[Image.Image]:
    try:
        content = io.BytesIO(file) if isinstance(file, bytes) else Path(file)
        if isinstance(content, Path) and content.is_fifo():
            raise UserError(f"{name} is a pipe: an image file is expected")  # to read it may wait forever
        with Image.open(content, formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise too_large(name, f" ({picture.width} x {picture.height})")
            yield picture
    except FileNotFoundError as error:
        raise UserError(f"there is no image {name}") from error
    except Image.DecompressionBombError as error:
        raise too_large(name) from error
    except DECODING_ERRORS as error:
        if isinstance(error, OSError) and error.errno:
            raise UserError(f"{name} cannot be read ({error.strerror})") from error
        detail = "of another format, or damaged"
        if not isinstance(error, UnidentifiedImageError):
            detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{name} cannot be read as an image ({detail}): replace or remove it") from error


def too_large(name: str, size: str = "") -> UserError:
    return UserError(f"{name} has too many pixels{size}: at most {MAX_PIXELS} are read, so scale it down first")


def eight_bits(picture: Image.Image, format: str | None, name: str) -> Image.Image:
    """The picture in mode L or RGB."""
    if picture.mode.startswith("I;16") or (picture.mode == "I" and format in DEEP_FORMATS):
        values = np.asarray(picture).astype(np.float64).clip(0, 65535)
        return Image.fromarray(np.rint(values / 257).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise UserError(f"{name} has 32 bits a pixel: 8 or 16 are expected, so save it as such")
    return picture.convert("L" if picture.mode in GREY_MODES else "RGB")


def pixel_hash(image: Image.Image) -> str:
    """A hash of the pixels, by which stimuli are compared: a grey image has that of its RGB copy."""
    pixels = np.ascontiguousarray(image.convert("RGB"))
    return hashlib.sha256(f"RGB{pixels.shape}".encode() + pixels.tobytes()).hexdigest()
