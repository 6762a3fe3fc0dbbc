r"""The flow between data and prior in both directions, and whatever adds up along it.

Fixed steps here are those of the exponential trapezoid rule,

    x' = (σ'/σ) x + w_0 x̂(x, σ) + w_1 x̂(x', σ'),

which is its own inverse: a step from σ' to σ solves the same equation for the other unknown. So a run up and down again
returns to where it began, however long the steps, as closely as each equation is solved. x' is found by iteration
(`fixed_point.py`) from x̂ extrapolated in λ, in two or three rounds where w_1 ‖∂x̂/∂x‖ is small.

What adds up is some q(x, σ), such as the trace in `divergence.py`, over log σ, by the trapezoid rule as well.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..physics.denoiser import Denoise
from .fixed_point import solve_fixed_point
from .multistep import trapezoid_weights

MAX_ROUNDS = 50
NOISE = 2.0**-5  # of x, the most that a network's rounding may change x̂: a few roundings of bfloat16

# x̂ (B, *) at x (B, *) and σ, a number or (), with quantities q (B, P) there; P may be 0
Integrand = Callable[[torch.Tensor, Any], tuple[torch.Tensor, torch.Tensor]]


def without_integrand(denoise: Denoise) -> Integrand:
    """x̂ alone, where nothing is to be added up."""
    return lambda x, sigma: (denoise(x, sigma), x.new_zeros(len(x), 0))


def integrate_reversible(
    denoise: Denoise, observe: Integrand, x: torch.Tensor, sigmas: Sequence[float], tolerance: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Follow field lines through the heights `sigmas`, up or down, by steps that undo themselves.

    Args:
        denoise: x̂ (B, *) from x and σ, for the iteration.
        observe: x̂ and q from x and σ, once at each height.
        x: (B, *), at the first height, in data units.
        sigmas: two or more heights, rising or falling.
        tolerance: of an iteration: the change of a sample in its last round, relative to its norm. Where `denoise`
            turns out to be less precise (TF32, autocast), all that it can tell, with a warning.

    Returns:
        x at the last height, and ∫ q d log σ (B, P) from the first to the last.

    Raises:
        ValueError: if an iteration does not converge, with the height.
    """
    denoised, quantity = observe(x, sigmas[0])
    total, slope = torch.zeros_like(quantity), torch.zeros_like(x)
    reached = tolerance
    for sigma, target in itertools.pairwise(sigmas):
        keep, (here, ahead) = trapezoid_weights(sigma, target)
        length = math.log(target / sigma)
        known = keep * x + here * denoised
        guess = known + ahead * (denoised + slope * length)
        x, change = _solved(denoise, known, ahead, guess, sigma, target, reached)
        reached = max(reached, change)
        before, (denoised, following) = denoised, observe(x, target)
        slope = (denoised - before) / length
        total = total + (quantity + following) * (length / 2)
        quantity = following
    if reached > tolerance:
        warnings.warn(
            f"`model` is less precise than `step_tolerance` = {tolerance}: by its rounding, points of the path are "
            f"known to about {reached:.1g} of their norms, and the reverse path returns no closer. Compute in float32 "
            f"without TF32 or autocast, or pass `step_tolerance={reached:.1g}`.",
            stacklevel=3,
        )
    return x, total


def _solved(
    denoise: Denoise,
    known: torch.Tensor,
    ahead: float,
    guess: torch.Tensor,
    sigma: float,
    target: float,
    tolerance: float,
) -> tuple[torch.Tensor, float]:
    """x' = known + ahead · x̂(x') of a step from `sigma` to `target`, from a guess of it, and its last change."""
    noise = NOISE * abs(ahead)
    update = lambda x: known + ahead * denoise(x, target)  # noqa: E731
    x, changes = solve_fixed_point(update, guess, tolerance, MAX_ROUNDS, noise)
    failed = ~(changes <= max(tolerance, noise))
    if not failed.any():
        return x, changes.max().item()
    if not denoise(known, target).isfinite().all():
        raise ValueError(f"`model` gives NaN or infinity at sigma {target:.4g}.")
    raise ValueError(
        f"The step from sigma {sigma:.4g} to {target:.4g} cannot be undone: after {MAX_ROUNDS} rounds "
        f"{int(failed.sum())} of {len(x)} samples still change by more than `step_tolerance` = {tolerance} of their "
        "norms. Take a larger `num_inference_steps`, or the adaptive solver by `tolerance=1e-4`; or a larger "
        "`step_tolerance`, if `model` is less precise than this one."
    )
