"""Inputs of the `evaluate` modules in metrics/: the features that they declare, and checked arrays."""

from collections.abc import Sequence

import numpy as np
from datasets import Features, List, Value


def features(*depths: int) -> list[Features]:
    """Features of predictions and references whose items are nested lists of these depths (an RGB image has 3)."""
    options = []
    for depth in depths:
        item = Value("float64")
        for _ in range(depth):
            item = List(item)
        options.append(Features({"predictions": item, "references": item}))
    return options


def paired(predictions: Sequence, references: Sequence, at_least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 arrays of one shape, items along the first axis.

    Raises:
        ValueError: items of different shapes, fewer than `at_least` items, or NaN or infinite values.
    """
    arrays = []
    for name, values in (("predictions", predictions), ("references", references)):
        try:
            arrays.append(np.asarray(values, dtype=np.float64))
        except ValueError:
            raise ValueError(f"the {name} have different shapes among themselves: give all the same shape") from None
        if not np.isfinite(arrays[-1]).all():
            raise ValueError(f"the {name} have NaN or infinite values: remove those items")
    shapes = [array.shape for array in arrays]
    if shapes[0] != shapes[1]:
        raise ValueError(f"predictions of shape {shapes[0]} and references of shape {shapes[1]}: give the same shape")
    if len(arrays[0]) < at_least:
        raise ValueError(f"{len(arrays[0])} items, and this metric needs at least {at_least}")
    return arrays[0], arrays[1]
