"""Categories of stimuli that come without: clusters of images that look alike, or whose embeddings are alike."""

from collections.abc import Iterable

import numpy as np
from PIL import Image
from sklearn.cluster import KMeans

SIDE = 8  # px of the copies by which images look alike
MOST, STIMULI = 20, 5  # clusters; stimuli in one, on average, where there are few


def clusters(features: np.ndarray, seed: int) -> list[str]:
    """The cluster of each stimulus by k-means of its features, array of shape (stimuli, features)."""
    number = min(MOST, max(2, len(features) // STIMULI), len(np.unique(features, axis=0)))
    labels = KMeans(number, n_init=4, random_state=seed).fit_predict(features)
    return [f"cluster {label}" for label in labels]


def small_copies(images: Iterable[Image.Image]) -> np.ndarray:
    """The pixels of copies of 8 x 8 px, 0 to 1, array of shape (images, 192)."""
    box = Image.Resampling.BOX
    return np.stack([np.asarray(one.convert("RGB").resize((SIDE, SIDE), box)).ravel() / 255.0 for one in images])
