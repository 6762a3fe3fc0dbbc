"""The dtype in which metrics compute."""

from __future__ import annotations

import functools

import torch


def as_floats(*sets: torch.Tensor) -> list[torch.Tensor]:
    """Return sets of points in one dtype, the widest of theirs and at least float32, without gradients.

    Bytes have no distances, and half precision is too coarse for them.
    """
    dtype = functools.reduce(torch.promote_types, [points.dtype for points in sets], torch.float32)
    return [points.detach().to(dtype) for points in sets]
