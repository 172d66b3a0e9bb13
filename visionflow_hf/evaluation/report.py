"""A report folder: metrics.json, predictions.npz, report.html, pictures, and the table on the terminal."""

import json
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from rich.console import Console
from rich.table import Table

from visionflow_hf.evaluation.figures import columns_of, figure, interval, p_value, rows_of
from visionflow_hf.evaluation.page import page
from visionflow_hf.evaluation.pictures import STYLE, draw_losses, draw_reconstructions, draw_voxels, losses_in, save
from visionflow_hf.evaluation.quality import VoxelScores, pixel_correlations
from visionflow_hf.evaluation.rows import Rows, save_arrays
from visionflow_hf.evaluation.scores import score
from visionflow_hf.evaluation.significance import against_ridge, voxels_above_chance
from visionflow_hf.results import SIMULATED, is_simulated

MARKER = "metrics.json"


def write_report(
    folder: Path,
    predictions: dict[str, np.ndarray | Rows],
    histories: list[list[dict]],
    header: dict,
    perceptual: torch.device | None = None,
) -> dict:
    """Score the predictions, write the report into a folder, and return the content of metrics.json.

    Args:
        histories: Trainer log histories for the loss curves; without any, the picture is left out.
        header: further entries at the top of metrics.json, such as the split; under `about` what is known of corpus,
            model and training.
        perceptual: as in `score`.
    """
    trials = int(predictions["trials"].sum())
    quality = pixel_correlations(predictions)
    voxels = VoxelScores.of(predictions)
    metrics = {
        **header,
        "n_stimuli": len(np.unique(predictions["stimulus_id"])),
        "n_trials": trials,
        **score(predictions, perceptual=perceptual),
        "against_ridge": against_ridge(predictions),
        "voxels_above_chance": voxels_above_chance(voxels, predictions),
    }
    with plt.rc_context(STYLE):
        save_arrays(folder / "predictions.npz", predictions)
        save(draw_reconstructions(predictions, quality), folder / "reconstructions.png")
        save(draw_voxels(voxels), folder / "voxel_r.png")
        if losses_in(histories):
            save(draw_losses(histories), folder / "losses.png")
        (folder / "report.html").write_text(page(predictions, metrics, histories, quality, voxels), encoding="utf-8")
        (folder / MARKER).write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


def print_table(metrics: dict) -> None:
    """Print the figures of the model with 95 % intervals, of the baselines, and of the noise ceiling."""
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
    if is_simulated(metrics.get("unit")):
        table.caption = SIMULATED
    console.print(table)
