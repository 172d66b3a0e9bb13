"""From the arrays of `predictions.npz` to the blocks of metrics.json, with bootstrap intervals over stimuli.

Every figure is a function of row weights: for the figure itself each row counts once, for a bootstrap draw as often as
its stimulus was drawn with replacement. A stimulus is drawn together with all subjects that saw it.
"""

import numpy as np

from visionflow_hf.corpus.repeats import ceiling_of_average, ncsnr_of_ceiling
from visionflow_hf.evaluation import metrics
from visionflow_hf.evaluation.perceptual import perceptual_figures

DECODERS = {"model": "", "ridge": "ridge/", "mean_image": "mean_image/"}
ENCODERS = {"model": "", "ridge": "ridge/"}
DRAWS = 1000
INTERVAL = (2.5, 97.5)  # percent


def score(predictions: dict[str, np.ndarray], draws: int = DRAWS, seed: int = 0, perceptual: bool = False) -> dict:
    """The blocks `decoding`, `encoding`, `latent`, `single_trial`, `intervals` and `subjects` of metrics.json.

    The first three are means over subjects and score each stimulus once; figures without meaning (one stimulus, no
    known ceiling) are None.

    Args:
        predictions: the arrays named in `visionflow_hf.evaluation.predictions`.
        draws: bootstrap draws behind the 95 % intervals.
        perceptual: add the figures of `visionflow_hf.evaluation.perceptual` to those of the decoding.
    """
    stimuli, position = np.unique(predictions["stimulus_id"], return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(stimuli), np.full(len(stimuli), 1 / len(stimuli)), size=draws)
    weights = np.concatenate([np.ones((1, len(stimuli))), drawn])[:, position]  # (1 + draws, rows)
    blocks, single_trial = {}, {}
    for subject in dict.fromkeys(predictions["subject"].tolist()):
        rows = predictions["subject"] == subject
        average, trials = _of_subject(predictions, subject)
        blocks[subject] = _blocks(average, weights[:, rows])
        if trials:
            single_trial[subject] = _blocks(trials, np.ones((1, len(trials["stimulus_id"]))))
    for subject, decoders in perceptual_figures(predictions, weights).items() if perceptual else ():
        for decoder, figures in decoders.items():
            blocks[subject]["decoding"][decoder] |= figures
    mean = _mean(list(blocks.values()))
    main = _pick(mean, lambda values: _finite(values[0]))
    main["single_trial"] = None
    if single_trial:
        main["single_trial"] = _pick(_mean(list(single_trial.values())), lambda values: _finite(values[0]))
    intervals = _flat(_pick(mean, lambda values: _interval(values[1:])))
    main["intervals"] = {name: interval for name, interval in intervals.items() if interval is not None}
    main["subjects"] = {}
    for subject, block in blocks.items():
        main["subjects"][subject] = _pick(block, lambda values: _finite(values[0]))
        if subject in single_trial:
            main["subjects"][subject]["single_trial"] = _pick(single_trial[subject], lambda values: _finite(values[0]))
    return main


def _of_subject(predictions: dict[str, np.ndarray], subject: str) -> tuple[dict, dict | None]:
    """The subject's arrays under names without the subject: of averages, and of single trials where there are any."""
    rows = np.flatnonzero(predictions["subject"] == subject)
    by_row = ("stimulus_id", "trials", "fold", "image", "latent/image", "mean_image/reconstruction")
    average = {name: predictions[name][rows] for name in by_row if name in predictions}
    for name in ("fmri_predicted", "ridge/fmri_predicted", "noise_ceiling"):
        average[name] = predictions[f"{name}/{subject}"]
    by_trial = ("reconstruction", "ridge/reconstruction", "latent/fmri")
    trial_row = predictions.get("single_trial/row", np.zeros(0, dtype=int))
    of_subject = np.isin(trial_row, rows)
    trials = None
    if of_subject.any():
        place = np.searchsorted(rows, trial_row[of_subject])
        trials = {name: values if name == "noise_ceiling" else values[place] for name, values in average.items()}
        trials["trials"] = np.ones(len(place))
        trials |= {name: predictions[f"single_trial/{name}"][of_subject] for name in by_trial}
        trials["fmri"] = predictions[f"single_trial/fmri/{subject}"]
    average |= {name: predictions[name][rows] for name in by_trial}
    average["fmri"] = predictions[f"fmri/{subject}"]
    return average, trials


