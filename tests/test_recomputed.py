"""Every figure of metrics.json once more from predictions.npz, with numpy and scipy alone.

None of our code is imported here, nor any library of metrics: whoever doubts a figure can read how it comes about.
"""

import json
from math import comb

import numpy as np
import pytest
from scipy.ndimage import correlate1d
from scipy.stats import pearsonr


@pytest.fixture(scope="module", params=["report", "colour_report", "folds_report"])
def found(request):
    folder = request.getfixturevalue(request.param)
    with np.load(folder / "predictions.npz") as arrays:
        return json.loads((folder / "metrics.json").read_text()), dict(arrays)


def grey(images):
    return images @ np.array([0.2125, 0.7154, 0.0721]) if images.ndim == 4 else images


def ssim(image, other):
    """Wang et al. 2004 with a Gaussian window of sigma 1.5 px cut at 3.5 sigma."""
    x = np.arange(-5, 6)
    window = np.exp(-(x**2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(values):
        return correlate1d(correlate1d(values, window, 0, mode="reflect"), window, 1, mode="reflect")

    mean, other_mean = blur(image), blur(other)
    variance, other_variance = blur(image**2) - mean**2, blur(other**2) - other_mean**2
    covariance = blur(image * other) - mean * other_mean
    one, two = 0.01**2, 0.03**2
    values = (2 * mean * other_mean + one) * (2 * covariance + two)
    values /= (mean**2 + other_mean**2 + one) * (variance + other_variance + two)
    return values[5:-5, 5:-5].mean()


def identified(r, stimulus, groups=None, images=True):
    """two_way, top1 and top5 of r_ij, columns ranking rows; a tie fails; rows of the same stimulus do not count, and
    where rows are images each stimulus counts once, of how many trials it may be."""
    first = [list(stimulus).index(own) == i for i, own in enumerate(stimulus)]
    two_way, rivals = [], []
    for j in range(len(r)):
        others = [i for i in range(len(r)) if stimulus[i] != stimulus[j] and (groups is None or groups[i] == groups[j])]
        others = [i for i in others if first[i] or not images]
        two_way += [r[i, j] < r[j, j] for i in others]
        if others:
            rivals.append((sum(r[i, j] >= r[j, j] for i in others), len(others)))
    shares = {f"top{k}": np.mean([count < k for count, _ in rivals]) for k in (1, 5)}
    if min(others for _, others in rivals) >= 299:
        shares["top1_of_300"] = np.mean([comb(n - count, 299) / comb(n, 299) for count, n in rivals])
    return {"two_way": np.mean(two_way), **shares}


def correlations(images, reconstructions):
    r = np.zeros((len(images), len(images)))
    for i, image in enumerate(images):
        for j, other in enumerate(reconstructions):
            r[i, j] = pearsonr(image, other)[0] if np.ptp(image) and np.ptp(other) else 0
    return r


def of_candidates(likelihoods, images, reconstructions, latents, stimulus, fold):
    """Which image it was, among those of the same fold."""
    n = len(images)
    by_likelihood = np.full((n, n), np.nan)
    for response in range(n):
        own = [row for row in range(n) if fold[row] == fold[response]]
        names = list(dict.fromkeys(stimulus[own]))  # each image once, in the order of the averages
        for row in own:
            by_likelihood[row, response] = likelihoods[response, names.index(stimulus[row])]
    flat = [values.reshape(n, -1) / 255 for values in (images, reconstructions)]
    unit = [values / np.linalg.norm(values, axis=1, keepdims=True) for values in np.float64(latents)]
    rankings = {"likelihood": by_likelihood, "latent": unit[0] @ unit[1].T, "reconstruction": correlations(*flat)}
    others = [len(set(stimulus[fold == f]) - {own}) for own, f in zip(stimulus, fold, strict=True)]
    found = {name: identified(r, stimulus, fold) for name, r in rankings.items()}
    return {
        name: {"top1_of_300": None, **values, "n_candidates": 1 + np.mean(others)} for name, values in found.items()
    }


def of_images(images, reconstructions, stimulus):
    images, reconstructions = images / 255, reconstructions / 255
    flat = [values.reshape(len(values), -1) for values in (images, reconstructions)]
    r = correlations(*flat)
    found = identified(r, stimulus)
    return {
        "pixcorr": np.diag(r).mean(),
        "ssim": np.mean([ssim(a, b) for a, b in zip(grey(images), grey(reconstructions), strict=True)]),
        "mse": np.mean((images - reconstructions) ** 2),
        **{name: found[name] for name in ("two_way", "top1", "top5")},
    }


def of_voxels(measured, predicted, ceiling):
    varies = np.ptp(measured, axis=0) > 0
    r = np.array([pearsonr(a, b)[0] if np.ptp(b) else 0 for a, b in zip(measured.T, predicted.T, strict=True)])
    r = np.where(varies, r, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = 1 - ((measured - predicted) ** 2).sum(0) / ((measured - measured.mean(0)) ** 2).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(ceiling >= 0.05, np.minimum(np.maximum(r, 0) ** 2 / ceiling, 1), np.nan)
    return {
        "voxel_r_mean": np.nanmean(r),
        "voxel_r_median": np.nanmedian(r),
        "r2_median": np.median(r2[varies]),
        "ceiling_normalised": np.nanmean(share) if np.isfinite(share).any() else None,
    }


def of_patterns(measured, predicted, mean, std):
    pairs = zip((measured - mean) / std, (predicted - mean) / std, strict=True)
    return np.mean([pearsonr(a, b)[0] if np.ptp(b) > 0 else 0 for a, b in pairs])


def of_ceiling(ceiling):
    known = ceiling[np.isfinite(ceiling)]
    if not len(known):
        return {"voxel_r_mean": None, "voxel_r_median": None, "r2_median": None, "share_measurable": None}
    r, share = np.sqrt(known), (known >= 0.05).sum() / len(ceiling)
    medians = {"voxel_r_median": np.median(r), "r2_median": np.median(known)}
    return {"voxel_r_mean": r.mean(), **medians, "share_measurable": share}


def of_latents(images, fmri, stimulus, fold):
    unit = [values / np.linalg.norm(values, axis=1, keepdims=True) for values in np.float64((images, fmri))]
    similarity = unit[0] @ unit[1].T
    by_image, by_fmri = identified(similarity, stimulus, fold), identified(similarity.T, stimulus, fold, images=False)
    return {
        "cosine": np.diag(similarity).mean(),
        **{f"retrieval_image_{k}": by_image.get(k) for k in ("top1", "top5", "top1_of_300")},
        **{f"retrieval_fmri_{k}": by_fmri.get(k) for k in ("top1", "top5", "top1_of_300")},
    }


def recomputed(arrays, subject, single_trial=False):
    """The blocks of one subject."""
    rows = np.flatnonzero(arrays["subject"] == subject)
    by_trial = np.flatnonzero(np.isin(arrays["single_trial/row"], rows)) if single_trial else None
    row = arrays["single_trial/row"][by_trial] if single_trial else rows
    place = np.searchsorted(rows, row)

    def measured_side(name):
        return arrays[f"single_trial/{name}"][by_trial] if single_trial else arrays[name][rows]

    stimulus, trials = arrays["stimulus_id"][row], np.ones(len(row)) if single_trial else arrays["trials"][row]
    fold = arrays["fold"][row] if "fold" in arrays else np.zeros(len(row))
    images = arrays["image"][row]
    decoding = {
        name: of_images(images, measured_side(f"{prefix}reconstruction"), stimulus)
        for name, prefix in (("model", ""), ("ridge", "ridge/"), ("nearest", "nearest/"))
    }
    decoding["mean_image"] = of_images(images, arrays["mean_image/reconstruction"][row], stimulus)
    single = arrays[f"noise_ceiling/{subject}"]
    signal_to_noise = single / (1 - single)
    ceiling = signal_to_noise / (signal_to_noise + np.mean(1 / trials))
    measured = np.float64(arrays[f"{'single_trial/' if single_trial else ''}fmri/{subject}"])
    mean, std = arrays.get(f"fmri_mean/{subject}", 0), arrays.get(f"fmri_std/{subject}", 1)
    encoding, rois = {"noise_ceiling": of_ceiling(ceiling)}, {}
    regions = [names.split(",") for names in arrays[f"roi/{subject}"].tolist()]
    for roi in sorted({name for names in regions for name in names if name}):
        inside = np.array([roi in names for names in regions])
        rois[roi] = {"n_voxels": inside.sum(), "noise_ceiling": of_ceiling(ceiling[inside])}
    for name, prefix in (("model", ""), ("ridge", "ridge/"), ("nearest", "nearest/")):
        predicted = np.float64(arrays[f"{prefix}fmri_predicted/{subject}"][place])
        encoding[name] = of_voxels(measured, predicted, ceiling)
        encoding[name]["pattern_r"] = of_patterns(measured, predicted, mean, std)
        for roi, figures in rois.items():
            inside = np.array([roi in names for names in regions])
            figures[name] = of_voxels(measured[:, inside], predicted[:, inside], ceiling[inside])
    latent = of_latents(arrays["latent/image"][row], measured_side("latent/fmri"), stimulus, fold)
    blocks = {"decoding": decoding, "encoding": encoding, "latent": latent, "rois": rois}
    latents = arrays["latent/image"][row], measured_side("latent/fmri")
    likelihood = arrays[f"{'single_trial/' if single_trial else ''}log_likelihood/{subject}"]
    given = likelihood, images, measured_side("reconstruction"), latents
    blocks["identification"] = of_candidates(*given, stimulus, fold)
    return blocks


def mean(blocks):
    if isinstance(blocks[0], dict):
        return {name: mean([block[name] for block in blocks]) for name in blocks[0]}
    return None if None in blocks else np.mean(blocks)


def compare(found, expected, name=""):
    if isinstance(expected, dict):
        assert set(found) - {"intervals"} == set(expected), name
        for key, values in expected.items():
            compare(found[key], values, f"{name}.{key}")
    elif expected is None:
        assert found is None, name
    else:
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-6), name


def test_every_figure_follows_from_the_arrays(found):
    metrics, arrays = found
    names = sorted(set(arrays["subject"].tolist()))
    assert sorted(metrics["subjects"]) == names
    blocks = {name: recomputed(arrays, name) for name in names}
    trials = {name: recomputed(arrays, name, True) for name in names} if "single_trial/row" in arrays else {}
    for name, block in blocks.items():
        rest = {key: values for key, values in metrics["subjects"][name].items() if key != "single_trial"}
        compare(rest, block, name)
        if trials:
            without_rois = {key: values for key, values in trials[name].items() if key != "rois"}
            compare(metrics["subjects"][name]["single_trial"], without_rois, f"{name}.single_trial")
    for key in ("decoding", "encoding", "latent", "identification"):
        compare(metrics[key], mean([block[key] for block in blocks.values()]), key)
        if trials:
            compare(metrics["single_trial"][key], mean([block[key] for block in trials.values()]), f"trials.{key}")
    assert bool(trials) == (metrics["single_trial"] is not None)


def test_the_arrays_hold_what_the_figures_were_made_of(found):
    metrics, arrays = found
    assert metrics["n_stimuli"] == len(set(arrays["stimulus_id"].tolist()))
    assert metrics["n_trials"] == arrays["trials"].sum()
