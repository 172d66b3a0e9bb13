"""`visionflow encode` and `visionflow decode`: files in, files out."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from visionflow_hf.corpus.files import existing, reading
from visionflow_hf.corpus.responses import check_responses
from visionflow_hf.errors import UserError
from visionflow_hf.evaluation.predictions import decode_fmri, encode_images
from visionflow_hf.folders import new_folder, refuse_existing, writing
from visionflow_hf.hub import load_model
from visionflow_hf.images import open_image

MARKER = "0000.png"


def encode(
    run: str | os.PathLike,
    images: Sequence[str | os.PathLike],
    subject: str,
    output: str | os.PathLike,
    device: str | None = None,
) -> None:
    """Predict the fMRI of image files and write an .npz with `fmri` (images, voxels), `image` (paths) and `subject`.

    Args:
        device: such as `cpu` or `cuda`; None for a GPU where there is one.
    """
    pictures = [open_image(path) for path in images]
    model, processor = load_model(run, device)
    known_subject(subject, processor.subjects)
    fmri, _ = encode_images(model, processor, pictures, subject)
    output = Path(output)
    if not os.path.isdir(output.parent):  # unlike `Path.is_dir`, it takes names of any length
        raise UserError(f"{output.parent} is no folder: --output names a file in a folder that exists")
    if os.path.isdir(output):
        raise UserError(f"{output} is a folder: --output names a file")
    partial = output.with_name(f".{output.name}.partial")
    with writing(output):
        try:
            with partial.open("wb") as file:
                np.savez_compressed(file, fmri=fmri, image=[str(path) for path in images], subject=subject)
            partial.replace(output)
        finally:
            partial.unlink(missing_ok=True)


def decode(
    run: str | os.PathLike,
    file: str | os.PathLike,
    subject: str,
    output: str | os.PathLike,
    overwrite: bool = False,
    device: str | None = None,
) -> None:
    """Reconstruct the image of each row of fMRI, `read_fmri`, as 0000.png, 0001.png and so on.

    Args:
        device: such as `cpu` or `cuda`; None for a GPU where there is one.
    """
    refuse_existing(output, overwrite, MARKER)
    fmri = read_fmri(Path(file))
    model, processor = load_model(run, device)
    known_subject(subject, processor.subjects)
    voxels = len(processor.fmri_mean[subject])
    if fmri.shape[1] != voxels:
        raise UserError(f"fmri of {file} has {fmri.shape[1]} voxels, {subject} has {voxels} in this model")
    height, width = processor.image_size
    images, _ = decode_fmri(model, processor, fmri, subject, (width, height))
    with new_folder(output, overwrite, marker=MARKER) as folder:
        for index, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{index:04d}.png")


def read_fmri(file: Path) -> np.ndarray:
    """The array `fmri` of an .npz, or the array in a .npy: (rows, voxels) or (voxels,), every value finite.

    Returns:
        float32 array of shape (rows, voxels).
    """
    with reading(existing(file)):
        source = np.load(file, allow_pickle=False)
        if isinstance(source, np.lib.npyio.NpzFile):
            with source:
                if "fmri" not in source.files:
                    raise UserError(f"{file} has no array fmri: its keys are {', '.join(sorted(source.files))}")
                fmri = source["fmri"]
        else:
            fmri = source
    return check_responses(np.atleast_2d(fmri), f"fmri of {file}")


def known_subject(subject: str, known: list[str]) -> None:
    if subject not in known:
        raise UserError(f"unknown subject {subject}: this model knows {', '.join(known)}")
