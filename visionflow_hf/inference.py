"""`visionflow encode`, `decode` and `identify`: files in, files out."""

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from visionflow_hf.corpus.files import existing, pictures_in, reading, refuse_bombs
from visionflow_hf.corpus.responses import check_responses
from visionflow_hf.errors import UserError
from visionflow_hf.evaluation.predictions import decode_fmri, encode_images
from visionflow_hf.folders import new_folder, refuse_existing, writing
from visionflow_hf.hub import load_model
from visionflow_hf.images import open_image
from visionflow_hf.modeling import VisionFlowModel, VisionFlowProcessor
from visionflow_hf.stimuli import latents_of_files

MARKER = "0000.png"
IMAGES = 1024  # whose responses are predicted at a time


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
    output = writable(output)
    pictures = [open_image(path) for path in images]
    model, processor = load_model(run, device)
    known_subject(subject, processor.subjects)
    fmri, _ = encode_images(model, processor, pictures, subject)
    with writing(output), temporary(output) as partial, partial.open("wb") as stream:
        np.savez_compressed(stream, fmri=fmri, image=[str(path) for path in images], subject=subject)


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
    check_voxels(fmri, file, subject, processor)
    height, width = processor.image_size
    images, _ = decode_fmri(model, processor, fmri, subject, (width, height))
    with new_folder(output, overwrite, marker=MARKER) as folder:
        for index, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{index:04d}.png")


def identify(
    run: str | os.PathLike,
    file: str | os.PathLike,
    subject: str,
    candidates: str | os.PathLike,
    output: str | os.PathLike,
    top: int = 5,
    device: str | None = None,
) -> None:
    """Rank the images of a folder by the likelihood of each row of fMRI, and write a CSV.

    Its columns are response (the row, from 0), rank (from 1), candidate (path in the folder) and log_likelihood. The
    latents of the candidates are kept on disk, so that a second call with the same model need not encode them.

    Args:
        file: as for `decode`.
        top: how many candidates are written for each response.
        device: such as `cpu` or `cuda`; None for a GPU where there is one.
    """
    if top < 1:
        raise UserError(f"--top is {top}: at least 1 is expected")
    output = writable(output)
    fmri = read_fmri(Path(file))
    files = pictures_in(Path(candidates))
    model, processor = load_model(run, device)
    known_subject(subject, processor.subjects)
    check_voxels(fmri, file, subject, processor)
    scores = likelihoods(model, processor, fmri, subject, latents_of_files(model, processor, files))
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    names = [path.relative_to(candidates).as_posix() for path in files]
    rows = [
        (response, rank + 1, names[one], float(scores[response, one]))
        for response, ranked in enumerate(best)
        for rank, one in enumerate(ranked)
    ]
    with writing(output), temporary(output) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("response", "rank", "candidate", "log_likelihood"))
        writer.writerows(rows)


@torch.no_grad()
def likelihoods(
    model: VisionFlowModel, processor: VisionFlowProcessor, fmri: np.ndarray, subject: str, latents: torch.Tensor
) -> np.ndarray:
    """`model.log_likelihood` of images whose latents are known, array of shape (responses, images)."""
    place = model.config.subjects.index(subject)
    measured = processor(fmri=fmri, subject=subject)["fmri"].to(model.device)
    found = []
    for some in latents.to(model.device, model.dtype).split(IMAGES):
        learned, linear = some.split([model.config.latent_dim, model.config.linear_dim], dim=1)
        ids = torch.full((len(some),), place, device=model.device)
        predicted = model.latent_to_fmri(learned, linear, ids)[:, : measured.shape[1]]
        found.append(model.latent_to_fmri.log_likelihood(measured, predicted, place).cpu().numpy())
    return np.concatenate(found, axis=1)


def writable(output: str | os.PathLike) -> Path:
    """The path of a file that can be written there."""
    output = Path(output)
    if not os.path.isdir(output.parent):  # unlike `Path.is_dir`, it takes names of any length
        raise UserError(f"{output.parent} is no folder: --output names a file in a folder that exists")
    if os.path.isdir(output):
        raise UserError(f"{output} is a folder: --output names a file")
    return output


@contextmanager
def temporary(output: Path) -> Iterator[Path]:
    """A path to write to, which then takes the name of `output`; removed where that fails."""
    partial = output.with_name(f".{output.name}.partial")
    try:
        yield partial
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


def check_voxels(fmri: np.ndarray, file: str | os.PathLike, subject: str, processor: VisionFlowProcessor) -> None:
    voxels = len(processor.fmri_mean[subject])
    if fmri.shape[1] != voxels:
        raise UserError(f"fmri of {file} has {fmri.shape[1]} voxels, {subject} has {voxels} in this model")


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
                refuse_bombs(source.zip, ["fmri.npy"])
                fmri = source["fmri"]
        else:
            fmri = source
    return check_responses(np.atleast_2d(fmri), f"fmri of {file}")


def known_subject(subject: str, known: list[str]) -> None:
    if subject not in known:
        raise UserError(f"unknown subject {subject}: this model knows {', '.join(known)}")
