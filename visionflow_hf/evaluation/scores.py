"""Computes the blocks of metrics.json from the arrays of `predictions.npz`, with intervals and tests over stimuli.

Every figure is a function of row weights. For the figure itself each row has weight 1; in a bootstrap draw the weight
is how often the row's stimulus was drawn with replacement. A stimulus is drawn for all subjects that saw it at once.

    decoding    pixcorr, ssim, mse; two_way, top1 and top5, where each reconstruction ranks the stimuli
    encoding    voxel_r_mean, voxel_r_median, r2_median, ceiling_normalised: over stimuli, then over voxels
                pattern_r: over voxels standardised by train, then over stimuli
                noise_ceiling also has share_measurable: the share of voxels that ceiling_normalised is the mean of
    identification  by likelihood, latent and reconstruction: how each response ranks the images of its fold; two_way,
                top1, top5 and n_candidates
    embedding   of a pretrained encoder, by the model and by ridge: cosine with the image's own, both without the mean
                over the fold's images; two_way, and retrieval as of the latent
    latent      cosine of the posterior means of image and response
                retrieval_image_top*: the latent of a response ranks those of the images; retrieval_fmri_top*: reverse
"""

from collections.abc import Iterator

import numpy as np
import torch
from scipy.stats import rankdata
from scipy.stats import t as student_t

from visionflow_hf import metrics
from visionflow_hf.corpus.repeats import ceiling_of_average, ncsnr_of_ceiling
from visionflow_hf.evaluation.perceptual import DISTANCE, IDENTIFICATION, perceptual_figures
from visionflow_hf.evaluation.predictions import OF_VOXELS, methods, owner
from visionflow_hf.evaluation.rows import Rows, of_rows

DRAWS = 1000
LEVEL = 0.95
PERMUTATIONS = 1999
AT_ONCE = 4_000_000  # numbers of the images that are compared at once
AMONG = 300  # the field's number of candidates for retrieval


def score(
    predictions: dict[str, np.ndarray | Rows],
    draws: int = DRAWS,
    seed: int = 0,
    perceptual: torch.device | None = None,
) -> dict:
    """The blocks `decoding`, `encoding`, `latent`, `single_trial`, `intervals`, `p_values`, `subjects` of metrics.json.

    The first three are means over subjects and count each stimulus once. Figures that are undefined (one stimulus, no
    known ceiling) are None in a subject; means are over the subjects that have a figure.

    Args:
        predictions: the arrays named in `visionflow_hf.evaluation.predictions`.
        draws: number of bootstrap draws for the 95 % intervals.
        perceptual: where the networks of `visionflow_hf.evaluation.perceptual` run, whose figures are added to those of
            the decoding; None to leave them out.
    """
    stimuli, position = np.unique(predictions["stimulus_id"], return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(stimuli), np.full(len(stimuli), 1 / len(stimuli)), size=draws)
    weights = np.concatenate([np.ones((1, len(stimuli))), drawn])[:, position]  # (1 + draws, rows)
    subjects, single_trial, rois, identified = {}, {}, {}, {}
    for subject in dict.fromkeys(predictions["subject"].tolist()):
        rows = predictions["subject"] == subject
        average, trials = _of_subject(predictions, subject)
        subjects[subject], rois[subject], identified[subject] = _blocks(average, weights[:, rows])
        if trials:
            single_trial[subject], _, _ = _blocks(trials, np.ones((1, len(trials["stimulus_id"]))))
    for subject, decoders in () if perceptual is None else perceptual_figures(predictions, weights, perceptual).items():
        for decoder, figures in decoders.items():
            subjects[subject]["decoding"][decoder] |= figures
    mean = _mean(list(subjects.values()))
    counts = {subject: int((predictions["subject"] == subject).sum()) for subject in subjects}
    return {
        **_figures(mean),
        "single_trial": _figures(_mean(list(single_trial.values()))) if single_trial else None,
        "intervals": _intervals_of_mean(list(subjects.values()), list(counts.values()), len(stimuli)),
        "p_values": _p_values(list(identified.values()), rng),
        "subjects": {
            subject: {
                **_figures(block),
                **({"single_trial": _figures(single_trial[subject])} if subject in single_trial else {}),
                "intervals": _intervals(block, counts[subject]),
                "rois": {
                    roi: _figures(part)
                    | {"n_voxels": int(part["n_voxels"][0]), "intervals": _intervals(part, counts[subject])}
                    for roi, part in rois[subject].items()
                },
            }
            for subject, block in subjects.items()
        },
    }


