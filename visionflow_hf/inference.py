"""`visionflow encode`, `decode` and `identify`: files in, files out."""

import csv
import gzip
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image

from visionflow_hf.corpus.files import existing, pictures_in, reading, refuse_bombs
from visionflow_hf.corpus.gifti import file_of_hemisphere, is_gifti, write_hemisphere
from visionflow_hf.corpus.nifti import import_nibabel, is_nifti, write_volumes
from visionflow_hf.corpus.responses import check_responses
from visionflow_hf.errors import UserError
from visionflow_hf.evaluation.predictions import decoded, encode_images, in_standard_units, to_array
from visionflow_hf.folders import new_folder, refuse_existing, writing
from visionflow_hf.hub import load_model
from visionflow_hf.images import open_image
from visionflow_hf.modeling import VisionFlowModel, VisionFlowProcessor
from visionflow_hf.modeling.voxel_table import FSAVERAGE
from visionflow_hf.stimuli import latents_of_files

MARKER = "0000.png"
logger = logging.getLogger(__name__)

LIKELIEST = 60  # images of a bank whose mean is a reconstruction
IMAGES = 1024  # whose responses are predicted at a time


def encode(
    run: str | os.PathLike,
    images: Sequence[str | os.PathLike],
    subject: str,
    output: str | os.PathLike,
    device: str | None = None,
    rois: Sequence[str] | None = None,
) -> list[Path]:
    """Predict the fMRI of image files and write it to a file, or for GIFTI to one a hemisphere.

    An .npz has `fmri` (images, voxels), `image` (paths), `subject`, and with `rois` also `voxel` (voxels,), the number
    of each voxel among the subject's, and `roi` (voxels,), the names of its regions, with commas. A .nii or .nii.gz has
    float32 (x, y, z, images) on the grid that the mask of the corpus had, 0 where there is no voxel. NAME.gii or
    NAME.func.gii becomes NAME_hemi-L and NAME_hemi-R with that ending, each with a float32 array of the 163842 vertices
    of fsaverage for each image, 0 where there is no voxel.

    Args:
        device: such as `cpu` or `cuda`; None for a GPU where there is one.
        rois: names of regions, whose voxels alone are written.

    Returns:
        The files that were written.

    Raises:
        UserError: an unknown subject or region, places that are not known, or a file that cannot be read or written.
    """
    output = writable(output)
    in_brain, on_surface = is_nifti(output), is_gifti(output)
    if not in_brain and not on_surface and output.suffix != ".npz":
        raise UserError(f"{output.name} is no .npz, .nii, .nii.gz or .gii: --output says by its ending what is written")
    if in_brain or on_surface:
        import_nibabel("writing GIFTI" if on_surface else "writing NIfTI")
    halves = {side: writable(file_of_hemisphere(output, side)) for side in "LR"} if on_surface else {}
    pictures = (open_image(path) for path in images)  # all at once can fill memory
    model, processor = load_model(run, device)
    known_subject(subject, processor.subjects)
    arrays = {"image": [str(path) for path in images], "subject": subject}
    chosen = np.arange(len(processor.fmri_mean[subject]))
    if rois is not None:
        chosen, arrays["roi"] = voxels_in(model, subject, rois)
        arrays["voxel"] = chosen
    volume = volume_of(model, subject, run) if in_brain else None
    surface = surface_of(model, subject, run) if on_surface else None
    fmri = encode_images(model, processor, pictures, subject)[0]
    if surface is not None:
        with writing(output), ExitStack() as stack:
            partials = [stack.enter_context(temporary(file)) for file in halves.values()]
            for side, partial, (voxels, vertices) in zip(halves, partials, surface.values(), strict=True):
                kept = np.isin(voxels, chosen)
                shown = fmri[:, voxels[kept]]
                with partial.open("wb") as stream:
                    write_hemisphere(stream, side, shown, arrays["image"], vertices[kept], FSAVERAGE)
        return list(halves.values())
    fmri = fmri[:, chosen]
    with writing(output), temporary(output) as partial, open_binary(partial, output) as stream:
        if volume is None:
            np.savez_compressed(stream, fmri=fmri, **arrays)
        else:
            shape, affine, places = volume
            write_volumes(stream, fmri, shape, affine, places[chosen])
    return [output]


def decode(
    run: str | os.PathLike,
    file: str | os.PathLike,
    subject: str,
    output: str | os.PathLike,
    overwrite: bool = False,
    device: str | None = None,
    refine: int | None = None,
    image_bank: str | os.PathLike | None = None,
) -> None:
    """Reconstruct the image of each row of fMRI, `read_fmri`, as 0000.png, 0001.png and so on.

    Args:
        refine: gradient steps, as in `VisionFlowModel.reconstruct_image`.
        image_bank: folder of images. Each reconstruction is the mean of the 60 under which the row is likeliest.
        device: such as `cpu` or `cuda`; None for a GPU where there is one.
    """
    refuse_existing(output, overwrite, MARKER)
    if refine is not None and refine < 0:
        raise UserError(f"--refine is {refine}: 0 or a number of steps is expected")
    fmri = read_fmri(Path(file))
    bank = [] if image_bank is None else pictures_in(Path(image_bank))
    if bank and len(bank) <= LIKELIEST:
        logger.warning(
            f"--image-bank {image_bank} has {len(bank)} images, and a reconstruction is the mean of the {LIKELIEST} "
            "likeliest: all reconstructions are the same; give a folder of many more"
        )
    model, processor = load_model(run, device)
    known_subject(subject, processor.subjects)
    check_voxels(fmri, file, subject, processor)
    height, width = processor.image_size
    if bank:
        images = mean_of_likeliest(model, processor, fmri, subject, bank)
    else:
        batches = decoded(model, processor, fmri, subject, (width, height), refine)
        images = (image for some, _ in batches for image in some)  # all at once can fill memory
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
    best = [np.argsort(-row, kind="stable")[:top] for row in scores]
    names = [path.relative_to(candidates).as_posix() for path in files]
    rows = [
        (response, rank + 1, names[one], float(scores[response, one]))
        for response, ranked in enumerate(best)
        for rank, one in enumerate(ranked)
    ]
    text = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}  # names of files may be no UTF-8
    with writing(output), temporary(output) as partial, partial.open("w", **text) as stream:
        writer = csv.writer(stream)
        writer.writerow(("response", "rank", "candidate", "log_likelihood"))
        writer.writerows(rows)


