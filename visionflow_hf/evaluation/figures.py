"""The figures of metrics.json as rows of a table: the model, its interval and p-value, every baseline, the ceiling."""

from dataclasses import dataclass

DIRECTIONS = {
    "decoding": "decoding (fMRI to image)",
    "encoding": "encoding (image to fMRI)",
    "latent": "latent",
}
CEILING = "noise_ceiling"
MEANING = {
    "pixcorr": "Pearson r over the pixels of an image",
    "ssim": "structural similarity of the grey images",
    "mse": "squared error of a pixel, 0 to 1; lower is better",
    "two_way": "how often a reconstruction is more like its own stimulus than like another; chance .5",
    "top1": "how often its own stimulus is the one that it is most like",
    "top5": "how often its own stimulus is among the five that it is most like",
    "voxel_r_mean": "Pearson r over stimuli, mean of the voxels",
    "voxel_r_median": "Pearson r over stimuli, median of the voxels",
    "r2_median": "share of a voxel's variance predicted, median of the voxels",
    "ceiling_normalised": "r² as a share of what the noise leaves to predict",
    "pattern_r": "Pearson r over voxels, mean of the stimuli",
    "cosine": "of the latents of an image and of the response to it",
    "retrieval_image_top1": "how often the latent of a response is nearest to that of its own image",
    "retrieval_fmri_top1": "how often the latent of an image is nearest to that of its own response",
    "retrieval_image_top1_of_300": "top1 among 300 images, mean over draws",
    "retrieval_fmri_top1_of_300": "top1 among 300 responses, mean over draws",
    "retrieval_image_top5": "how often its own image is among the five nearest to the latent of a response",
    "retrieval_fmri_top5": "how often its own response is among the five nearest to the latent of an image",
}


@dataclass
class Row:
    """One figure: what each method reaches.

    Attributes:
        values: by method; `model` first, None where the figure has no meaning.
        interval: the 95 % interval of the model's, where there is one.
        p: the p-value of the model's, where there is one.
    """

    direction: str
    name: str
    values: dict[str, float | None]
    interval: list[float] | None
    p: float | None

    @property
    def meaning(self) -> str:
        return MEANING.get(self.name, "")


def rows_of(metrics: dict) -> list[Row]:
    """Every figure of the blocks `decoding`, `encoding` and `latent` that any method has, in their order."""
    rows = []
    for direction in DIRECTIONS:
        block = metrics.get(direction) or {}
        methods = {"model": block} if direction == "latent" else {name: part or {} for name, part in block.items()}
        for name, value in methods.get("model", {}).items():
            values = {method: part.get(name) for method, part in methods.items()}
            if isinstance(value, dict) or set(values.values()) == {None}:
                continue
            dotted = f"latent.{name}" if direction == "latent" else f"{direction}.model.{name}"
            rows.append(
                Row(
                    direction,
                    name,
                    values,
                    metrics.get("intervals", {}).get(dotted),
                    metrics.get("p_values", {}).get(dotted),
                )
            )
    return rows


def columns_of(rows: list[Row]) -> list[str]:
    """The columns that hold a figure: the model, the baselines, of them the mean image last, and the noise ceiling."""
    known = dict.fromkeys(method for row in rows for method, value in row.values.items() if value is not None)
    last = [method for method in ("mean_image", CEILING) if method in known]
    return ["model", *(method for method in known if method not in ("model", *last)), *last]


def in_words(name: str) -> str:
    """`mean_image` as a reader says it."""
    return {"nearest": "nearest neighbour"}.get(name, name.replace("_", " "))


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3f}"


def interval(low_high: list[float] | None) -> str:
    return " to ".join(map(figure, low_high)) if low_high else "-"


def p_value(value: float | None) -> str:
    return "-" if value is None else "< .001" if value < 0.001 else f"{value:.3f}"
