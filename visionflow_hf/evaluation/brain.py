"""Brain maps: a value of each voxel, such as the model's r, on the cortical surface or in three views.

Drawn by nilearn (the extra `brain`), which contains the surface fsaverage5 and the outline of the MNI template.
"""

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from visionflow_hf.evaluation.quality import VoxelScores

HEMISPHERES = {"lh": "left", "rh": "right"}
FSAVERAGE5 = 10242  # vertices of a hemisphere, the first of the 163842 of fsaverage
VIEWS = ("lateral", "medial", "ventral")
MNI_BOX = np.array([[-90, 90], [-126, 91], [-72, 109]])  # mm, what the template's outline is drawn for
PLANES = ("yz", "xz", "xy")
MOST_MARKERS = 20000
SLICES = 8
SHADES = "viridis"


def on_surface(predictions: dict[str, np.ndarray], voxels: VoxelScores) -> tuple[np.ndarray, list[str]]:
    """r on the vertices of fsaverage5, averaged over the subjects whose vertices are known.

    Returns:
        Array of shape (2, 10242), left hemisphere first, NaN where no subject has a voxel; and the names of the
        subjects.
    """
    subjects = [subject for subject in voxels.r if f"vertex/{subject}" in predictions]
    total, seen = np.zeros((2, 2, FSAVERAGE5))
    for subject in subjects:
        vertex, r = predictions[f"vertex/{subject}"], voxels.r[subject]["model"]
        regions = [names.split(",") for names in predictions[f"roi/{subject}"].tolist()]
        for hemisphere, side in enumerate(HEMISPHERES):
            here = np.array([side in names for names in regions]) & (vertex >= 0) & (vertex < FSAVERAGE5)
            here &= np.isfinite(r)
            np.add.at(total[hemisphere], vertex[here].astype(np.int64), r[here])
            np.add.at(seen[hemisphere], vertex[here].astype(np.int64), 1)
    return np.divide(total, seen, out=np.full_like(total, np.nan), where=seen > 0), subjects


def draw_surface(values: np.ndarray, label: str = "voxel r, model", signed: bool = False) -> Figure:
    """The inflated fsaverage5, three views of each hemisphere; `values` as returned by `on_surface`.

    Args:
        signed: show negative values, too; they are drawn as 0 otherwise.
    """
    from nilearn import datasets, plotting

    mesh = datasets.fetch_surf_fsaverage("fsaverage5")  # ships with nilearn
    figure, axes = plt.subplots(
        2, len(VIEWS), figsize=(7.2, 4.4), subplot_kw={"projection": "3d"}, gridspec_kw={"wspace": 0, "hspace": 0}
    )
    low, top = span(values[np.isfinite(values)], signed)
    for row, side, shown in zip(axes, HEMISPHERES.values(), values, strict=True):
        for axis, view in zip(row, VIEWS, strict=True):
            plotting.plot_surf_stat_map(
                mesh[f"infl_{side}"],
                shown,
                hemi=side,
                view=view,
                bg_map=mesh[f"sulc_{side}"],
                cmap=SHADES,
                vmin=low,
                vmax=top,
                colorbar=False,
                axes=axis,
                figure=figure,
            )
            axis.set_title(f"{side}, {view}", fontsize=9, y=0.92)
    _shade_bar(figure, axes, low, top, label)
    return figure


def in_mni_box(places: np.ndarray) -> bool:
    """Whether coordinates (voxels, 3) could be millimetres in MNI space; voxel indices, never negative, cannot."""
    low, high = np.nanmin(places, axis=0), np.nanmax(places, axis=0)
    return bool((low >= MNI_BOX[:, 0]).all() and (high <= MNI_BOX[:, 1]).all() and low[0] < 0 < high[0])


def draw_volume(places: np.ndarray, values: np.ndarray, label: str = "voxel r, model", signed: bool = False) -> Figure:
    """Voxels as dots in three views, the highest values in front; with the MNI outline if `in_mni_box`.

    Args:
        places: coordinates x, y, z, array of shape (voxels, 3).
        values: array of shape (voxels,).
        signed: show negative values, too; they are drawn as 0 otherwise.
    """
    known = np.flatnonzero(np.isfinite(values) & np.isfinite(places).all(1))
    order = known[np.argsort(values[known])][-MOST_MARKERS:]
    low, top = span(values[order], signed)
    size = float(np.clip(20000 / len(order), 2, 30))
    if in_mni_box(places[known]):
        from nilearn import plotting

        figure = plt.figure(figsize=(7.2, 2.9))
        plotting.plot_markers(
            values[order].clip(min=low),
            places[order],
            node_size=size,
            node_cmap=SHADES,
            node_vmin=low,
            node_vmax=top,
            display_mode="ortho",
            figure=figure,
            colorbar=True,
        )
        return figure
    figure, axes = plt.subplots(1, len(PLANES), figsize=(7.2, 2.7), layout="constrained")
    for axis, (across, up) in zip(axes, PLANES, strict=True):
        columns = ["xyz".index(across), "xyz".index(up)]
        axis.scatter(*places[order][:, columns].T, s=size, c=values[order], cmap=SHADES, vmin=low, vmax=top, lw=0)
        axis.set(xlabel=across, ylabel=up)
        axis.set_aspect("equal", adjustable="datalim")
    _shade_bar(figure, axes, low, top, label)
    return figure


def draw_slices(places: np.ndarray, r: np.ndarray) -> Figure:
    """Slices of the scan's volume along its last axis, evenly from the first to the last that has a voxel.

    Args:
        places: of the voxels in the volume, whole numbers, array of shape (voxels, 3).
        r: array of shape (voxels,).
    """
    low, top = places.min(0), max(0.1, np.nanmax(r))
    box = np.full(places.max(0) - low + 1, np.nan)
    box[tuple((places - low).T)] = r.clip(min=0)
    depths = np.unique(np.linspace(0, box.shape[2] - 1, SLICES).round().astype(int))
    figure, axes = plt.subplots(2, SLICES // 2, figsize=(7.2, 4), layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, depth in zip(axes.flat, depths, strict=False):  # a flat volume has fewer
        axis.imshow(box[:, :, depth].T, origin="lower", cmap=SHADES, vmin=0, vmax=top, interpolation="nearest")
        axis.set_title(f"slice {low[2] + depth}", fontsize=9)
    _shade_bar(figure, axes, 0, top, "voxel r, model")
    return figure


def span(values: np.ndarray, signed: bool) -> tuple[float, float]:
    """The values of the first and the last shade: 0 and the largest, or as far below 0 as above."""
    if not signed:
        return 0.0, max(0.1, values.max())
    return -(most := max(0.1, np.abs(values).max())), most


def _shade_bar(figure: Figure, axes: np.ndarray, low: float, top: float, label: str) -> None:
    shades = plt.cm.ScalarMappable(plt.Normalize(low, top), SHADES)
    figure.colorbar(shades, ax=axes, label=label, shrink=0.7, pad=0.02).outline.set_visible(False)