def _of_subject(predictions: dict[str, np.ndarray | Rows], subject: str) -> tuple[dict, dict | None]:
    """The subject's arrays under names without the subject: of averages, and of single trials or None."""
    rows = np.flatnonzero(predictions["subject"] == subject)
    trial_row = predictions.get("single_trial/row", np.zeros(0, dtype=int))
    of_subject = np.flatnonzero(np.isin(trial_row, rows))
    place = np.searchsorted(rows, trial_row[of_subject])
    average, trials, of_voxels = {}, {}, {}
    for name, values in predictions.items():
        kind, whose = owner(name)
        into = trials if name.startswith("single_trial/") else of_voxels if kind in OF_VOXELS else average
        short = kind.removeprefix("single_trial/")
        if whose is None and short != "row":
            asked = of_subject if into is trials else rows
            into[short] = values if len(asked) == len(values) else of_rows(values, asked)  # no copy of all of them
        elif whose == subject:
            into[short] = np.asarray(values)
    if not len(place):
        return average | of_voxels, None
    of_trial = ("stimulus_id", "fold", "latent/image")
    same = [name for name in average if name.endswith("reconstruction") and name not in trials]  # the mean image
    trials |= {name: of_rows(average[name], place) for name in (*of_trial, *same) if name in average}
    trials |= {"trials": np.ones(len(place)), "row": place}
    return average | of_voxels, average | of_voxels | trials


def _blocks(arrays: dict[str, np.ndarray], weights: np.ndarray) -> tuple[dict, dict, tuple]:
    """The three blocks of one subject and those of its ROIs, each figure an array of shape (draws,).

    The third result is for `_p_values`: the stimulus of each row, and by method the share of the other stimuli that
    each reconstruction (column) ranks below each (row); of averages only.
    """
    stimulus = arrays["stimulus_id"]
    fold = arrays.get("fold", np.zeros(len(stimulus)))
    first = np.isin(np.arange(len(stimulus)), np.unique(stimulus, return_index=True)[1])
    other = stimulus[:, None] != stimulus[None, :]
    candidate = other & first[:, None]  # each image once, of how many trials it may be
    decoding, identified = {}, {}
    row = arrays.get("row", np.arange(len(stimulus)))  # the stimulus of each single trial
    for name, array in methods(arrays, "reconstruction").items():
        if name == "round_trip":
            continue
        reconstructions = arrays[array]
        correlation = metrics.cross_correlation(arrays["image"], reconstructions)[row]
        decoding[name] = _by_image(arrays["image"], reconstructions, row, weights)
        decoding[name] |= _identification(correlation, candidate, weights)
        if "row" not in arrays:
            identified[name] = ranked_below(correlation)
        if name == "model":
            by_reconstruction = correlation
    ceiling = ceiling_of_average(ncsnr_of_ceiling(arrays["noise_ceiling"]), arrays["trials"])
    ceiling[metrics.is_constant(arrays["fmri"])] = np.nan  # no figure counts these voxels
    regions = {roi: voxels for roi, voxels in _regions(arrays.get("roi")) if voxels.any()}
    encoding, rois = {}, {roi: {} for roi in regions}
    for name, array in methods(arrays, "fmri_predicted").items():
        predicted = arrays[array][row]
        encoding[name], by_region = _encoding(arrays, predicted, ceiling, regions, weights)
        for roi, figures in by_region.items():
            rois[roi][name] = figures
    encoding["noise_ceiling"] = _reachable(ceiling)
    for roi, voxels in regions.items():
        rois[roi]["n_voxels"] = np.array([voxels.sum()])
        rois[roi]["noise_ceiling"] = _reachable(ceiling[voxels])
    # Each fold of a cross-validation has its own latent space: latents can be compared within a fold only.
    of_fold = fold[:, None] == fold[None, :]
    candidate, comparable = candidate & of_fold, other & of_fold
    similarity = metrics.cosine_similarity(arrays["latent/image"], arrays["latent/fmri"])
    blocks = {
        "decoding": decoding,
        "encoding": encoding,
        "latent": _retrieval(similarity, candidate, comparable, weights),
    }
    if "row" not in arrays and "embedding/image" in arrays:
        blocks["embedding"] = {}
        for name, made in (("model", "embedding/fmri"), ("ridge", "ridge/embedding/fmri")):
            pairs = [_about_the_mean(arrays[one], arrays["embedding/image"], fold) for one in ("embedding/image", made)]
            alike = metrics.cosine_similarity(*pairs)
            blocks["embedding"][name] = _retrieval(alike, candidate, comparable, weights)
            blocks["embedding"][name]["two_way"] = metrics.two_way(alike, comparable, weights)
    if "log_likelihood" in arrays:
        rankings = {
            "likelihood": likelihood_of_images(arrays["log_likelihood"], fold, row),
            "latent": similarity,
            "reconstruction": by_reconstruction,
        }
        blocks["identification"] = {
            name: _identification(ranking, candidate, weights)
            | {f"top1_of_{AMONG}": metrics.top1_of(AMONG, ranking, candidate, weights)}
            | {"n_candidates": np.array([1 + candidate.sum(0).mean()])}
            for name, ranking in rankings.items()
        }
    return blocks, rois, (stimulus, identified)


