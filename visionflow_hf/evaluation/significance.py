"""Whether the model is better than ridge, stimulus by stimulus, and which voxels are predicted above chance."""

import numpy as np
from scipy.stats import false_discovery_control, wilcoxon
from scipy.stats import t as student_t

from visionflow_hf.evaluation.quality import VoxelScores, subjects_of
from visionflow_hf.metrics import pattern_correlation, pixel_correlation

RATE = 0.05  # of false discoveries


def against_ridge(predictions: dict[str, np.ndarray]) -> dict[str, dict]:
    """Wilcoxon's signed-rank test of model - ridge over stimuli, two-sided, each the mean of its subjects.

    Returns:
        By `decoding.pixcorr` and `encoding.pattern_r`, the mean `difference`, the number of stimuli that the model
        `wins`, of how many, `n`, and `p`; without figures for which there is no ridge, or no difference.

    Source: Wilcoxon 1945, Individual Comparisons by Ranking Methods.
    """
    found = {}
    if "ridge/reconstruction" in predictions:
        found["decoding.pixcorr"] = [
            pixel_correlation(predictions["image"], predictions[name])
            for name in ("reconstruction", "ridge/reconstruction")
        ]
    patterns: dict[str, np.ndarray] = {}
    for subject in subjects_of(predictions):
        rows = predictions["subject"] == subject
        of_train = predictions.get(f"fmri_mean/{subject}", 0.0), predictions.get(f"fmri_std/{subject}", 1.0)
        for name in ("", "ridge/"):
            predicted = predictions.get(f"{name}fmri_predicted/{subject}")
            if predicted is not None:
                values = patterns.setdefault(name, np.full(len(rows), np.nan))
                values[rows] = pattern_correlation(
                    np.asarray(predictions[f"fmri/{subject}"]), np.asarray(predicted), *of_train
                )
    if len(patterns) == 2:
        found["encoding.pattern_r"] = [patterns[""], patterns["ridge/"]]
    stimuli, place = np.unique(predictions["stimulus_id"], return_inverse=True)
    tests = {}
    for name, (model, ridge) in found.items():
        known = np.isfinite(model - ridge)
        counts = np.bincount(place[known], minlength=len(stimuli))
        total = np.bincount(place[known], (model - ridge)[known], minlength=len(stimuli))
        difference = total[counts > 0] / counts[counts > 0]
        if len(difference) > 1 and difference.any():
            tests[name] = {
                "difference": float(difference.mean()),
                "wins": int((difference > 0).sum()),
                "n": len(difference),
                "p": float(wilcoxon(difference).pvalue),
            }
    return tests


def voxels_above_chance(voxels: VoxelScores, predictions: dict[str, np.ndarray]) -> dict[str, dict[str, int]]:
    """How many voxels of each subject have r > 0 at a false discovery rate of 5 %, by method, and how many there `are`.

        t = r sqrt((n - 2) / (1 - r^2))        one-sided, n - 2 degrees of freedom, n stimuli

    A voxel whose r is undefined is not counted as above chance. Of fewer than three stimuli there is no test.

    Source: Benjamini & Hochberg 1995, Controlling the False Discovery Rate.
    """
    found = {}
    for subject, by_method in voxels.r.items():
        n = int((predictions["subject"] == subject).sum())
        if n < 3:
            continue
        found[subject] = {"are": len(voxels.ceiling[subject])}
        for method in ("model", "ridge"):
            if method not in by_method:
                continue
            r = by_method[method][np.isfinite(by_method[method])].clip(-1, 1)
            with np.errstate(divide="ignore"):
                p = student_t.sf(r * np.sqrt((n - 2) / (1 - r**2)), n - 2)
            found[subject][method] = int((false_discovery_control(p) < RATE).sum()) if len(p) else 0
    return found
