# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""Computations that need the whole of float32, whatever is allowed for the rest."""

from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def without_tf32():
    """Products of float32 matrices in float32, also where TF32 is allowed, whose 10 bits are too few for a fit."""
    matmul = torch.backends.cuda.matmul
    newer = hasattr(matmul, "fp32_precision")

    def allow(value) -> None:
        if newer:
            matmul.fp32_precision = value
        else:
            matmul.allow_tf32 = value

    before = matmul.fp32_precision if newer else matmul.allow_tf32
    allow("ieee" if newer else False)
    try:
        yield
    finally:
        allow(before)


def without_autocast(values: torch.Tensor):
    """Products of float32 matrices in float32, also under `torch.autocast` on the device of `values`."""
    kind = values.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
