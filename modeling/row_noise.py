# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""Random numbers for the rows of a batch, the same whether one process has all rows or several have a part each."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

_part = (0, 1)  # this process's place among those that share a batch, and their number


@contextmanager
def part_of_batch(place: int, parts: int) -> Iterator[None]:
    """Batches are the part with this place of larger ones, cut into `parts` of equally many rows.

    All processes have to come here with the same random state.
    """
    global _part
    before, _part = _part, (place, parts)
    try:
        yield
    finally:
        _part = before


def draw_rows(draw: Callable[[int], torch.Tensor], rows: int) -> torch.Tensor:
    """This part's `rows` rows of `draw(rows of the whole batch)`."""
    place, parts = _part
    return draw(rows * parts)[rows * place : rows * (place + 1)]


class RowDropout(nn.Dropout):
    """Dropout of the elements of a batch, `(batch, ...)`, by `draw_rows`.

    Source: Srivastava et al. 2014, Dropout: A Simple Way to Prevent Neural Networks from Overfitting.
    """

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Of the same shape; in training with a share `p` of the elements zero, and the others larger for it."""
        if not self.training or self.p == 0:
            return values
        drawn = draw_rows(lambda rows: torch.rand(rows, *values.shape[1:], device=values.device), len(values))
        return values * ((drawn >= self.p) / (1 - self.p)).to(values.dtype)
