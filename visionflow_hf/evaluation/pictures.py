"""The pictures of a report: reconstructions, losses over training, and how well each voxel is predicted.

Each function returns a matplotlib figure, drawn in `STYLE`; `save` writes it as a file, `to_svg` for a page.
"""

import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from visionflow_hf.evaluation.figures import in_words
from visionflow_hf.evaluation.quality import VoxelScores

INK, MODEL, RIDGE, NEAREST, GREY = "#1f2328", "#0b6e99", "#d9822b", "#8a5aa8", "#777777"
COLORS = {"model": MODEL, "ridge": RIDGE, "nearest": NEAREST}
PAGE_COLORS = {  # the page defines each for its light and its dark theme
    INK: "currentColor",
    MODEL: "var(--model)",
    RIDGE: "var(--ridge)",
    NEAREST: "var(--nearest)",
    GREY: "var(--grey)",
}
STYLE = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # the name of a subject may hold a dollar sign
}
COLUMNS = 12
REGIONS = 40
LOSSES = ("loss_image", "loss_kl", "loss_alignment", "loss_fmri")


def draw_reconstructions(predictions: dict[str, np.ndarray], quality: np.ndarray) -> Figure:
    """Stimuli and their reconstructions from measured fMRI, from predicted fMRI, and by ridge.

    The columns are stimuli of the first subject at even steps of the ranking by pixel correlation, from the best on the
    left to the worst on the right.

    Args:
        quality: pixel correlation of each row, array of shape (rows,).
    """
    subject = predictions["subject"][0]
    rows = np.flatnonzero(predictions["subject"] == subject)
    order = rows[np.argsort(-quality[rows])]
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(COLUMNS, len(order))).round().astype(int))]
    lines = {
        "stimulus": "image",
        "from measured fMRI": "reconstruction",
        "from predicted fMRI": "round_trip/reconstruction",
        "ridge, measured fMRI": "ridge/reconstruction",
    }
    height, width = predictions["image"].shape[1:3]
    figure, axes = plt.subplots(
        len(lines),
        len(chosen),
        figsize=(1.6 + 0.9 * len(chosen), 0.9 * len(lines) * height / width + 0.5),
        squeeze=False,
        gridspec_kw={"wspace": 0.06, "hspace": 0.06},
    )
    for line, (label, name) in enumerate(lines.items()):
        for axis, row in zip(axes[line], chosen, strict=True):
            axis.imshow(predictions[name][row], cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set_visible(False)
        axes[line, 0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    figure.suptitle(
        f"{subject}: {len(chosen)} of {len(rows)} stimuli, best on the left, worst on the right",
        fontsize=10,
        y=0.89 + 0.14 / figure.get_figheight(),  # the axes end at 0.88
        va="bottom",
    )
    return figure


def draw_voxels(voxels: VoxelScores) -> Figure:
    """Histogram of voxel r over all subjects, for each method, and the mean of the noise ceiling."""
    figure, axis = plt.subplots(figsize=(5, 3.5), layout="constrained")
    bins = np.linspace(-1, 1, 61)
    lowest = 1.0
    for method in next(iter(voxels.r.values())):
        values = voxels.together(method)
        values = values[np.isfinite(values)]
        if not len(values):
            continue
        color = COLORS.get(method, GREY)
        lowest = min(lowest, values.min())
        axis.hist(values, bins, histtype="stepfilled", alpha=0.2, color=color)
        label = f"{in_words(method)}, mean over voxels {values.mean():.3f}"
        axis.hist(values, bins, histtype="step", color=color, linewidth=1.5, label=label)
    reachable = np.sqrt(voxels.all_ceilings)
    if np.isfinite(reachable).any():
        best = np.nanmean(reachable)
        axis.axvline(
            best, color=GREY, linestyle="--", linewidth=1.2, label=f"noise ceiling, mean over voxels {best:.3f}"
        )
    axis.set(xlim=(max(-1, lowest - 0.05), 1), xlabel="voxel r over stimuli, image to fMRI", ylabel="voxels")
    axis.margins(y=0.25)  # room for the legend
    axis.legend(loc="upper left")
    return figure


def draw_ceiling(voxels: VoxelScores) -> Figure:
    """The model's r of each voxel against the voxel's noise ceiling, and the r of a perfect model."""
    figure, axis = plt.subplots(figsize=(5, 3.5), layout="constrained")
    r, ceiling = voxels.together("model"), voxels.all_ceilings
    known = np.isfinite(r) & np.isfinite(ceiling)
    shades = LinearSegmentedColormap.from_list("model", [to_rgba(MODEL, 0.15), MODEL])
    low = min(-0.1, r[known].min())
    cells = axis.hexbin(
        ceiling[known],
        r[known],
        gridsize=(45, 27),
        extent=(0, 1, low, 1),
        mincnt=1,
        bins="log" if known.sum() > 2000 else None,
        cmap=shades,
        linewidths=0,
        rasterized=True,
    )
    grid = np.linspace(0, 1, 101)
    axis.plot(grid, np.sqrt(grid), color=INK, linewidth=1.2, linestyle="--", label="√ceiling")
    axis.set(xlim=(0, 1), ylim=(low, 1.05), xlabel="noise ceiling, share of variance", ylabel="voxel r, model")
    axis.legend(loc="lower right")
    figure.colorbar(cells, ax=axis, label="voxels", pad=0.02, format="{x:g}").outline.set_visible(False)
    return figure


def draw_regions(subjects: dict[str, dict[str, dict]], figure_name: str = "voxel_r_mean") -> Figure:
    """A bar for each region and method, the mean over subjects. Dots are subjects, lines are noise ceilings.

    Args:
        subjects: by subject and region, the block of metrics.json: `n_voxels`, and the figures of each method.
    """
    names = regions_of(subjects)
    blocks = {name: [rois[name] for rois in subjects.values() if name in rois] for name in names}
    first = next(iter(blocks.values()))[0]
    methods = [name for name, part in first.items() if isinstance(part, dict) and figure_name in part]
    methods = [name for name in methods if name != "noise_ceiling"]
    figure, axis = plt.subplots(figsize=(5, 0.9 + 0.13 * len(names) * (len(methods) + 1)), layout="constrained")
    thick = 1 / (len(methods) + 0.8)
    keys, line_of_ceiling = {}, None

    def values_of(name, method):
        values = [(block.get(method) or {}).get(figure_name) for block in blocks[name]]
        return [value for value in values if value is not None]

    for place, name in enumerate(names):
        for line, method in enumerate(methods):
            values, at = values_of(name, method), place + (line - (len(methods) - 1) / 2) * thick
            if not values:
                continue
            color = COLORS.get(method, GREY)
            keys[in_words(method)] = axis.barh(at, np.mean(values), thick * 0.9, color=color, alpha=0.75, linewidth=0)
            if len(values) > 1:
                axis.plot(values, [at] * len(values), "o", color=INK, markersize=2.2, alpha=0.7, markeredgewidth=0)
        ceiling = values_of(name, "noise_ceiling")
        if ceiling:
            (line_of_ceiling,) = axis.plot(
                [np.mean(ceiling)] * 2, [place - 0.45, place + 0.45], color=GREY, linewidth=1.6
            )
    counts = [np.mean([block["n_voxels"] for block in blocks[name]]) for name in names]
    labels = [f"{shortened(name)} ({number:.0f})" for name, number in zip(names, counts, strict=True)]
    axis.set(yticks=range(len(names)), yticklabels=labels, ylim=(len(names) - 0.4, -0.6), xlabel="voxel r, mean")
    axis.axvline(0, color=INK, linewidth=0.8)
    axis.tick_params(axis="y", length=0)
    keys |= {"noise ceiling": line_of_ceiling} if line_of_ceiling else {}
    figure.legend(keys.values(), keys, loc="outside upper right", ncols=2)
    return figure


def regions_of(subjects: dict[str, dict[str, dict]]) -> list[str]:
    """The names of the regions to draw: all, or the `REGIONS` with the most voxels."""
    size: dict[str, int] = {}
    for rois in subjects.values():
        for name, block in rois.items():
            size[name] = size.get(name, 0) + block["n_voxels"]
    largest = sorted(size, key=size.get, reverse=True)[:REGIONS]
    return [name for name in size if name in largest]


def shortened(name: str, most: int = 24) -> str:
    name = "".join(character for character in name if character.isprintable())  # XML takes no others
    return name if len(name) <= most else name[: most - 1] + "…"


def draw_losses(histories: list[list[dict]]) -> Figure:
    """Each named loss over training steps, side by side.

    Args:
        histories: `log_history` of the Trainer state of each run or fold.
    """
    names = losses_in(histories)
    figure, axes = plt.subplots(1, len(names), figsize=(3.3 * len(names), 2.8), layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        plot_loss(axis, histories, name)
    return figure


def losses_in(histories: list[list[dict]]) -> list[str]:
    """The named losses that were logged in training."""
    return [name for name in LOSSES if any(name in entry for history in histories for entry in history)]


def draw_loss(histories: list[list[dict]], name: str) -> Figure:
    """One loss over training steps."""
    figure, axis = plt.subplots(figsize=(3.2, 2.5), layout="constrained")
    plot_loss(axis, histories, name)
    return figure


def plot_loss(axis: Axes, histories: list[list[dict]], name: str) -> None:
    """Plot one loss: train as a line, validation as dots."""
    for history in histories:
        faint = 1 if len(histories) == 1 else 0.5
        for key, style in ((name, {"linestyle": "-"}), (f"eval_{name}", {"marker": "o", "markersize": 3})):
            points = [(entry["step"], entry[key]) for entry in history if key in entry]
            if points:
                color = RIDGE if key.startswith("eval") else MODEL
                axis.plot(*zip(*points, strict=True), color=color, alpha=faint, linewidth=1.2, **style)
    axis.set(title=name.removeprefix("loss_"), xlabel="step", yscale="log", ylabel="mean per element")
    axis.set_xlim(0, max(history[-1]["step"] for history in histories))
    low, high = axis.get_ylim()
    ticks = range(1, 10) if high < 4 * low else (1, 2, 5) if high < 50 * low else (1,)
    axis.yaxis.set_major_locator(LogLocator(subs=ticks))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.plot([], [], color=MODEL, label="train")
    if any(f"eval_{name}" in entry for history in histories for entry in history):
        axis.plot([], [], color=RIDGE, marker="o", markersize=3, label="validation")
    axis.legend(fontsize=8)


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150, bbox_inches="tight", facecolor="white")
    plt.close(figure)


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an `svg` element that takes the colours of the page it stands in.

    Args:
        name: made part of every id, so that figures of one page do not share any.
    """
    written = io.StringIO()
    figure.savefig(
        written, format="svg", dpi=150, transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
    )
    plt.close(figure)
    root = ElementTree.fromstring(written.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]  # a page knows svg without its namespaces
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        element.attrib.clear()
        for key, value in attributes.items():
            if key == "id":
                value = f"{name}-{value}"
            elif key == "href" and value.startswith("#"):
                value = f"#{name}-{value[1:]}"
            elif key == "style":
                for color, variable in PAGE_COLORS.items():
                    value = value.replace(color, variable)
            element.set(key, re.sub(r"url\(#", f"url(#{name}-", value))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-caption")
    return ElementTree.tostring(root, encoding="unicode")
