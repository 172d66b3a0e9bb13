"""report.html: figures, pictures and loss curves on one page, without other files, network requests or scripts.

Names come from users' files; the template escapes them. Sections without data are left out, and the end of the page
lists them with the reason.
"""

import base64
import io
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from visionflow_hf import __version__
from visionflow_hf.evaluation import brain, pictures
from visionflow_hf.evaluation.figures import DIRECTIONS, columns_of, figure, in_words, interval, p_value, rows_of
from visionflow_hf.evaluation.predictions import methods
from visionflow_hf.evaluation.quality import VoxelScores, subjects_of
from visionflow_hf.metrics import LEAST_CEILING, cosine_similarity
from visionflow_hf.results import SIMULATED, is_simulated

TEMPLATE = "report.html"
SHOWN = 4  # stimuli in each of best, median and worst
RESPONSES, NEIGHBOURS = 6, 5
MOST_SIDE, SHARP_SIDE = 128, 64  # px: larger pictures shrink to the one, and up to the other every pixel is kept
MOST_BRAINS = 4
MOST_OF_ALL, SMALL_SIDE = 500, 48  # of all reconstructions: how many, and px of a large picture
HEADLINES = {
    "decoding": ("pixcorr", "ssim", "two_way"),
    "encoding": ("voxel_r_mean",),
}


@dataclass
class Picture:
    """An image of the page: its data URL and its alternative text."""

    source: str
    alt: str
    sharp: bool  # has few pixels, which are enlarged without smoothing


@dataclass
class Column:
    """One column of the reconstructions: the pictures of one response, top to bottom."""

    title: str
    r: float
    pictures: list[Picture]


@dataclass
class Neighbour:
    """A stimulus whose latent is near the latent of a response."""

    picture: Picture
    cosine: float
    own: bool


def page(
    predictions: dict[str, np.ndarray],
    metrics: dict,
    histories: list[list[dict]],
    quality: np.ndarray,
    voxels: VoxelScores,
) -> str:
    """The whole page.

    Args:
        predictions: the arrays named in `visionflow_hf.evaluation.predictions`.
        metrics: the content of metrics.json.
        histories: Trainer log histories, one per run or fold.
        quality: pixel correlation of each row, array of shape (rows,).
    """
    rows = rows_of(metrics)
    absent: dict[str, str] = {}
    with plt.rc_context(pictures.STYLE):
        context = {
            "metrics": metrics,
            "rows": rows,
            "methods": columns_of(rows),
            "headlines": [row for row in rows if row.name in HEADLINES.get(row.direction, ())],
            "reconstructions": reconstructions(predictions, quality),
            "histogram": svg(pictures.draw_voxels(voxels), "voxels"),
            "ceiling": ceiling(voxels, absent),
            "regions": regions(metrics, absent),
            "brains": brains(predictions, voxels, absent),
            "subjects": per_subject(metrics, predictions),
            "single_trial": single_trial(metrics, absent),
            "neighbours": neighbours(predictions, quality),
            "losses": losses(histories, absent),
            "all": all_reconstructions(predictions, quality),
            "about": metrics.get("about", {}),
            "against_ridge": {
                in_words(name.rpartition(".")[2]): test for name, test in metrics.get("against_ridge", {}).items()
            },
            "above_chance": metrics.get("voxels_above_chance", {}),
            "facts": facts(metrics, predictions, voxels),
            "absent": absent,
            "leakage": metrics.get("leakage"),
            "fitted": metrics["split"] == "train",
            "simulated": SIMULATED if is_simulated(metrics.get("unit")) else None,
            "measurable": measurable(voxels),
            "least_ceiling": LEAST_CEILING,
            "tested": any(row.p is not None for row in rows),
            "directions": DIRECTIONS,
        }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": figure, "interval": interval, "p_value": p_value, "in_words": in_words}
    return environment.get_template(TEMPLATE).render(context)


