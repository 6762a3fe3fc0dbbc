r"""Reversible integration of the flow between data and prior, with integrals along the path.

The fixed steps are those of the exponential trapezoid rule,

    x' = (σ'/σ) x + w_0 x̂(x, σ) + w_1 x̂(x', σ'),

which is symmetric: the step from σ' to σ solves the same equation for x instead of x'. Encoding followed by decoding
therefore returns to the initial point for steps of any length, up to the tolerance to which each equation is solved. x'
is computed by fixed-point iteration (`fixed_point.py`) that starts from x̂ extrapolated in λ. It takes two or three
iterations where w_1 ‖∂x̂/∂x‖ is small.

Quantities q(x, σ), such as the trace in `divergence.py`, are integrated over log σ, also by the trapezoid rule.
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

MAX_ITERATIONS = 50
NOISE = 2.0**-5  # largest change of x̂ by a network's rounding, relative to x: a few rounding errors of bfloat16

# x̂ (B, *) and quantities q (B, P) at x (B, *) and σ, a number or (); P may be 0
Integrand = Callable[[torch.Tensor, Any], tuple[torch.Tensor, torch.Tensor]]


def without_integrand(denoise: Denoise) -> Integrand:
    """An integrand of x̂ alone, without quantities (P = 0)."""
    return lambda x, sigma: (denoise(x, sigma), x.new_zeros(len(x), 0))


def integrate_reversible(
    denoise: Denoise, integrand: Integrand, x: torch.Tensor, sigmas: Sequence[float], tolerance: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Integrate the ODE along `sigmas`, which increase or decrease, by reversible steps.

    Args:
        denoise: x̂ (B, *) as a function of x and σ, for the iteration.
        integrand: x̂ and q as functions of x and σ, evaluated once at each noise level.
        x: points at the first noise level, (B, *), in data units.
        sigmas: two or more noise levels σ, increasing or decreasing, in data units.
        tolerance: tolerance of the iteration: the change of a sample in the last iteration, relative to its norm. If
            `denoise` turns out to be less precise (TF32, autocast), the iteration stops at its precision and a warning
            is given.

    Returns:
        x (B, *) at the last noise level, and ∫ q d log σ (B, P) from the first to the last.

    Raises:
        ValueError: if the iteration of a step does not converge (the error names the noise levels).
    """
    denoised, quantity = integrand(x, sigmas[0])
    integral = torch.zeros_like(quantity)
    slope = torch.zeros_like(x)
    reached_tolerance = tolerance
    for sigma, target in itertools.pairwise(sigmas):
        x_coefficient, (start_weight, end_weight) = trapezoid_weights(sigma, target)
        length = math.log(target / sigma)
        explicit = x_coefficient * x + start_weight * denoised
        guess = explicit + end_weight * (denoised + slope * length)
        x, change = _solve_step(denoise, explicit, end_weight, guess, sigma, target, reached_tolerance)
        reached_tolerance = max(reached_tolerance, change)
        previous_denoised = denoised
        previous_quantity = quantity
        denoised, quantity = integrand(x, target)
        slope = (denoised - previous_denoised) / length
        integral = integral + (previous_quantity + quantity) * (length / 2)
    if reached_tolerance > tolerance:
        warnings.warn(
            f"`model` is less precise than `step_tolerance` = {tolerance}: because of its rounding, points of the path "
            f"have a relative error of about {reached_tolerance:.1g}, and so has the result of the reverse path. "
            f"Compute in float32 without TF32 or autocast, or pass `step_tolerance={reached_tolerance:.1g}`.",
            stacklevel=3,
        )
    return x, integral


def _solve_step(
    denoise: Denoise,
    explicit: torch.Tensor,
    end_weight: float,
    guess: torch.Tensor,
    sigma: float,
    target: float,
    tolerance: float,
) -> tuple[torch.Tensor, float]:
    """Solve x' = explicit + end_weight · x̂(x') for a step from `sigma` to `target`; return x' and its last change."""
    noise = NOISE * abs(end_weight)
    update = lambda x: explicit + end_weight * denoise(x, target)  # noqa: E731
    x, changes = solve_fixed_point(update, guess, tolerance, MAX_ITERATIONS, noise)
    failed = ~(changes <= max(tolerance, noise))
    if not failed.any():
        return x, changes.max().item()
    if not denoise(explicit, target).isfinite().all():
        raise ValueError(f"`model` gives NaN or infinity at sigma {target:.4g}.")
    raise ValueError(
        f"The step from sigma {sigma:.4g} to {target:.4g} cannot be reversed: after {MAX_ITERATIONS} iterations "
        f"{int(failed.sum())} of {len(x)} samples still change by more than `step_tolerance` = {tolerance} relative to "
        "their norms. Use a larger `num_inference_steps`, or `tolerance` in its place for the adaptive solver. If "
        "`model` is less precise than `step_tolerance`, use a larger `step_tolerance`."
    )
