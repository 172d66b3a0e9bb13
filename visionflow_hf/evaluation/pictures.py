"""The pictures of a report: what was seen and what was read, how training went, how well each voxel is predicted."""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import NullFormatter

MODEL, RIDGE, GREY = "#0b6e99", "#d9822b", "#777777"
COLUMNS = 12


def draw_reconstructions(predictions: dict[str, np.ndarray], path: Path) -> None:
    """Stimulus above its reconstruction from measured fMRI, from predicted fMRI, and by ridge.

    The columns are stimuli of the first subject at even steps of pixel correlation, the best on the left and the worst
    on the right, so that nobody sees the best alone.
    """
    from visionflow_hf.evaluation.metrics import pixel_correlation

    subject = predictions["subject"][0]
    rows = np.flatnonzero(predictions["subject"] == subject)
    quality = pixel_correlation(predictions["image"][rows], predictions["reconstruction"][rows])
    order = rows[np.argsort(-quality)]
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
        f"{subject}: {len(chosen)} of {len(rows)} held-out stimuli, best on the left, worst on the right",
        fontsize=10,
        y=0.89 + 0.14 / figure.get_figheight(),  # the axes end at 0.88
        va="bottom",
    )
    _save(figure, path)


def draw_voxels(predictions: dict[str, np.ndarray], path: Path) -> None:
    """Histogram of voxel r over all subjects: the model's, ridge's, and what the noise lets any model reach."""
    from visionflow_hf.corpus.repeats import ceiling_of_average, ncsnr_of_ceiling
    from visionflow_hf.evaluation.metrics import voxel_correlation

    model, ridge, reachable = [], [], []
    for subject in dict.fromkeys(predictions["subject"].tolist()):
        measured = predictions[f"fmri/{subject}"]
        model.append(voxel_correlation(measured, predictions[f"fmri_predicted/{subject}"])[0])
        ridge.append(voxel_correlation(measured, predictions[f"ridge/fmri_predicted/{subject}"])[0])
        trials = predictions["trials"][predictions["subject"] == subject]
        single = predictions[f"noise_ceiling/{subject}"]
        reachable.append(np.sqrt(ceiling_of_average(ncsnr_of_ceiling(single), trials)))
    figure, axis = plt.subplots(figsize=(6.4, 3.6))
    bins = np.linspace(-1, 1, 61)
    for values, label, color in (
        (np.concatenate(model), "model", MODEL),
        (np.concatenate(ridge), "ridge on pixels", RIDGE),
    ):
        values = values[np.isfinite(values)]
        axis.hist(values, bins, histtype="stepfilled", alpha=0.25, color=color)
        axis.hist(values, bins, histtype="step", color=color, linewidth=1.5, label=f"{label}, mean {values.mean():.3f}")
    reachable = np.concatenate(reachable)
    if np.isfinite(reachable).any():
        best = np.nanmean(reachable)
        axis.axvline(best, color=GREY, linestyle="--", linewidth=1.2, label=f"noise ceiling, mean {best:.3f}")
    seen = np.concatenate([*model, *ridge])
    axis.set(
        xlim=(max(-1, np.nanmin(seen) - 0.05), 1),
        xlabel="voxel r over held-out stimuli, image to fMRI",
        ylabel="voxels",
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    _save(figure, path)


def draw_losses(histories: list[list[dict]], path: Path) -> None:
    """Each named loss over training steps, train as a line and validation as dots; one history a run or fold.

    A dotted line stands where the image stage ends and the pair stage begins.

    Args:
        histories: `log_history` of each Trainer state.
    """
    names = ["loss_image", "loss_kl", "loss_alignment", "loss_fmri"]
    figure, axes = plt.subplots(1, len(names), figsize=(3.3 * len(names), 2.8), layout="constrained")
    for axis, name in zip(axes, names, strict=True):
        for history in histories:
            faint = 1 if len(histories) == 1 else 0.5
            for key, style in ((name, {"linestyle": "-"}), (f"eval_{name}", {"marker": "o", "markersize": 3})):
                points = [(entry["step"], entry[key]) for entry in history if key in entry]
                if points:
                    color = RIDGE if key.startswith("eval") else MODEL
                    axis.plot(*zip(*points, strict=True), color=color, alpha=faint, linewidth=1.2, **style)
        alone = [entry["step"] for entry in histories[0] if "loss_image" in entry and "loss_alignment" not in entry]
        if alone:
            axis.axvline(alone[-1], color=GREY, linestyle=":", linewidth=1)
        axis.set(title=name.removeprefix("loss_"), xlabel="step", yscale="log")
        axis.set_xlim(0, histories[0][-1]["step"])
        axis.yaxis.set_major_formatter("{x:g}")
        low, high = axis.get_ylim()
        axis.yaxis.set_minor_formatter("{x:g}" if high < 10 * low else NullFormatter())
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].plot([], [], color=MODEL, label="train")
    axes[0].plot([], [], color=RIDGE, marker="o", markersize=3, label="validation")
    axes[0].legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("mean per element")
    _save(figure, path)


def _save(figure, path: Path) -> None:
    figure.savefig(path, dpi=150, bbox_inches="tight", facecolor="white")
    plt.close(figure)
