"""A report folder: metrics.json, predictions.npz, pictures, and the table on the terminal."""

import json
import os

import numpy as np
from rich.console import Console
from rich.table import Table

from visionflow_hf.evaluation.perceptual import FIGURES
from visionflow_hf.evaluation.pictures import draw_losses, draw_reconstructions, draw_voxels
from visionflow_hf.evaluation.scores import score
from visionflow_hf.folders import new_folder

MARKER = "metrics.json"
DECODING = ("pixcorr", "ssim", "mse", "two_way", "top1")
ENCODING = ("voxel_r_mean", "voxel_r_median", "r2_median", "ceiling_normalised")


def write_report(
    out: str | os.PathLike,
    predictions: dict[str, np.ndarray],
    histories: list[list[dict]],
    header: dict,
    overwrite: bool = False,
    perceptual: bool = False,
) -> dict:
    """Score the predictions, write the report folder, print the table, and return what metrics.json holds.

    Args:
        histories: Trainer log histories for the loss curves; none leaves the picture out.
        header: what stands at the top of metrics.json beside the counts, such as the split.
        perceptual: add the figures of `visionflow_hf.evaluation.perceptual`.
    """
    trials = int(predictions["trials"].sum())
    metrics = {
        **header,
        "n_stimuli": len(np.unique(predictions["stimulus_id"])),
        "n_trials": trials,
        **score(predictions, perceptual=perceptual),
    }
    with new_folder(out, overwrite, marker=MARKER) as folder:
        np.savez_compressed(folder / "predictions.npz", **predictions)
        draw_reconstructions(predictions, folder / "reconstructions.png")
        draw_voxels(predictions, folder / "voxel_r.png")
        if histories:
            draw_losses(histories, folder / "losses.png")
        (folder / MARKER).write_text(json.dumps(metrics, indent=2) + "\n")
    print_table(metrics)
    return metrics


def print_table(metrics: dict) -> None:
    """Both directions with their baselines, and the 95 % interval of the model's figures."""
    table = Table(title=f"{metrics['n_stimuli']} stimuli, {metrics['n_trials']} trials, split {metrics['split']}")
    more = [name for name in ("forerunner",) if name in metrics["decoding"]]
    console = Console(width=100 + 13 * len(more))
    for column in ("", "figure", "model", "95 % interval", "ridge", "mean image", *more):
        table.add_column(column, justify="left" if column in ("", "figure") else "right")
    for direction, names, title in (
        ("decoding", DECODING, "decoding (fMRI to image)"),
        ("encoding", ENCODING, "encoding (image to fMRI)"),
    ):
        block = metrics[direction]
        for name in (*names, *(name for name in FIGURES if name in block["model"])):
            low_high = metrics["intervals"].get(f"{direction}.model.{name}")
            table.add_row(
                title,
                name,
                _figure(block["model"][name]),
                " to ".join(map(_figure, low_high)) if low_high else "-",
                _figure(block["ridge"][name]),
                _figure(block.get("mean_image", {}).get(name)),
                *(_figure(block[method][name]) for method in more),
            )
            title = ""
        table.add_section()
    for name, value in metrics["latent"].items():
        table.add_row("latent" if name == "cosine" else "", name, _figure(value))
    console.print(table)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3f}"
