"""The paper's adaptive solver, RK45 (Dormand-Prince), on the same equation as the fixed steps. Needs torchdiffeq."""

from __future__ import annotations

import math

import torch

from .physics.flow import Denoise, Observe, without_quantities
from .physics.kernel import working_dtype


def check_tolerance(tolerance: float) -> None:
    """Raises ValueError unless it is a positive number."""
    if not 0 < tolerance < math.inf:
        raise ValueError(f"`tolerance` must be a finite number > 0, such as 1e-3, but is {tolerance}.")


def follow_adaptively(
    observe: Observe,
    x: torch.Tensor,
    sigma_start: float,
    sigma_end: float,
    tolerance: float,
    num_quantities: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Follow field lines from one height to another, either way, and add up what is observed along them.

    With u = x / √(1 + σ²), which stays of order one, and t = log σ the equation dx/dt = x − x̂ is

        du/dt = (x / (1 + σ²) − x̂) / √(1 + σ²),

    which far above the plane is next to nothing, so that the solver takes long steps there.

    Args:
        observe: x̂ and q from x and σ.
        x: (B, *), points at `sigma_start`, in data units.
        sigma_start: the first height, in data units.
        sigma_end: the last.
        tolerance: of a step's error, relative to each element of u and of the integrals, and absolute; the root mean
            square over u's elements, the largest over samples and integrals.
        num_quantities: P.

    Returns:
        The points at `sigma_end`, and ∫ q d log σ (B, P) from the first height to the last.

    Raises:
        ImportError: without torchdiffeq.
        ValueError: if the tolerance is not a positive number, or x̂ is not finite or too rough for it.

    Reference:
        PFGM, arXiv 2209.11178, section 4.1, which solves dx/dt for z = e^t as well.
    """
    check_tolerance(tolerance)
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise ImportError(
            "An adaptive solver needs torchdiffeq. Install the extra `adaptive`: pip install '.[adaptive]' in a "
            "checkout of diffusers-pfgm."
        ) from error
    size, start, end = x[0].numel(), math.hypot(1, sigma_start), math.hypot(1, sigma_end)

    def velocity(time: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        sigma = time.exp()
        total = 1 + sigma**2
        u = state[:, :size]
        denoised, quantity = observe((u * total.sqrt()).to(x.dtype).view_as(x), sigma)
        du = u / total - denoised.flatten(1) / total.sqrt()
        return torch.cat([du, quantity], dim=1).to(x.dtype)

    def norm(error: torch.Tensor) -> torch.Tensor:
        points = error[:, :size].square().mean(1, keepdim=True).sqrt()
        return torch.cat([points, error[:, size:].abs()], dim=1).max()

    wide = working_dtype(x.device)  # of time and tolerance, else float64 on any device
    options = {"dtype": wide, "norm": norm}
    span = torch.tensor([sigma_start, sigma_end], dtype=wide, device=x.device).log()
    state = torch.nn.functional.pad(x.flatten(1) / start, (0, num_quantities))
    try:
        final = odeint(velocity, state, span, rtol=tolerance, atol=tolerance, method="dopri5", options=options)[-1]
    except AssertionError as error:  # torchdiffeq's word for steps too small and states that are not finite
        raise ValueError(
            f"The adaptive solver cannot go on between sigma {sigma_start:.4g} and {sigma_end:.4g} ({error}): `model` "
            f"gives NaN or infinity there, or jumps, or is less precise than `tolerance` = {tolerance}. Check the one, "
            "or raise the other."
        ) from error
    return (final[:, :size] * end).view_as(x), final[:, size:]


def solve_adaptive(
    denoise: Denoise, x: torch.Tensor, sigma_start: float, sigma_end: float, tolerance: float
) -> torch.Tensor:
    """The same with nothing to add up: x at `sigma_end` from x̂ = `denoise(x, σ)`."""
    return follow_adaptively(without_quantities(denoise), x, sigma_start, sigma_end, tolerance)[0]
