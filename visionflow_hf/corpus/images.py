"""`prepare images`: a corpus of images without fMRI, on which the image encoder and decoder can train."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from visionflow_hf.corpus.files import is_hidden
from visionflow_hf.corpus.leakage import picture
from visionflow_hf.corpus.schema import MARKER, voxel_table, write_corpus
from visionflow_hf.errors import UserError, count
from visionflow_hf.folders import refuse_existing
from visionflow_hf.images import SUFFIXES

UNIT = "no fMRI"


def prepare_images(
    folder: str | os.PathLike,
    out: str | os.PathLike,
    overwrite: bool = False,
    report: Callable[[str], None] = print,
) -> None:
    """Write the corpus `out`: a train split of the images in `folder` and its subfolders, without fMRI.

    Image files are copied as they are; the `stimulus_id` is the path within `folder`. `merge` adds them to a corpus of
    pairs.

    Args:
        report: called with one line for each thing that a user of the corpus should know.

    Raises:
        UserError: no folder, no image in it, or one that cannot be read; nothing is written then.
    """
    refuse_existing(out, overwrite, MARKER)
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give a folder of images")
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not is_hidden(file, folder))
    for file in files:
        try:
            file.relative_to(folder).as_posix().encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"the name of {str(file).encode(errors='replace').decode()} is no UTF-8: rename it"
            ) from error
    pictures = [file for file in files if file.suffix.lower() in SUFFIXES]
    others = sorted({file.suffix or file.name for file in files} - {file.suffix for file in pictures})
    if not pictures:
        raise UserError(f"{folder} has no image in it, only {count(files, 'file')}: .png, .jpg and the like are read")
    if others:
        report(f"left out {len(files) - len(pictures)} files that are no images: {count(others, 'kind')}")

    def rows() -> Iterator[dict]:
        for file in pictures:
            try:
                image = file.read_bytes()
            except OSError as error:
                raise UserError(f"{file} cannot be read ({error.strerror})") from error
            picture(image, str(file))
            yield {
                "image": {"bytes": image, "path": None},
                "fmri": None,
                "subject": None,
                "stimulus_id": file.relative_to(folder).as_posix(),
                "repeat": 0,
            }

    write_corpus(out, {"train": rows}, voxel_table("", 0), unit=UNIT, overwrite=overwrite)
