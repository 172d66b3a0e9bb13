# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""Processes that share a fit: each fits the maps of some subjects, and takes over those of the others."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import distributed


class Processes:
    """The processes of `torch.distributed`, or this one alone.

    Args:
        shared: that all of them are here for the same fit; False is this process alone.

    Attributes:
        rank (`int`): the number of this process.
        count (`int`): how many there are.
    """

    def __init__(self, shared: bool = False):
        running = shared and distributed.is_available() and distributed.is_initialized()
        self.rank, self.count = (distributed.get_rank(), distributed.get_world_size()) if running else (0, 1)

    def own(self, subjects: Sequence[str]) -> list[str]:
        """The subjects of which this process fits the maps."""
        return list(subjects)[self.rank :: self.count]

    def gather(self, value) -> list:
        """The value of each process, in their order; the tensors in it have to be on the CPU."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def of_first(self, call: Callable[[], tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
        """What `call` gives the first process, on the CPU if there are several: elsewhere the signs of eigenvectors may
        be others.
        """
        if self.count == 1:
            return call()
        values = [tuple(one.cpu() for one in call()) if self.rank == 0 else None]
        distributed.broadcast_object_list(values, 0)
        return values[0]

    def add_up(self, tensor: torch.Tensor) -> None:
        """Replace a tensor by its sum over the processes."""
        if self.count > 1:
            distributed.all_reduce(tensor)

    def take_over(self, tensors: Iterable[torch.Tensor], number: int) -> None:
        """Fill tensors with what the process has that fitted the subject with this place in the list given to `own`."""
        for tensor in tensors if self.count > 1 else ():
            value = tensor.detach().contiguous()
            distributed.broadcast(value, number % self.count)
            tensor.detach().copy_(value)