def reconstructions(predictions: dict[str, np.ndarray], quality: np.ndarray) -> dict:
    """Best, median and worst by pixel correlation, of the responses of all subjects."""
    names = methods(predictions, "reconstruction")
    lines = {"stimulus": "image", "from measured fMRI": names.pop("model")}
    if "round_trip" in names:
        lines["from predicted fMRI"] = names.pop("round_trip")
    lines |= {in_words(method): name for method, name in names.items()}
    order = np.argsort(-quality, kind="stable")
    count = min(SHOWN, len(order))
    middle = (len(order) - count) // 2
    groups = {
        "best": order[:count],
        "median": order[middle : middle + count],
        "worst": order[len(order) - count :],
    }
    if len(order) < 3 * count:  # too few for three groups: all of them
        parts = np.array_split(order, -(-len(order) // SHOWN))
        ends = np.cumsum([len(part) for part in parts])
        groups = {f"rank {end - len(part) + 1} to {end}": part for part, end in zip(parts, ends, strict=True)}
    return {
        "lines": list(lines),
        "count": len(order),
        "groups": {
            group: [
                Column(
                    title=row_name(predictions, row),
                    r=float(quality[row]),
                    pictures=[
                        picture(predictions[name][row], f"{label}: {row_name(predictions, row)}")
                        for label, name in lines.items()
                    ],
                )
                for row in chosen
            ]
            for group, chosen in groups.items()
        },
    }


def all_reconstructions(predictions: dict[str, np.ndarray], quality: np.ndarray) -> list[tuple[str, float, list]]:
    """Of every response, from the best to the worst, its name, pixel correlation, image and reconstruction.

    Of more than `MOST_OF_ALL` those at even steps of the ranking.
    """
    order = np.argsort(-quality, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(MOST_OF_ALL, len(order))).round().astype(int)]
    lines = {"stimulus": "image", "reconstruction": "reconstruction"}
    return [
        (
            row_name(predictions, row),
            float(quality[row]),
            [picture(predictions[name][row], label, SMALL_SIDE) for label, name in lines.items()],
        )
        for row in chosen
    ]


def row_name(predictions: dict[str, np.ndarray], row: int) -> str:
    return f"{predictions['stimulus_id'][row]}, {predictions['subject'][row]}"


def ceiling(voxels: VoxelScores, absent: dict[str, str]) -> Markup | None:
    if not (np.isfinite(voxels.all_ceilings) & np.isfinite(voxels.together("model"))).any():
        absent["Voxel r against the noise ceiling"] = "the corpus has no noise ceilings, which need repeats"
        return None
    return svg(pictures.draw_ceiling(voxels), "ceiling")


def measurable(voxels: VoxelScores) -> dict | None:
    """How many voxels have a noise ceiling of at least `LEAST_CEILING`, of how many; None if no ceiling is known."""
    ceilings = voxels.all_ceilings[np.isfinite(voxels.all_ceilings)]
    if not len(ceilings):
        return None
    return {"number": int((ceilings >= LEAST_CEILING).sum()), "of": len(ceilings)}


def regions(metrics: dict, absent: dict[str, str]) -> dict | None:
    rois = {subject: block["rois"] for subject, block in metrics.get("subjects", {}).items() if block.get("rois")}
    if not rois:
        absent["Regions"] = "the corpus has no regions of interest"
        return None
    known = len({name for by_name in rois.values() for name in by_name})
    blocks = {name: [own[name] for own in rois.values() if name in own] for name in pictures.regions_of(rois)}
    first = next(iter(blocks.values()))[0]
    methods = [name for name, part in first.items() if isinstance(part, dict) and "voxel_r_mean" in part]
    return {
        "svg": svg(pictures.draw_regions(rois), "regions"),
        "known": known,
        "drawn": len(pictures.regions_of(rois)),
        "subjects": len(rois),
        "methods": methods,
        "table": {
            name: [round(np.mean([block["n_voxels"] for block in own])), *(mean_of(own, method) for method in methods)]
            for name, own in blocks.items()
        },
    }


def mean_of(blocks: list[dict], method: str) -> float | None:
    """Mean voxel r of a region over subjects."""
    values = [(block.get(method) or {}).get("voxel_r_mean") for block in blocks]
    values = [value for value in values if value is not None]
    return float(np.mean(values)) if values else None


def brains(predictions: dict[str, np.ndarray], voxels: VoxelScores, absent: dict[str, str]) -> list[dict]:
    """Maps on the surface if vertices are known, and in space if coordinates are known; each with its caption."""
    places = {subject: predictions[f"xyz/{subject}"] for subject in voxels.r if f"xyz/{subject}" in predictions}
    vertices = any(f"vertex/{subject}" in predictions for subject in voxels.r)
    if not places and not vertices:
        absent["Brain maps"] = "the corpus has no coordinates or vertices of its voxels"
        return []
    if find_spec("nilearn") is None:
        absent["Brain maps"] = "they need nilearn: pip install 'visionflow-hf[brain]'"
        return []
    maps = []
    if vertices:
        values, subjects = brain.on_surface(predictions, voxels)
        if np.isfinite(values).any():
            whose = subjects[0] if len(subjects) == 1 else f"the mean of {len(subjects)} subjects"
            what = (
                f"Voxel r of the model on the inflated surface fsaverage5: {whose}, at the "
                f"{np.isfinite(values).sum()} measured vertices. Negative r is drawn as 0. Other vertices are grey."
            )
            maps.append({"picture": png(brain.draw_surface(values), "Voxel r on the cortical surface"), "what": what})
    for subject, xyz in list(places.items())[:MOST_BRAINS]:
        r = voxels.r[subject]["model"]
        known = np.isfinite(xyz).all(1) & np.isfinite(r)
        if not known.any():
            continue
        what = f"{subject}: voxel r of the model, negative r drawn as 0, the best predicted voxels in front. "
        what += (
            "The outline is that of the MNI template. It fits only if the coordinates are in MNI space, which the "
            "corpus does not state."
            if brain.in_mni_box(xyz[known])
            else "The coordinates are not millimetres in MNI space, so no outline is drawn."
        )
        maps.append({"picture": png(brain.draw_volume(xyz, r), f"Voxel r of {subject} in three views"), "what": what})
        if f"place/{subject}" in predictions:
            what = (
                f"{subject}: the same in slices of the scan along its last axis, counted from 0. The first axis runs "
                "to the right, the second one up."
            )
            slices = brain.draw_slices(predictions[f"place/{subject}"], r)
            maps.append({"picture": png(slices, f"Voxel r of {subject} in slices"), "what": what})
    if not maps:
        absent["Brain maps"] = "no voxel has both a known r and a known place"
    if len(places) > MOST_BRAINS:
        absent["Brain maps of further subjects"] = f"the page shows the first {MOST_BRAINS} of {len(places)}"
    return maps


def per_subject(metrics: dict, predictions: dict[str, np.ndarray]) -> dict | None:
    """The figures of each subject for a table with one column per subject; None if there is only one subject."""
    blocks = metrics.get("subjects", {})
    if len(blocks) < 2:
        return None
    return {
        "names": list(blocks),
        "rows": {name: rows_of(block) for name, block in blocks.items()},
        "counts": {
            "stimuli": {name: int((predictions["subject"] == name).sum()) for name in blocks},
            "voxels": {name: predictions[f"fmri/{name}"].shape[1] for name in blocks},
        },
    }


def single_trial(metrics: dict, absent: dict[str, str]) -> list[dict] | None:
    """Each figure of averaged repeats with that of single trials, means over the subjects who have repeats."""
    if not metrics.get("single_trial"):
        absent["Single trials"] = "no stimulus has repeats"
        return None
    repeated = [block for block in metrics["subjects"].values() if "single_trial" in block]
    alone = {(row.direction, row.name): row.values for row in rows_of(metrics["single_trial"])}
    both = [{name: block.get(name) for name in metrics["single_trial"]} for block in repeated]
    return [
        {"row": row, "averaged": row.values, "alone": alone[row.direction, row.name]}
        for row in rows_of(mean_figures(both))
        if (row.direction, row.name) in alone
    ]


def mean_figures(blocks: list[dict]) -> dict:
    """Mean of nested figures, each over the blocks that have it; None where none has."""
    found = {}
    for name in blocks[0]:
        values = [block[name] for block in blocks if block.get(name) is not None]
        if values and isinstance(values[0], dict):
            found[name] = mean_figures(values)
        else:
            found[name] = float(np.mean(values)) if values else None
    return found


def neighbours(predictions: dict[str, np.ndarray], quality: np.ndarray) -> dict:
    """For responses at even steps from the best to the worst: the stimuli with the nearest latents.

    Candidates are the stimuli of the same subject and of the same fold, since each fold has its own latent space.
    """
    order = np.argsort(-quality, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(RESPONSES, len(order))).round().astype(int))]
    fold = predictions.get("fold", np.zeros(len(quality)))
    lines = []
    for row in chosen:
        there = np.flatnonzero((predictions["subject"] == predictions["subject"][row]) & (fold == fold[row]))
        near = cosine_similarity(predictions["latent/fmri"][[row]], predictions["latent/image"][there])[0]
        nearest = np.argsort(-near, kind="stable")[:NEIGHBOURS]
        own = int(np.flatnonzero(np.argsort(-near, kind="stable") == np.flatnonzero(there == row)[0])[0]) + 1
        lines.append(
            {
                "seen": picture(predictions["image"][row], f"stimulus: {row_name(predictions, row)}"),
                "rank": own,
                "of": len(there),
                "nearest": [
                    Neighbour(
                        picture(predictions["image"][there[place]], row_name(predictions, there[place])),
                        float(near[place]),
                        there[place] == row,
                    )
                    for place in nearest
                ],
            }
        )
    return {"lines": lines, "columns": max(len(line["nearest"]) for line in lines), "folds": "fold" in predictions}


