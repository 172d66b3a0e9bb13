"""What the `evaluate` modules in metrics/ take: the formats that they declare, and arrays from what they are given."""

from collections.abc import Sequence

import numpy as np
from datasets import Features, List, Value


def features(*depths: int) -> list[Features]:
    """Predictions and references as lists of numbers, each item nested so many levels deep (an RGB image: 3)."""
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
        ValueError: items of different shapes, fewer of them than `at_least`, or a value that is no finite number.
    """
    arrays = []
    for name, values in (("predictions", predictions), ("references", references)):
        try:
            arrays.append(np.asarray(values, dtype=np.float64))
        except ValueError:
            raise ValueError(f"the {name} differ in shape among themselves: give all the same") from None
        if not np.isfinite(arrays[-1]).all():
            raise ValueError(f"the {name} hold values that are no finite numbers: leave out those items")
    shapes = [array.shape for array in arrays]
    if shapes[0] != shapes[1]:
        raise ValueError(f"predictions of shape {shapes[0]} and references of shape {shapes[1]}: give the same shape")
    if len(arrays[0]) < at_least:
        raise ValueError(f"{len(arrays[0])} items, and this metric needs at least {at_least}")
    return arrays[0], arrays[1]
