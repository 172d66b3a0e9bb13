"""`visionflow inspect`: what a corpus holds, and what is odd about it."""

import os
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from visionflow_hf.corpus.responses import images_of, responses_of
from visionflow_hf.corpus.schema import open_corpus


def summarise(path: str | os.PathLike) -> dict:
    """Splits, subjects, voxels, repeats, ROI sizes, ceilings, disk size and warnings, ready for JSON."""
    corpus = open_corpus(path)
    splits = {}
    for name, rows in corpus.splits.items():
        ids = np.array(rows["stimulus_id"])
        by_subject = np.array(rows["subject"])
        counts = [np.unique(ids[by_subject == subject], return_counts=True)[1] for subject in np.unique(by_subject)]
        counts = np.concatenate(counts)
        sizes = {picture.size for picture in images_of(rows, list(dict.fromkeys(ids.tolist())))}
        splits[name] = {
            "trials": len(rows),
            "stimuli": len(np.unique(ids)),
            "trials_per_stimulus": [int(counts.min()), int(counts.max())],
            "image_sizes": sorted(f"{height} x {width}" for width, height in sizes),
        }
    subjects, warnings = {}, []
    for subject, voxels in corpus.subjects.items():
        seen = responses_of(corpus.splits["train"], subject)
        fmri = seen.fmri
        ceiling = corpus.noise_ceiling(subject)
        table = corpus.voxels[corpus.voxels["subject"] == subject]
        rois: dict[str, int] = {}
        for names in table["roi"]:
            for roi in names if names is not None else []:
                rois[roi] = rois.get(roi, 0) + 1
        constant = int((np.ptp(fmri, axis=0) == 0).sum()) if len(fmri) else 0
        subjects[subject] = {
            "voxels": voxels,
            "train_trials": len(fmri),
            "mean": float(fmri.mean()) if len(fmri) else None,
            "std": float(fmri.std(0).mean()) if len(fmri) else None,
            "constant_voxels": constant,
            "rois": dict(sorted(rois.items())),
            "noise_ceiling_median": float(np.nanmedian(ceiling)) if np.isfinite(ceiling).any() else None,
        }
        if not len(fmri):
            warnings.append(f"{subject} has no trial in train: a model cannot learn its voxels")
        if constant:
            warnings.append(
                f"{subject} has {constant} constant voxels in train: they are standardised to 0, or drop them"
            )
    if len(corpus.subjects) == 1 and splits["train"]["stimuli"] < 50:
        warnings.append(f"train has {splits['train']['stimuli']} distinct stimuli: `crossvalidate` uses all of them")
    size = sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
    return {
        "corpus": str(path),
        "unit": corpus.unit,
        "splits": splits,
        "subjects": subjects,
        "disk_mib": round(size / 2**20, 2),
        "warnings": warnings,
    }


def print_summary(summary: dict) -> None:
    console = Console(width=100)
    console.print(f"{summary['corpus']}: {summary['disk_mib']} MiB; fMRI {summary['unit']}")
    splits = Table("split", "trials", "stimuli", "trials a stimulus", "image height x width")
    for name, split in summary["splits"].items():
        low, high = split["trials_per_stimulus"]
        spread = str(low) if low == high else f"{low} to {high}"
        splits.add_row(name, str(split["trials"]), str(split["stimuli"]), spread, ", ".join(split["image_sizes"][:3]))
    console.print(splits)
    subjects = Table("subject", "voxels", "train trials", "mean", "std", "noise ceiling", "ROI sizes")
    for name, subject in summary["subjects"].items():
        rois = ", ".join(f"{roi} {count}" for roi, count in subject["rois"].items())
        figures = (subject["mean"], subject["std"], subject["noise_ceiling_median"])
        subjects.add_row(
            name,
            str(subject["voxels"]),
            str(subject["train_trials"]),
            *("-" if value is None else f"{value:.3g}" for value in figures),
            rois or "-",
        )
    console.print(subjects)
    for warning in summary["warnings"]:
        console.print(f"warning: {warning}")
