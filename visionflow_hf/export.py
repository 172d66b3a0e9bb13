"""ONNX files of both directions: they run in onnxruntime, without torch, transformers or this package.

    encode.onnx   pixel_values (batch, channels, height, width) in 0..1, subject (batch,) int64 -> fmri (batch, voxels)
    decode.onnx   fmri (batch, voxels), subject (batch,) int64 -> pixel_values in 0..1, not refined

fMRI is in the data's own unit and as wide as the subject with the most voxels needs; a subject is its place in the list
that the files carry as metadata, with `num_voxels` beside it.
"""

import json
import logging
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from visionflow_hf.errors import UserError
from visionflow_hf.folders import new_folder
from visionflow_hf.hub import load_model

ENCODE, DECODE = "encode.onnx", "decode.onnx"


class Direction(nn.Module):
    """What both directions need beside the model: means and standard deviations of the voxels of all subjects."""

    def __init__(self, model, processor):
        super().__init__()
        self.model = model
        voxels = max(model.config.num_voxels)
        for name, filler in (("fmri_mean", 0.0), ("fmri_std", 1.0)):
            table = torch.full((len(processor.subjects), voxels), filler)
            for row, subject in zip(table, processor.subjects, strict=True):
                values = torch.tensor(getattr(processor, name)[subject])
                row[: len(values)] = values
            self.register_buffer(name, table)


class Encode(Direction):
    """Images on a 0..1 scale to fMRI in the data's own unit."""

    def forward(self, pixel_values: torch.Tensor, subject: torch.Tensor) -> torch.Tensor:
        return self.model.predict_fmri(pixel_values, subject, self.fmri_mean[subject], self.fmri_std[subject])


class Decode(Direction):
    """FMRI in the data's own unit to images on a 0..1 scale."""

    def forward(self, fmri: torch.Tensor, subject: torch.Tensor) -> torch.Tensor:
        fmri = (fmri - self.fmri_mean[subject]) / self.fmri_std[subject]
        return self.model.reconstruct_image(fmri, subject, refine=0)  # gradient steps are no part of a graph


def export(run: str | os.PathLike, out: str | os.PathLike, overwrite: bool = False) -> dict[str, float]:
    """Write encode.onnx and decode.onnx, and compare them with the model.

    Args:
        run: a model folder, or a name on the Hub.
        out: folder to write.

    Returns:
        For each file the largest difference between what onnxruntime and torch make of random inputs, in standard
        deviations of a voxel and on the 0..1 scale of pixels.

    Raises:
        UserError: what the export needs is not installed, or there is no such model.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401, what torch exports with
    except ImportError as error:
        raise UserError(
            f"export needs {error.name}, which is not installed: pip install 'visionflow-hf[onnx]'"
        ) from error
    model, processor = load_model(run)
    model = model.float().eval()
    if not processor.subjects:
        raise UserError(f"{run} knows no subject: train it on some with --from_model {run}")
    about = {"subjects": processor.subjects, "num_voxels": model.config.num_voxels}
    generator = torch.Generator().manual_seed(0)
    subject = torch.arange(3) % len(processor.subjects)
    encode, decode = Encode(model, processor), Decode(model, processor)
    pixels = torch.rand(3, model.config.num_channels, *model.config.image_size, generator=generator)
    spread = encode.fmri_std[subject]
    fmri = encode.fmri_mean[subject] + spread * torch.randn(spread.shape, generator=generator)
    differences = {}
    with new_folder(out, overwrite, marker=ENCODE) as folder:
        for name, direction, given, unit in ((ENCODE, encode, pixels, spread), (DECODE, decode, fmri, torch.ones(()))):
            write(direction, (given, subject), folder / name, about)
            session = onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
            inputs = [item.name for item in session.get_inputs()]
            found = session.run(None, dict(zip(inputs, (given.numpy(), subject.numpy()), strict=True)))[0]
            differences[name] = float(np.abs((found - direction(given, subject).numpy()) / unit.numpy()).max())
    return differences


def write(direction: Direction, inputs: tuple[torch.Tensor, torch.Tensor], file: Path, about: dict) -> None:
    """Export one direction with a free batch size; `about` becomes metadata, as JSON."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of operators that torchvision would have
    batch = torch.export.Dim("batch")
    names = ["pixel_values", "fmri"] if isinstance(direction, Encode) else ["fmri", "pixel_values"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own deprecations, and of the two axes that share a name
        program = torch.onnx.export(
            direction,
            inputs,
            input_names=[names[0], "subject"],
            output_names=[names[1]],
            dynamic_shapes=({0: batch}, {0: batch}),
            dynamo=True,
            verbose=False,
        )
    program.model.metadata_props.update({name: json.dumps(value) for name, value in about.items()})
    program.save(file)
