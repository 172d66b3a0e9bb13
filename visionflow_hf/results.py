"""What an evaluation found, as a model's card keeps it: plain in its head, as `model-index`, and as a table.

The truth is the list `results` under `visionflow:` in the head; `model-index` and the tables are written from it.
"""

import os
import re
from pathlib import Path

from huggingface_hub import EvalResult

TASKS = {  # block of metrics.json: task of model-index, and its name
    "decoding": ("fmri-to-image", "decoding (fMRI to image)"),
    "encoding": ("image-to-fmri", "encoding (image to fMRI)"),
    "latent": ("latent-alignment", "latent (image and fMRI)"),
}
MODELS_OWN = ("decoding.model.", "encoding.model.", "latent.")


def result_of(metrics: dict, corpus: str | os.PathLike, license: str) -> dict:
    """What the card keeps of metrics.json: the figures that were measured, and what they were measured on.

    Args:
        corpus: the folder, of which the name is kept, or ORG/NAME on the Hub.
        license: that of the data; empty where the corpus does not state it.
    """
    name = Path(corpus).resolve().name if Path(corpus).exists() else str(corpus)
    blocks = {block: metrics[block] for block in TASKS} | {"latent": {"model": metrics["latent"]}}
    intervals = {name: pair for name, pair in metrics["intervals"].items() if name.startswith(MODELS_OWN)}
    return {
        "dataset": " ".join(name.split()),
        "split": metrics["split"],
        "n_stimuli": metrics["n_stimuli"],
        "n_trials": metrics["n_trials"],
        "leakage": metrics.get("leakage", ""),
        "license": license,
        **{block: {method: _measured(figures) for method, figures in found.items()} for block, found in blocks.items()},
        "intervals": intervals,
    }


def with_result(results: list[dict], result: dict) -> list[dict]:
    """The results with one more, which takes the place of an older one of the same corpus and split."""
    same = [(one["dataset"], one["split"]) == (result["dataset"], result["split"]) for one in results]
    if not any(same):
        return [*results, result]
    return [result if replaced else one for one, replaced in zip(results, same, strict=True)]


def eval_results(results: list[dict]) -> list[EvalResult]:
    """The model's own figures, in the form that the Hub reads."""
    return [
        EvalResult(
            task_type=task,
            task_name=task_name,
            dataset_type=re.sub(r"[^\w./-]+", "-", result["dataset"], flags=re.ASCII),  # the Hub takes names alone
            dataset_name=result["dataset"],
            dataset_split=result["split"],
            metric_type=figure,
            metric_name=figure,
            metric_value=value,
        )
        for result in results
        for block, (task, task_name) in TASKS.items()
        for figure, value in result[block]["model"].items()
    ]


def table(result: dict) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table: a row a figure, the model with its interval, the baselines, the noise ceiling."""
    methods = dict.fromkeys(method for block in TASKS for method, figures in result[block].items() if figures)
    others = sorted((method for method in methods if method != "model"), key="noise_ceiling".__eq__)
    header = ["", "figure", "model", "95 % interval", *(method.replace("_", " ") for method in others)]
    rows = []
    for block, (_, title) in TASKS.items():
        for figure, value in result[block]["model"].items():
            interval = result["intervals"].get(f"{block}.model.{figure}" if block != "latent" else f"latent.{figure}")
            compared = [_cell(result[block].get(method, {}).get(figure)) for method in others]
            rows.append([title, figure, _cell(value), " to ".join(map(_cell, interval or [])) or "-", *compared])
            title = ""
    return header, rows


def escaped(text: str) -> str:
    """A name of somebody else's as Markdown shows it letter by letter, in one line, also in a table."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(str(text).split()))


def _measured(figures: dict | None) -> dict:
    return {name: value for name, value in (figures or {}).items() if isinstance(value, (int, float))}


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3f}"