def mean_of_likeliest(
    model: VisionFlowModel, processor: VisionFlowProcessor, fmri: np.ndarray, subject: str, files: Sequence[Path]
) -> np.ndarray:
    """For each response the mean of the LIKELIEST image files, uint8 array (responses, height, width[, 3])."""
    scores = likelihoods(model, processor, fmri, subject, latents_of_files(model, processor, files))
    height, width = processor.image_size
    means = []
    for row in scores:
        best = np.argsort(-row, kind="stable")[:LIKELIEST]
        images = [to_array([open_image(files[one])], processor, (width, height))[0] for one in best]
        means.append(np.rint(np.mean(images, axis=0)).astype(np.uint8))
    return np.stack(means)


@torch.no_grad()
def likelihoods(
    model: VisionFlowModel, processor: VisionFlowProcessor, fmri: np.ndarray, subject: str, latents: torch.Tensor
) -> np.ndarray:
    """`model.log_likelihood` of images whose latents are known, array of shape (responses, images)."""
    place = model.config.subjects.index(subject)
    measured = in_standard_units(model, processor, subject, fmri)
    found = []
    for some in latents.to(model.device, model.dtype).split(IMAGES):
        learned, linear = some.split([model.config.latent_dim, model.config.linear_dim], dim=1)
        ids = torch.full((len(some),), place, device=model.device)
        predicted = model.latent_to_fmri(learned, linear, ids)[:, : measured.shape[1]]
        found.append(model.latent_to_fmri.log_likelihood(measured, predicted, place).cpu().numpy())
    scores = np.concatenate(found, axis=1)
    bad = np.flatnonzero(~np.isfinite(scores).all(1))
    if len(bad):
        raise UserError(
            f"the likelihood of response {bad[0]} is no finite number: its values are too far from those of {subject}, "
            "whose unit is expected"
        )
    return scores


def voxels_in(model: VisionFlowModel, subject: str, rois: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """The numbers of the voxels in any of the regions, in their order, and the names of each one's regions."""
    try:
        regions = model.roi_voxels(subject, rois)
    except ValueError as error:
        raise UserError(str(error)) from error
    names: dict[int, list[str]] = {}
    for name, voxels in regions.items():
        for voxel in voxels.tolist():
            names.setdefault(voxel, []).append(name)
    chosen = sorted(names)
    return np.array(chosen), [",".join(names[voxel]) for voxel in chosen]


def volume_of(model: VisionFlowModel, subject: str, run: str | os.PathLike) -> tuple:
    """Shape, affine and places of the voxels, see `VoxelTable.volume`."""
    remedy = "write an .npz, or train on a corpus that was prepared with a mask"
    return places_of(model, subject, run, "volume", f"where the voxels of {subject} lie in a volume: {remedy}")


def surface_of(model: VisionFlowModel, subject: str, run: str | os.PathLike) -> dict:
    """The voxels and vertices of each hemisphere, see `VoxelTable.surface`."""
    remedy = (
        "write an .npz or .nii.gz, or train on a corpus that knows them, as `prepare algonauts23` makes it from the "
        "challenge's folder"
    )
    return places_of(model, subject, run, "surface", f"the vertices of {subject} on fsaverage: {remedy}")


def places_of(model: VisionFlowModel, subject: str, run: str | os.PathLike, where: str, missing: str) -> tuple | dict:
    """`volume` or `surface` of the model's voxel table; `missing` says what is not known without it."""
    try:
        places = None if model.voxels is None else getattr(model.voxels, where)(subject)
    except ValueError as error:
        raise UserError(f"{run}: {error}") from error
    if places is None:
        raise UserError(f"{run} does not know {missing}")
    return places


@contextmanager
def open_binary(file: Path, name: Path) -> Iterator[BinaryIO]:
    """Open `file` to write what is to be called `name`, compressed where that ends in .gz."""
    with file.open("wb") as stream:
        if name.suffix.lower() != ".gz":
            yield stream
            return
        with gzip.GzipFile(name.stem, "wb", compresslevel=6, fileobj=stream, mtime=0) as packed:
            yield packed


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
        raise UserError(
            f"fmri of {file} has {fmri.shape[1]} voxels, {subject} has {voxels} in this model: give the voxels that "
            "the model was trained on, in their order"
        )


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
