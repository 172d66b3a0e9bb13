"""A report folder: metrics.json, predictions.npz, report.html, pictures, and the table on the terminal."""

import json
import os

import numpy as np
from matplotlib import pyplot as plt
from rich.console import Console
from rich.table import Table

from visionflow_hf.evaluation.figures import columns_of, figure, interval, p_value, rows_of
from visionflow_hf.evaluation.page import page
from visionflow_hf.evaluation.pictures import STYLE, draw_losses, draw_reconstructions, draw_voxels, save
from visionflow_hf.evaluation.quality import VoxelScores, pixel_correlations
from visionflow_hf.evaluation.scores import score
from visionflow_hf.folders import new_folder

MARKER = "metrics.json"


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
    quality = pixel_correlations(predictions)
    voxels = VoxelScores.of(predictions)
    with new_folder(out, overwrite, marker=MARKER) as folder, plt.rc_context(STYLE):
        np.savez(folder / "predictions.npz", **predictions)  # noise does not compress, and trying takes longest
        save(draw_reconstructions(predictions, quality), folder / "reconstructions.png")
        save(draw_voxels(voxels), folder / "voxel_r.png")
        if histories:
            save(draw_losses(histories), folder / "losses.png")
        (folder / "report.html").write_text(page(predictions, metrics, histories, quality, voxels), encoding="utf-8")
        (folder / MARKER).write_text(json.dumps(metrics, indent=2) + "\n")
    print_table(metrics)
    return metrics


def print_table(metrics: dict) -> None:
    """Both directions with their baselines and the noise ceiling, and the 95 % interval of the model's figures."""
    console = Console(width=120)
    table = Table(title=f"{metrics['n_stimuli']} stimuli, {metrics['n_trials']} trials, split {metrics['split']}")
    rows = rows_of(metrics)
    baselines = columns_of(rows)[1:]
    with_p = any(row.p is not None for row in rows)
    table.add_column("figure", no_wrap=True)
    for column in ("model", "95 % interval", *(["p"] if with_p else [])):
        table.add_column(column, justify="right", no_wrap=True)
    for method in baselines:
        table.add_column(method.replace("_", "\n"), justify="right", no_wrap=True)
    direction = ""
    for row in rows:
        if row.direction != direction:
            direction = row.direction
            table.add_section()
            table.add_row(f"[bold]{direction}[/bold]")
        table.add_row(
            row.name,
            figure(row.values["model"]),
            interval(row.interval),
            *([p_value(row.p)] if with_p else []),
            *(figure(row.values.get(method)) for method in baselines),
        )
    console.print(table)