def ranked_below(correlation: np.ndarray) -> np.ndarray:
    """The share of the other images (rows) that each reconstruction (column) ranks below each, float32 `(n, n)`."""
    return ((rankdata(correlation, "min", axis=0) - 1) / max(1, len(correlation) - 1)).astype(np.float32)


def _retrieval(similarity: np.ndarray, candidate: np.ndarray, comparable: np.ndarray, weights: np.ndarray) -> dict:
    """How alike each image (row) is to the response of the same row (column), and how well one names the other.

    Args:
        candidate: which images a response is compared with, each distinct image once.
        comparable: which responses an image is compared with.
    """
    found = {"cosine": weights @ np.diag(similarity) / weights.sum(1)}
    for ranked, ranking, others in (("image", similarity, candidate), ("fmri", similarity.T, comparable.T)):
        for k in (1, 5):
            found[f"retrieval_{ranked}_top{k}"] = metrics.top_k(ranking, k, others, weights)
        found[f"retrieval_{ranked}_top1_of_{AMONG}"] = metrics.top1_of(AMONG, ranking, others, weights)
    return found


def _about_the_mean(values: np.ndarray, images: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """`values` without the mean of the images of the same fold, which all embeddings have in common."""
    centred = np.empty_like(values)
    for one in np.unique(fold):
        rows = fold == one
        centred[rows] = values[rows] - images[rows].mean(0)
    return centred


def likelihood_of_images(log_likelihood: np.ndarray, fold: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The likelihoods `(responses, distinct images of the fold)` as `(images, responses)`, an image for each response,
    NaN for those of other folds.

    Args:
        row: of each response the place of its image among the averages.
    """
    table = np.full((len(fold), len(fold)), np.nan)
    for one in np.unique(fold):
        rows = np.flatnonzero(fold == one)
        _, column = np.unique(row[rows], return_inverse=True)
        table[np.ix_(rows, rows)] = log_likelihood[rows][:, column].T
    return table


def _by_image(
    images: np.ndarray | Rows, reconstructions: np.ndarray | Rows, row: np.ndarray, weights: np.ndarray
) -> dict:
    """The figures that compare each reconstruction with the image at its `row`, pixels on a 0..1 scale."""
    values: dict[str, list[np.ndarray]] = {"pixcorr": [], "ssim": [], "mse": []}
    step = max(1, AT_ONCE * len(images) // images.size)
    for start in range(0, len(row), step):
        some = slice(start, start + step)
        both = images[row[some]] / 255.0, reconstructions[some] / 255.0
        values["pixcorr"].append(metrics.pixel_correlation(*both))
        values["ssim"].append(metrics.ssim(*both))
        values["mse"].append(metrics.mean_squared_error(*both))
    return {name: weights @ np.concatenate(parts) / weights.sum(1) for name, parts in values.items()}


def _identification(correlation: np.ndarray, other: np.ndarray, weights: np.ndarray) -> dict:
    top = {f"top{k}": metrics.top_k(correlation, k, other, weights) for k in (1, 5)}
    return {"two_way": metrics.two_way(correlation, other, weights)} | top


def _encoding(
    arrays: dict[str, np.ndarray],
    predicted: np.ndarray,
    ceiling: np.ndarray,
    regions: dict[str, np.ndarray],
    weights: np.ndarray,
) -> tuple[dict, dict[str, dict]]:
    """The figures over all voxels, and over those of each region."""
    measured = arrays["fmri"]
    of_train = arrays.get("fmri_mean", 0.0), arrays.get("fmri_std", 1.0)  # folds are in these units already
    pattern_r = metrics.pattern_correlation(measured, predicted, *of_train)
    parts = []
    for some in np.array_split(weights, max(1, len(weights) * measured.shape[1] // 4_000_000)):  # bounds the memory
        r, r2 = metrics.voxel_correlation_and_r2(measured, predicted, some)
        parts.append(_over_voxels(r, r2, ceiling))
        for roi, voxels in regions.items():
            parts[-1][roi] = _over_voxels(r[:, voxels], r2[:, voxels], ceiling[voxels])
    names = ("voxel_r_mean", "voxel_r_median", "r2_median", "ceiling_normalised")
    figures = {name: np.concatenate([part[name] for part in parts]) for name in names}
    figures["pattern_r"] = weights @ pattern_r / weights.sum(1)
    by_region = {roi: {name: np.concatenate([part[roi][name] for part in parts]) for name in names} for roi in regions}
    return figures, by_region


def _over_voxels(r: np.ndarray, r2: np.ndarray, ceiling: np.ndarray) -> dict:
    return {
        "voxel_r_mean": metrics.nan_reduce(np.mean, r),
        "voxel_r_median": metrics.nan_reduce(np.median, r),
        "r2_median": metrics.nan_reduce(np.median, r2),
        "ceiling_normalised": metrics.ceiling_normalised(r, ceiling),
    }


def _reachable(ceiling: np.ndarray) -> dict[str, np.ndarray]:
    """Figures of a perfect model, r = sqrt(ceiling) and R2 = ceiling; the share of ceilings that are measurable."""
    r, known = np.sqrt(ceiling)[None], ceiling[np.isfinite(ceiling)]
    return {
        "voxel_r_mean": metrics.nan_reduce(np.mean, r),
        "voxel_r_median": metrics.nan_reduce(np.median, r),
        "r2_median": metrics.nan_reduce(np.median, r**2),
        "share_measurable": np.array([np.mean(known >= metrics.LEAST_CEILING) if len(known) else np.nan]),
    }


def _regions(roi: np.ndarray | None) -> Iterator[tuple[str, np.ndarray]]:
    """Each ROI and its voxels, a bool array; `roi` holds the names of each voxel's, joined by commas."""
    names = [] if roi is None else [voxel.split(",") if voxel else [] for voxel in roi.tolist()]
    for region in sorted({name for voxel in names for name in voxel}):
        yield region, np.array([region in voxel for voxel in names])


def _p_values(identified: list[tuple[np.ndarray, dict[str, np.ndarray]]], rng: np.random.Generator) -> dict[str, float]:
    """p = (1 + number of permutations that identify as well) / (1 + number of permutations), by dotted figure name.

    A permutation assigns the stimuli to the reconstructions at random, in the same way for all subjects. Stimuli are
    permuted, since the n (n - 1) pairs of an identification are not independent.

    Source: Phipson & Smyth 2010 (why one is added).
    """
    stimuli = np.unique(np.concatenate([names for names, _ in identified]))
    if len(stimuli) < 2:
        return {}
    places = [np.searchsorted(stimuli, names) for names, _ in identified]
    found: dict[str, list[float]] = {}
    for deal in range(1 + PERMUTATIONS):
        order = rng.permutation(len(stimuli)) if deal else np.arange(len(stimuli))
        drawn: dict[str, list[float]] = {}
        for (_, below), place in zip(identified, places, strict=True):
            own = np.empty(len(place), dtype=int)  # the row of the stimulus that each reconstruction is dealt
            own[np.argsort(place)] = np.argsort(order[place])
            for name, shares in below.items():
                share = shares[own, np.arange(len(own))].astype(np.float64)
                drawn.setdefault(f"decoding.{name}.two_way", []).append(share.mean())
                drawn.setdefault(f"decoding.{name}.top1", []).append((share == 1).mean())
        for name, values in drawn.items():
            found.setdefault(name, []).append(float(np.mean(values)))
    dealt = {name: np.array(values) for name, values in found.items()}
    return {name: float((1 + (values[1:] >= values[0] - 1e-12).sum()) / len(values)) for name, values in dealt.items()}


def _mean(blocks: list[dict]) -> dict:
    """Mean of nested figures, each over the subjects in whom it is defined."""
    return {
        name: _mean([block[name] for block in blocks])
        if isinstance(value, dict)
        else np.mean([block[name] for block in blocks if np.isfinite(block[name][0])] or [value], axis=0)
        for name, value in blocks[0].items()
    }


def _figures(block: dict) -> dict:
    """The figures themselves: the first draw."""
    return {
        name: _figures(values) if isinstance(values, dict) else float(values[0]) if np.isfinite(values[0]) else None
        for name, values in block.items()
    }


def _intervals(block: dict, stimuli: int) -> dict[str, list[float]]:
    """The interval of every figure that has one, by its dotted name."""
    found = {name: interval(name.rpartition(".")[2], values, stimuli) for name, values in _flat(block).items()}
    return {name: both for name, both in found.items() if both is not None}


def _intervals_of_mean(blocks: list[dict], counts: list[int], stimuli: int) -> dict[str, list[float]]:
    """The interval of the mean over subjects of every figure that has one, by its dotted name.

    Args:
        blocks, counts: the figures of each subject, and how many stimuli the subject has.
        stimuli: how many distinct stimuli all of them have.
    """
    flat, found = [_flat(block) for block in blocks], {}
    for name in flat[0]:
        own = [(one[name], n) for one, n in zip(flat, counts, strict=True) if name in one and np.isfinite(one[name][0])]
        if own and min(n for _, n in own) > 1:
            both = interval(name.rpartition(".")[2], *_mean_of_subjects(own, stimuli))
            found |= {} if both is None else {name: both}
    return found


def _mean_of_subjects(figures: list[tuple[np.ndarray, int]], stimuli: int) -> tuple[np.ndarray, float]:
    """A figure and its draws, averaged over subjects, as `interval` takes them; and the number of stimuli that counts.

        n - 1 = (sum of e_s)^2 / sum of e_s^2 / (n_s - 1)        e_s = variance of a subject's draws n_s / (n_s - 1)

    That is n - 1 of all stimuli at most, which it is where all subjects have the same ones. A subject with few stimuli
    of its own has draws that vary too little, the more the fewer these are.

    Source: Satterthwaite 1946, An approximate distribution of estimates of variance components.
    """
    draws = [values[1:][np.isfinite(values[1:])] for values, _ in figures]
    spread = np.array(
        [one.var() * n / (n - 1) if len(one) else 0.0 for one, (_, n) in zip(draws, figures, strict=True)]
    )
    free = stimuli - 1.0
    if spread.any():
        free = min(free, spread.sum() ** 2 / sum(one**2 / (n - 1) for one, (_, n) in zip(spread, figures, strict=True)))
    all_draws = [values[0] + (values - values[0]) * np.sqrt(n / (n - 1) * free / (free + 1)) for values, n in figures]
    return np.mean(all_draws, axis=0), free + 1


def interval(figure: str, values: np.ndarray, stimuli: float) -> list[float] | None:
    """The 95 % interval of a figure over stimuli; None if it has none (one stimulus, or a constant).

        figure +- t se      se = standard deviation of the draws sqrt(n / (n - 1)); t with n - 1 degrees of freedom

    Shares (two_way, top1, ...) get Wilson's interval of n' = share (1 - share) / se^2 independent trials, and of n if
    all stimuli agree: near 1 a share is skewed, and a bootstrap in which no stimulus fails has no spread. Percentiles
    of the draws are not used: stimuli that are drawn twice shift some figures, so that the interval could exclude the
    figure. The draws of ceiling_normalised vary too little, since it is cut off at 0 and 1; its interval covers the
    same distance around their mean, too. The coverage of each kind is tested in tests/test_intervals.py.

    Sources: Wilson 1927; Kish 1965 for n' (effective sample size); Efron & Tibshirani 1993, chapter 12.

    Args:
        figure: its name in metrics.json.
        values: the figure, then its bootstrap draws; array of shape (1 + draws,).
        stimuli: n, the number of stimuli that were drawn from.
    """
    found, drawn = float(values[0]), values[1:][np.isfinite(values[1:])]
    if stimuli < 2 or not len(drawn) or not np.isfinite(found):
        return None
    error = np.std(drawn) * np.sqrt(stimuli / (stimuli - 1))
    quantile = student_t.ppf(1 - (1 - LEVEL) / 2, stimuli - 1)
    if figure not in ("two_way", *IDENTIFICATION) and "top" not in figure:
        centres = [found, drawn.mean()] if figure == "ceiling_normalised" else [found]
        low, high = min(centres) - quantile * error, max(centres) + quantile * error
        distance = figure in ("mse", *DISTANCE)
        return [float(max(low, 0.0) if distance else low), float(high if distance else min(high, 1.0))]
    share = found
    trials = share * (1 - share) / error**2 if error > 0 and 0 < share < 1 else stimuli
    scale = quantile**2 / trials
    half = np.sqrt(scale * share * (1 - share) + scale**2 / 4)
    return [float((share + scale / 2 - half) / (1 + scale)), float((share + scale / 2 + half) / (1 + scale))]


def _flat(block: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in block.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
