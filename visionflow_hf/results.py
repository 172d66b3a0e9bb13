"""Results of evaluations in a model card: in the metadata under `visionflow` and `model-index`, and as tables.

The list `results` under `visionflow` holds all figures; the tables are written from it.
"""

import os
import re
from pathlib import Path

from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData

TASKS = {  # block of metrics.json: task of model-index, and its name
    "decoding": ("fmri-to-image", "decoding (fMRI to image)"),
    "encoding": ("image-to-fmri", "encoding (image to fMRI)"),
    "latent": ("latent-alignment", "latent (image and fMRI)"),
}
SIMULATED = (
    "The voxels of the simulator are Gabor energies of the image or, for photographs, layers of a vision network, plus "
    "noise. The features of the model are of these kinds, too: figures on such data do not predict those on measured "
    "fMRI."
)
BENCHMARK = {"image-to-fmri": ("encoding", "voxel_r_mean"), "fmri-to-image": ("decoding", "pixcorr")}
MODELS_OWN = ("decoding.model.", "encoding.model.", "latent.")


def result_of(metrics: dict, corpus: str | os.PathLike, license: str) -> dict:
    """The part of metrics.json that the card keeps: figures that are not null, and what they were measured on.

    Args:
        corpus: the folder, whose last part is kept as its name, or ORG/NAME on the Hub.
        license: that of the data; empty if the corpus does not state one.
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
        "unit": metrics.get("unit", ""),
        **{block: {method: _measured(figures) for method, figures in found.items()} for block, found in blocks.items()},
        "intervals": intervals,
    }


def with_result(results: list[dict], result: dict) -> list[dict]:
    """The results with one more, which replaces that of the same corpus and split."""
    same = [(one["dataset"], one["split"]) == (result["dataset"], result["split"]) for one in results]
    if not any(same):
        return [*results, result]
    return [result if replaced else one for one, replaced in zip(results, same, strict=True)]


def with_model_index(index: list[dict] | None, result: dict, name: str) -> list[dict]:
    """The metadata `model-index` with one more result, which replaces that of the same corpus, split and task.

    A result under leakage is left out, since nothing there would say so; that which it replaces goes.

    Args:
        index: the present `model-index`, if there is one; entries of other origin are kept.
        name: the model's, where there is no `model-index` yet.
    """
    measured = [] if result["leakage"] else eval_results(result)
    (new,) = ModelCardData(model_name=name, eval_results=measured).to_dict()["model-index"]
    if not index:
        return [new] if measured else []
    tasks = {task for task, _ in TASKS.values()}

    def replaced(one: dict) -> bool:
        data = one.get("dataset", {})
        same = (data.get("name"), data.get("split")) == (result["dataset"], result["split"])
        return same and one.get("task", {}).get("type") in tasks

    kept = [one for one in index[0]["results"] if not replaced(one)]
    return [index[0] | {"results": kept + new["results"]}, *index[1:]]


def eval_results(result: dict) -> list[EvalResult]:
    """The model's own figures, in the form that the Hub reads."""
    return [
        EvalResult(
            task_type=task,
            task_name=task_name,
            dataset_type=re.sub(r"[^\w./-]+", "-", result["dataset"], flags=re.ASCII),  # the Hub's characters
            dataset_name=result["dataset"],
            dataset_split=result["split"],
            metric_type=figure,
            metric_name=figure,
            metric_value=value,
        )
        for block, (task, task_name) in TASKS.items()
        for figure, value in result[block]["model"].items()
    ]


def benchmark_results(result: dict) -> list[EvalResultEntry]:
    """One figure for each task of `eval.yaml` in the corpus (`push-corpus --benchmark`), as .eval_results/ holds them.

    Source: huggingface.co/docs/hub/eval-results.
    """
    return [
        EvalResultEntry(
            dataset_id=result["dataset"],
            task_id=task,
            value=result[block]["model"][figure],
            notes=f"{figure}, mean over subjects, {result['n_stimuli']} stimuli",
        )
        for task, (block, figure) in BENCHMARK.items()
        if figure in result[block]["model"]
    ]


def table(result: dict) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table, one row per figure: the model, its interval, the baselines, the noise ceiling."""
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


def is_simulated(unit: str | None) -> bool:
    """Whether a corpus says, in the unit of its responses, that `visionflow simulate` made them."""
    return (unit or "").startswith("simulated")


def escaped(text: str) -> str:
    """A user's text in one line with its Markdown escaped, also for use in a table."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(str(text).split()))


def _measured(figures: dict | None) -> dict:
    return {name: value for name, value in (figures or {}).items() if isinstance(value, (int, float))}


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3f}"
