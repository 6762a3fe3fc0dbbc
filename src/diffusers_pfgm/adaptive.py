"""The paper's adaptive solver, RK45 (Dormand-Prince), on the same equation as the fixed steps. Needs torchdiffeq."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from .physics.kernel import working_dtype


def solve_adaptive(
    denoise: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    sigma_start: float,
    sigma_end: float,
    tolerance: float,
) -> torch.Tensor:
    """Follow field lines from one height to another, either way, with an error control for the whole batch.

    Args:
        denoise: x̂ from x (B, *) and σ ().
        x: (B, *), points at `sigma_start`, in data units.
        sigma_start: the first height, in data units.
        sigma_end: the last.
        tolerance: relative to each element, and absolute in data units, of a step's root mean square error.

    Returns:
        The points at `sigma_end`.

    Raises:
        ImportError: without torchdiffeq.
        ValueError: if the tolerance is not a positive number.

    Reference:
        PFGM, arXiv 2209.11178, section 4.1, which solves dx/dt for z = e^t as well. Here t = −λ.
    """
    if not 0 < tolerance < math.inf:
        raise ValueError(f"`tolerance` must be a finite number > 0, such as 1e-3, but is {tolerance}.")
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise ImportError(
            "An adaptive solver needs torchdiffeq. Install it by `pip install 'diffusers-pfgm[adaptive]'`."
        ) from error
    span = torch.tensor([-math.log(sigma_start), -math.log(sigma_end)], dtype=x.dtype, device=x.device)

    def velocity(lam: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return denoise(x, (-lam).exp()) - x

    options = {"dtype": working_dtype(x.device)}  # of time and tolerance, else float64 on any device
    end: torch.Tensor = odeint(velocity, x, span, rtol=tolerance, atol=tolerance, method="dopri5", options=options)[-1]
    return end