def losses(histories: list[list[dict]], absent: dict[str, str]) -> list[dict]:
    if not histories:
        absent["Training"] = "the model folder has no trainer_state.json"
    elif not pictures.losses_in(histories):
        absent["Training"] = "no losses were logged"
    return [
        {"id": name, "name": name.removeprefix("loss_"), "svg": svg(pictures.draw_loss(histories, name), name)}
        for name in pictures.losses_in(histories)
    ]


def facts(metrics: dict, predictions: dict[str, np.ndarray], voxels: VoxelScores) -> dict[str, str]:
    """What was measured and how, by name; includes all plain values at the top of metrics.json."""
    named = {"split": "Split", "n_stimuli": "Stimuli", "n_trials": "Trials", "n_folds": "Folds", "seed": "Seed"}
    named["split_by"] = "Held out by"
    named["unit"] = "Unit of the fMRI"
    subjects = subjects_of(predictions)
    found = {
        named.get(name, in_words(name)): value
        for name, value in metrics.items()
        if isinstance(value, (str, int, float)) and name != "leakage"
    }
    height, width = predictions["image"].shape[1:3]
    colour = "colour" if predictions["image"].ndim == 4 else "grey"
    if "n_folds" in metrics:
        found["Standardised by"] = "mean and standard deviation of the train rows of each fold"
    return found | {
        "Subjects": ", ".join(f"{subject} ({len(voxels.ceiling[subject])} voxels)" for subject in subjects),
        "Images": f"{width} x {height} px, {colour}",
        "Latent dimensions": predictions["latent/image"].shape[1],
        "Version": f"visionflow-hf {__version__}",
        "Date": date.today().isoformat(),
    }


def picture(pixels: np.ndarray, alt: str, most: int = MOST_SIDE) -> Picture:
    """uint8 pixels of shape (height, width[, 3]) as a data URL; an image of more than `most` px a side is reduced."""
    image = Image.fromarray(pixels)
    small = max(image.size) <= SHARP_SIDE
    image.thumbnail((most, most))
    written = io.BytesIO()
    image.save(written, **({"format": "PNG", "optimize": True} if small else {"format": "JPEG", "quality": 85}))
    return Picture(data_url(written, "image/png" if small else "image/jpeg"), alt, small)


def png(drawn: Figure, alt: str) -> Picture:
    written = io.BytesIO()
    drawn.savefig(written, format="png", dpi=160, bbox_inches="tight", facecolor="white")
    plt.close(drawn)
    return Picture(data_url(written, "image/png"), alt, False)


def svg(drawn: Figure, name: str) -> Markup:
    return Markup(pictures.to_svg(drawn, name))


def data_url(written: io.BytesIO, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(written.getvalue()).decode()}"
