"""The sets of points that metrics compare: checks, and the dtype in which metrics compute."""

from __future__ import annotations

import functools

import torch


def checked_points(**sets: torch.Tensor) -> list[torch.Tensor]:
    """Return sets of points (K, *) in one dtype, the widest of theirs and at least float32, without gradients.

    Bytes have no distances, and half precision is too coarse for them.

    Args:
        **sets: the sets, by the names of the arguments that errors name.

    Raises:
        ValueError: if a set is empty or contains NaN or infinity, or the points have different numbers of elements.
    """
    dtype = functools.reduce(torch.promote_types, [points.dtype for points in sets.values()], torch.float32)
    converted = {name: points.detach().to(dtype) for name, points in sets.items()}
    for name, points in converted.items():
        if not len(points):
            raise ValueError(f"`{name}` must be at least one point, but is empty.")
        if not points.isfinite().all():
            raise ValueError(f"`{name}` must be finite, but contains NaN or infinity. Leave such images out.")
    sizes = {name: points[0].numel() for name, points in converted.items()}
    if len({*sizes.values()}) > 1:
        found = " and ".join(f"{size} in `{name}`" for name, size in sizes.items())
        raise ValueError(f"The points must have the same number of elements, but have {found}.")
    return [*converted.values()]
