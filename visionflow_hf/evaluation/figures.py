"""The figures of metrics.json as rows of a table: model, interval, p-value, baselines and noise ceiling."""

from dataclasses import dataclass

from visionflow_hf.metrics import LEAST_CEILING

DIRECTIONS = {
    "decoding": "decoding (fMRI to image)",
    "encoding": "encoding (image to fMRI)",
    "identification": "identification (which image was it)",
    "embedding": "embedding (fMRI to the encoder's embedding)",
    "latent": "latent",
}
CEILING = "noise_ceiling"
MEANING = {
    "pixcorr": "Pearson r between image and reconstruction over pixels, mean over stimuli",
    "ssim": "structural similarity of the grey images, mean over stimuli",
    "mse": "mean squared error of a pixel on a scale of 0 to 1; lower is better",
    "two_way": "how often a reconstruction is more similar to its own stimulus than to another one; chance is .5",
    "top1": "how often a reconstruction is most similar to its own stimulus",
    "top5": "how often its own stimulus is among the five most similar ones",
    "voxel_r_mean": "Pearson r between measured and predicted fMRI over stimuli, mean over voxels",
    "voxel_r_median": "Pearson r between measured and predicted fMRI over stimuli, median over voxels",
    "r2_median": "explained variance R² of a voxel, median over voxels",
    "ceiling_normalised": f"r² divided by the noise ceiling, mean over voxels of a ceiling of at least {LEAST_CEILING}",
    "pattern_r": "Pearson r between measured and predicted fMRI over voxels, mean over stimuli",
    "cosine": "cosine of what is compared, for an image and the response to it",
    "retrieval_image_top1": "how often a response's own image is the nearest",
    "retrieval_fmri_top1": "how often an image's own response is the nearest",
    "retrieval_image_top1_of_300": "the same among 300 images, mean over draws of them",
    "retrieval_fmri_top1_of_300": "the same among 300 responses, mean over draws of them",
    "retrieval_image_top5": "how often a response's own image is among the five nearest",
    **{
        f"{way} {name}": f"{meaning}, ranked by {words}"
        for way, words in {
            "likelihood": "the likelihood of the response",
            "latent": "the cosine of the latents",
            "reconstruction": "the correlation with the reconstruction",
        }.items()
        for name, meaning in {
            "top1": "how often a response's own image is first",
            "top5": "how often a response's own image is among the first five",
            "two_way": "how often its own image is before another one; chance is .5",
            "top1_of_300": "how often its own image is first among 300, mean over draws of them",
        }.items()
    },
    "retrieval_fmri_top5": "how often an image's own response is among the five nearest",
}


WORDS = {
    "nearest": "nearest neighbour",
    "pixcorr": "pixel correlation",
    "ssim": "structural similarity",
    "mse": "mean squared error",
    "two_way": "two-way identification",
    "top1": "own stimulus first",
    "top5": "own stimulus among five",
    "top1_of_300": "own stimulus first among 300",
    "n_candidates": "number of stimuli that are ranked",
    "voxel_r_mean": "voxel correlation, mean",
    "voxel_r_median": "voxel correlation, median",
    "r2_median": "explained variance R², median",
    "ceiling_normalised": "share of the noise ceiling",
    "pattern_r": "pattern correlation",
    "cosine": "cosine of the latents",
    **{
        f"retrieval_{what}_{place}": f"retrieval of the {word}: {first}"
        for what, word in {"image": "image", "fmri": "response"}.items()
        for place, first in {"top1": "first", "top5": "among five", "top1_of_300": "first among 300"}.items()
    },
}


@dataclass
class Row:
    """One figure and its value for each method.

    Attributes:
        values: by method, `model` first; None if the figure is undefined.
        interval: the 95 % interval of the model's value, if there is one.
        p: the p-value of the model's value, if there is one.
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
    """The figures of the blocks in `DIRECTIONS` that at least one method has."""
    rows = []
    for direction in DIRECTIONS:
        block = metrics.get(direction) or {}
        if direction == "identification":  # one line for each way and figure
            block = {f"{way} {name}": value for way, part in block.items() for name, value in part.items()}
        of_model_alone = direction in ("latent", "identification")
        methods = {"model": block} if of_model_alone else {name: part or {} for name, part in block.items()}
        for name, value in methods.get("model", {}).items():
            values = {method: part.get(name) for method, part in methods.items()}
            if isinstance(value, dict) or set(values.values()) == {None}:
                continue
            dotted = f"{direction}.model.{name}"
            if of_model_alone:
                dotted = f"{direction}.{name.replace(' ', '.')}"
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
    """The methods that have a figure: the model, the baselines (the mean image last) and the noise ceiling."""
    known = dict.fromkeys(method for row in rows for method, value in row.values.items() if value is not None)
    last = [method for method in ("mean_image", CEILING) if method in known]
    return ["model", *(method for method in known if method not in ("model", *last)), *last]


def in_words(name: str) -> str:
    """The name of a method or figure as text; of an identification with the way in which images are ranked."""
    way, _, figure = name.rpartition(" ")
    words = WORDS.get(figure, figure.replace("_", " "))
    return f"{words}, by {way}" if way else words


def figure(value: float | None) -> str:
    if value is not None and value > 1 and value == int(value):  # a count
        return str(int(value))
    return "-" if value is None else f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3f}"


def interval(low_high: list[float] | None) -> str:
    return " to ".join(map(figure, low_high)) if low_high else "-"


def p_value(value: float | None) -> str:
    return "-" if value is None else "< .001" if value < 0.001 else f"{value:.3f}"