def _blocks(arrays: dict[str, np.ndarray], weights: np.ndarray) -> dict:
    """The three blocks of one subject, each figure an array of shape (draws,)."""
    stimulus = arrays["stimulus_id"]
    fold = arrays.get("fold", np.zeros(len(stimulus)))
    other = stimulus[:, None] != stimulus[None, :]
    images = arrays["image"] / 255.0
    decoding = {
        name: _decoding(images, arrays[f"{prefix}reconstruction"] / 255.0, other, weights)
        for name, prefix in DECODERS.items()
    }
    ceiling = ceiling_of_average(ncsnr_of_ceiling(arrays["noise_ceiling"]), arrays["trials"])
    encoding = {
        name: _encoding(arrays["fmri"], arrays[f"{prefix}fmri_predicted"], ceiling, weights)
        for name, prefix in ENCODERS.items()
    }
    # Each fold of a cross-validation has a latent space of its own: only within it can latents be compared.
    comparable = other & (fold[:, None] == fold[None, :])
    similarity = metrics.cosine_similarity(arrays["latent/image"], arrays["latent/fmri"])
    latent = {
        "cosine": weights @ np.diag(similarity) / weights.sum(1),
        "retrieval_image_top1": metrics.top1(similarity, comparable, weights),
        "retrieval_fmri_top1": metrics.top1(similarity.T, comparable, weights),
    }
    return {"decoding": decoding, "encoding": encoding, "latent": latent}


def _decoding(images: np.ndarray, reconstructions: np.ndarray, other: np.ndarray, weights: np.ndarray) -> dict:
    correlation = metrics.cross_correlation(images, reconstructions)
    by_image = {
        "pixcorr": np.diag(correlation),
        "ssim": metrics.ssim(images, reconstructions),
        "mse": metrics.mean_squared_error(images, reconstructions),
    }
    figures = {name: weights @ values / weights.sum(1) for name, values in by_image.items()}
    figures["two_way"] = metrics.two_way(correlation, other, weights)
    figures["top1"] = metrics.top1(correlation, other, weights)
    return figures


def _encoding(measured: np.ndarray, predicted: np.ndarray, ceiling: np.ndarray, weights: np.ndarray) -> dict:
    figures: dict[str, list[np.ndarray]] = {}
    for some in np.array_split(weights, max(1, len(weights) * measured.shape[1] // 10_000_000)):  # bounds the memory
        r = metrics.voxel_correlation(measured, predicted, some)
        for name, values in (
            ("voxel_r_mean", metrics.nan_reduce(np.mean, r)),
            ("voxel_r_median", metrics.nan_reduce(np.median, r)),
            ("r2_median", metrics.nan_reduce(np.median, metrics.voxel_r2(measured, predicted, some))),
            ("ceiling_normalised", metrics.ceiling_normalised(r, ceiling)),
        ):
            figures.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in figures.items()}


def _mean(blocks: list[dict]) -> dict:
    """Mean over subjects of nested figures."""
    return {
        name: _mean([block[name] for block in blocks])
        if isinstance(value, dict)
        else np.mean([block[name] for block in blocks], axis=0)
        for name, value in blocks[0].items()
    }


def _pick(block: dict, choose) -> dict:
    """`choose` applied to every figure of nested blocks."""
    return {name: _pick(value, choose) if isinstance(value, dict) else choose(value) for name, value in block.items()}


def _flat(block: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in block.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _interval(draws: np.ndarray) -> list[float] | None:
    kept = draws[np.isfinite(draws)]
    return np.percentile(kept, INTERVAL).tolist() if len(kept) else None
