"""`visionflow evaluate`: compares a trained model with baselines on one split of a corpus."""

import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

from visionflow_hf.corpus.leakage import leakage, seen_in_training
from visionflow_hf.corpus.repeats import ceilings_of_test
from visionflow_hf.corpus.responses import pairs_of
from visionflow_hf.corpus.schema import open_corpus
from visionflow_hf.errors import UserError
from visionflow_hf.evaluation.perceptual import require_networks
from visionflow_hf.evaluation.predictions import predict
from visionflow_hf.evaluation.report import MARKER, print_table, write_report
from visionflow_hf.folders import new_folder, refuse_existing
from visionflow_hf.hub import add_result, load_model, training_of_model
from visionflow_hf.results import result_of

logger = logging.getLogger(__name__)


def evaluate(
    run: str | os.PathLike,
    corpus: str | os.PathLike,
    out: str | os.PathLike,
    split: str = "test",
    overwrite: bool = False,
    allow_leakage: bool = False,
    perceptual: bool = False,
    device: str | None = None,
) -> dict:
    """Write a report of the model `run` on `split` of `corpus` to the folder `out`.

    The baselines are fitted on the pairs of the corpus's train split. If `run` is a folder, the results are also
    written to its model card; nothing else in the card changes.

    Args:
        run: model folder, or ORG/NAME on the Hub.
        corpus: folder, or ORG/NAME on the Hub.
        allow_leakage: evaluate even if a stimulus is in two splits; metrics.json then says so.
        perceptual: add the figures of `visionflow_hf.evaluation.perceptual`, whose networks are downloaded.
        device: such as `cpu` or `cuda`; None for a GPU where there is one.

    Returns:
        What metrics.json holds.

    Raises:
        UserError: the model or the corpus cannot be used, they do not fit each other, or `out` exists.
    """
    refuse_existing(out, overwrite, MARKER)
    opened = open_corpus(corpus, allow_leakage)
    if split not in opened.splits:
        raise UserError(f"{corpus} has no split {split}: it has {', '.join(opened.splits)}")
    if split == "test":
        opened = replace(opened, voxels=ceilings_of_test(opened.voxels))
    model, processor = load_model(run, device)
    if perceptual:
        require_networks()
    train, asked = (pairs_of(opened.splits[name]) for name in ("train", split))
    warn_of_units(run, opened.unit)
    histories = losses_of(run)
    header = {"split": split, "split_by": opened.split_by, "unit": opened.unit, "about": about_model(run, corpus)}
    known = []
    if opened.leakage and split != "train":
        known.append(leakage({name: opened.splits[name] for name in ("train", split)}, opened.pictures))
    if split == "test":
        known.append(seen_in_training(run, opened.pictures[split], split))
        if known[-1]:
            logger.warning(f"{known[-1]}: the figures say how well it fits them, not how well it predicts new ones")
    if any(known):
        header["leakage"] = "; ".join(filter(None, known))
    with new_folder(out, overwrite, marker=MARKER) as folder:
        predictions = predict(model, processor, opened, train, asked, folder / "scratch")
        metrics = write_report(folder, predictions, histories, header, model.device if perceptual else None)
        shutil.rmtree(folder / "scratch")
    add_result(run, result_of(metrics, corpus, opened.license))
    print_table(metrics)
    return metrics


def losses_of(run: str | os.PathLike) -> list[list[dict]]:
    """The Trainer's log history of the model in a folder; without one, the report has no loss curves."""
    state = Path(run) / "trainer_state.json"
    try:
        return [json.loads(state.read_text(encoding="utf-8"))["log_history"]] if state.is_file() else []
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning(f"{state} cannot be read ({type(error).__name__}): the report has no loss curves")
        return []


def warn_of_units(run: str | os.PathLike, unit: str) -> None:
    """Say so where the corpus is in another unit than the responses that the model was trained on."""
    trained = training_of_model(run).get("unit")
    if trained and unit and trained != unit:
        logger.warning(
            f"the model was trained on fMRI in the unit {trained!r}, the corpus is in {unit!r}: decoding is "
            "wrong unless they mean the same, since the means and deviations of the model standardise the responses"
        )


def about_model(run: str | os.PathLike, corpus: str | os.PathLike) -> dict[str, str | int]:
    """What a report says of the model and the corpus: their names, and what the model's card says."""
    names = [Path(one).resolve().name if Path(one).exists() else str(one) for one in (corpus, run)]
    training = training_of_model(run)
    known = {
        "encoder": "encoder",
        "n_stimuli": "train stimuli",
        "n_trials": "train trials",
        "steps": "training steps",
        "seed": "seed",
    }
    about = dict(zip(("corpus", "model"), names, strict=True))
    return about | {name: training[key] for key, name in known.items() if key in training}
