"""GIFTI files of responses on the cortical surface, written by nibabel, which is in the extra `brain`."""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from visionflow_hf.corpus.nifti import import_nibabel

STRUCTURES = {"L": "CortexLeft", "R": "CortexRight"}
HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE GIFTI SYSTEM "http://www.nitrc.org/frs/download.php/115/gifti.dtd">
"""


def is_gifti(file: Path) -> bool:
    return file.name.lower().endswith(".gii")


def file_of_hemisphere(file: Path, side: str) -> Path:
    """NAME_hemi-L.func.gii of NAME.func.gii, as BIDS and nilearn name them; `side` is L or R."""
    name, *endings = file.name.split(".")
    kept = 2 if len(endings) > 1 and endings[-2].lower() in ("func", "shape") else 1
    stem = ".".join([name, *endings[:-kept]])
    return file.with_name(".".join([f"{stem}_hemi-{side}", *endings[-kept:]]))


def write_hemisphere(
    stream: BinaryIO, side: str, responses: np.ndarray, names: Sequence[str], vertices: np.ndarray, length: int
) -> None:
    """Write a GIFTI file: for each response a float32 data array of shape (length,), 0 where there is no voxel.

    Args:
        side: L or R.
        responses: array of shape (responses, voxels).
        names: of the responses.
        vertices: of the voxels, array of shape (voxels,).
        length: number of vertices of the hemisphere.
    """
    gifti = import_nibabel("writing GIFTI").gifti
    about = gifti.GiftiMetaData({"AnatomicalStructurePrimary": STRUCTURES[side]})
    stream.write(f'{HEAD}<GIFTI Version="1.0" NumberOfDataArrays="{len(responses)}">'.encode())
    stream.write(about.to_xml())
    for response, name in zip(responses, names, strict=True):
        values = np.zeros(length, dtype=np.float32)
        values[vertices] = response
        printable = "".join(letter if letter.isprintable() else "?" for letter in name)  # XML takes no others
        stream.write(
            gifti.GiftiDataArray(
                values, encoding="GIFTI_ENCODING_B64GZ", datatype="NIFTI_TYPE_FLOAT32", meta={"Name": printable}
            ).to_xml()
        )
    stream.write(b"</GIFTI>\n")
