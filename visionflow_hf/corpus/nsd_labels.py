"""The names behind the numbers in the region masks of the Natural Scenes Dataset, which Algonauts 2023 shares.

As in the colour tables of nsddata/freesurfer (Allen et al. 2022). The challenge repeats them in pickled files, which
are not read: a pickle can run code.
"""

import numpy as np

LABELS = {
    "prf-visualrois": ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"),
    "floc-bodies": ("EBA", "FBA-1", "FBA-2", "mTL-bodies"),
    "floc-faces": ("OFA", "FFA-1", "FFA-2", "mTL-faces", "aTL-faces"),
    "floc-places": ("OPA", "PPA", "RSC"),
    "floc-words": ("OWFA", "VWFA-1", "VWFA-2", "mfs-words", "mTL-words"),
    "streams": ("early", "midventral", "midlateral", "midparietal", "ventral", "lateral", "parietal"),
}


def name_regions(mask: str, numbers: np.ndarray) -> list[str | None]:
    """The region of each voxel in one mask, None where it lies in none."""
    names = dict(enumerate(LABELS[mask], start=1))
    return [names.get(number, f"{mask}-{number:g}") if number >= 1 else None for number in numbers.tolist()]
