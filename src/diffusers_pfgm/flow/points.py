"""The points that a flow takes and returns: checks and dtypes."""

from __future__ import annotations

import torch

from ..physics.charges import check_finite
from ..physics.tensors import working_dtype


def check_points(name: str, x: torch.Tensor) -> None:
    """Raise a ValueError unless x is a tensor (B, *) of one or more finite points of real numbers."""
    if not isinstance(x, torch.Tensor) or x.is_complex():
        kind = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
        raise ValueError(
            f"`{name}` must be a tensor of real numbers, but is {kind}. Convert an array by `torch.as_tensor`."
        )
    if x.ndim < 2 or not x.numel():
        raise ValueError(
            f"`{name}` must have the shape (B, *) of one point or more, but has {tuple(x.shape)}. A single point "
            "(N,) is `x.unsqueeze(0)`."
        )
    check_finite(name, x)


def check_radius(z: float | torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """z in the working dtype, () or (B,). Raise a ValueError unless it is finite and > 0, with one of these shapes."""
    radius = torch.as_tensor(z, device=x.device, dtype=working_dtype(x.device))
    if radius.shape not in ((), x.shape[:1]):
        raise ValueError(
            f"`z` must be a number or have the shape {tuple(x.shape[:1])}, one for each sample in `x`, but has "
            f"{tuple(radius.shape)}."
        )
    wrong = ~((radius > 0) & radius.isfinite())
    if wrong.any():
        raise ValueError(f"`z` must be a finite number > 0 for every sample, but is {radius[wrong][0].item()}.")
    return radius


def float_dtype(x: torch.Tensor) -> torch.dtype | None:
    """The dtype of the data if it is floating-point, for models without a known dtype."""
    return x.dtype if x.is_floating_point() else None


def as_dtype_of(points: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Points in the dtype of x, but at least in float32, as the prior is heavy-tailed."""
    return points.to(torch.promote_types(x.dtype, torch.float32))
