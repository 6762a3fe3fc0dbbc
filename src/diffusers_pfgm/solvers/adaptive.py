"""Adaptive Runge-Kutta solvers (Dormand-Prince) for the ODE of the flow, from torchdiffeq.

Points are integrated by the pair of orders 5 and 4, which the paper calls RK45. Densities are integrated by the pair of
order 8, whose error estimates are far more reliable where the trace has sharp peaks between two data points.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torchdiffeq import odeint

from ..physics.denoiser import Denoise
from ..physics.density import density_slope
from ..physics.tensors import working_dtype
from .reversible import Integrand, without_integrand

MAX_CALLS = 10_000  # network calls in one run; 50 to 500 are usual
STAGES = {"dopri5": 6, "dopri8": 13}  # network calls per step
FIRST_STEP = 0.1  # length of a density's first step, in log σ
STEP_FRACTION = 0.3  # tolerance of a step relative to that of the run; most runs have a total error of one or two steps
MAX_STEP_ERROR = 3e-4  # nats; where a step has a larger error, its error estimate is not reliable
NUM_ROUNDINGS = 4  # rounding error of a model, in units of its dtype's machine epsilon


def check_tolerance(tolerance: float, name: str = "tolerance") -> None:
    """Raise a ValueError that names the argument unless it is a finite number > 0."""
    if not 0 < tolerance < math.inf:
        raise ValueError(f"`{name}` must be a finite number > 0, such as 1e-3, but is {tolerance}.")


def integrate_adaptive(
    denoise: Denoise, x: torch.Tensor, sigma_start: float, sigma_end: float, tolerance: float
) -> torch.Tensor:
    """Integrate the ODE of the flow from one noise level to another, larger or smaller.

    With u = x / √(1 + σ²), which remains of order one, and t = log σ, the ODE dx/dt = x − x̂ becomes

        du/dt = (x / (1 + σ²) − x̂) / √(1 + σ²).

    Its right-hand side is almost 0 at large σ, so that the solver takes long steps there.

    Args:
        denoise: x̂ as a function of x and σ.
        x: points at `sigma_start`, (B, *), in data units.
        sigma_start: the first σ, in data units.
        sigma_end: the last σ, in data units.
        tolerance: tolerance of the error of a step, both relative to the elements of u and absolute. The error of a
            sample is the root mean square over its elements; the largest over the batch counts.

    Returns:
        The points at `sigma_end`, (B, *).

    Raises:
        ValueError: if `tolerance` is not a finite number > 0, x̂ is not finite or not smooth enough for it, or the
            solver would need more than 10,000 network calls.

    Reference:
        PFGM, arXiv 2209.11178, section 4.1, which solves dx/dt for z = e^t as well.
    """
    check_tolerance(tolerance)
    options = {"norm": lambda error: error.square().mean(1).sqrt().max()}
    integrand = without_integrand(denoise)
    return _integrate(integrand, x, sigma_start, sigma_end, 0, tolerance, tolerance, "dopri5", options)[0]


def integrate_density(
    integrand: Integrand,
    x: torch.Tensor,
    sigma_start: float,
    sigma_end: float,
    tolerance: float,
    num_quantities: int,
    aug_dim: float,
    rounding: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Integrate the ODE together with estimates of the trace, by steps whose errors are measured in the log-density.

    Args:
        integrand: x̂ and q (B, P), estimates of tr ∂x̂/∂x, as functions of x and σ.
        x: points at `sigma_start`, (B, *), in data units.
        sigma_start: the first σ, in data units.
        sigma_end: the last σ, in data units.
        tolerance: tolerance of a log-density, in nats.
        num_quantities: P.
        aug_dim: D.
        rounding: relative rounding error of the dtype in which the model computes.

    Returns:
        The points at `sigma_end` (B, *), ∫ q d log σ (B, P), and an estimate of the error of the log-density (B,) in
        nats: the sum of the solver's error estimates of its steps and of a bound on the effect of rounding.

    Raises:
        ValueError: as in `integrate_adaptive`.
    """
    check_tolerance(tolerance)
    step_tolerance = min(tolerance * STEP_FRACTION, MAX_STEP_ERROR)
    errors = _DensityErrors(step_tolerance, x, math.log(sigma_start), aug_dim, rounding)

    def recorded(points: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        denoised, quantity = integrand(points, sigma)
        errors.record(points.flatten(1), denoised.flatten(1), sigma)
        return denoised, quantity

    options = {"norm": errors, "first_step": FIRST_STEP}
    end, integrals = _integrate(recorded, x, sigma_start, sigma_end, num_quantities, 0.0, 1.0, "dopri8", options)
    return end, integrals, errors.total


class _DensityErrors:
    """The error of a step relative to its tolerance, which torchdiffeq uses as the norm of the state's error.

    An estimate may be small by chance. `total` therefore adds for each step the larger of its own estimate and that of
    the step before. The solver's last network call in a step is at the end of the step, so that the slope recorded last
    is the slope there.
    """

    def __init__(
        self, tolerance: float, start: torch.Tensor, log_sigma: float, aug_dim: float, rounding: float
    ) -> None:
        self.tolerance = tolerance
        self.aug_dim = aug_dim
        self.rounding = rounding
        self.log_sigma: Any = log_sigma  # at the end of the last accepted step
        self.total = start.new_zeros(len(start))
        self.last_error = start.new_zeros(len(start))

    def record(self, x: torch.Tensor, denoised: torch.Tensor, sigma: torch.Tensor) -> None:
        """Record the slope of the log-density and the rounding error at a network call."""
        self.sigma = sigma
        self.scale = (1 + sigma**2).sqrt()
        self.slope, self.curvature = density_slope(x, denoised, sigma, self.aug_dim)
        size = (self.slope.abs() * (x.abs() + denoised.abs())).sum(1) + x.shape[1]
        self.rounding_rate = NUM_ROUNDINGS * self.rounding * size  # nats per unit of log σ

    def __call__(self, error: torch.Tensor) -> torch.Tensor:
        """The largest ratio of error to tolerance in the batch, from the error (B, N + P) of u and the integrals."""
        points, integrals = error.split([self.slope.shape[1], error.shape[1] - self.slope.shape[1]], dim=1)
        points = points * self.scale
        squares = points.square().sum(1)
        # The error may be orthogonal to the slope by chance. It counts at least as much as one of random direction.
        random_direction = self.slope.square().sum(1) * squares / points.shape[1]
        first_order = (self.slope * points).sum(1).square().maximum(random_direction).sqrt()
        error_in_nats = first_order + self.curvature[:, 0] * squares / 2 + integrals.abs().amax(1)
        rounding_error = self.rounding_rate * (self.sigma.log() - self.log_sigma).abs()
        ratio = (error_in_nats / (self.tolerance + rounding_error)).max()
        accepted = ratio <= 1  # the solver's own criterion
        self.total = self.total + torch.where(accepted, error_in_nats.maximum(self.last_error) + rounding_error, 0)
        self.last_error = torch.where(accepted, error_in_nats, self.last_error)
        self.log_sigma = torch.where(accepted, self.sigma.log(), self.log_sigma)
        return ratio


def _integrate(
    integrand: Integrand,
    x: torch.Tensor,
    sigma_start: float,
    sigma_end: float,
    num_quantities: int,
    rtol: float,
    atol: float,
    method: str,
    options: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x at `sigma_end`, and the integrals (B, P) of the quantities."""
    size = x[0].numel()
    start_scale = math.hypot(1, sigma_start)
    end_scale = math.hypot(1, sigma_end)

    def velocity(time: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        # To choose its first step, the solver looks ahead, far beyond the end where dx/dt is small.
        sigma = time.clamp(low, high).exp()
        scale_squared = 1 + sigma**2
        u = state[:, :size]
        denoised, quantity = integrand((u * scale_squared.sqrt()).to(x.dtype).view_as(x), sigma)
        du = u / scale_squared - denoised.flatten(1) / scale_squared.sqrt()
        return torch.cat([du, quantity], dim=1).to(x.dtype)

    wide = working_dtype(x.device)  # for time and tolerance, since torchdiffeq's default is float64 on any device
    span = torch.tensor([sigma_start, sigma_end], dtype=wide, device=x.device).log()
    low, high = span.min(), span.max()
    state = torch.nn.functional.pad(x.flatten(1) / start_scale, (0, num_quantities))
    # Without `step_t` the solver would step beyond the end, where the model was not trained, and interpolate back.
    options = {"dtype": wide, "step_t": span[1:], "max_num_steps": MAX_CALLS // STAGES[method], **options}
    try:
        final = odeint(velocity, state, span, rtol=rtol, atol=atol, method=method, options=options)[-1]
    except AssertionError as error:  # torchdiffeq's error for steps that are too small or too many, and for NaN
        raise _explain(error, sigma_start, sigma_end) from error
    return (final[:, :size] * end_scale).view_as(x), final[:, size:]


def _explain(error: AssertionError, sigma_start: float, sigma_end: float) -> ValueError:
    """A ValueError that states the cause and the fix of an error of torchdiffeq."""
    between = f"between sigma {sigma_start:.4g} and {sigma_end:.4g}"
    if "max_num_steps" in str(error):
        return ValueError(
            f"The adaptive solver has taken {MAX_CALLS:,} calls of `model` {between} without reaching the end: `model` "
            "is not smooth enough, or less precise than `tolerance`. Raise `tolerance`, or pass `num_inference_steps`."
        )
    return ValueError(
        f"The adaptive solver cannot continue {between} ({error}): `model` returns NaN or infinity there, is "
        "discontinuous, or is less precise than `tolerance`. Check `model`, or raise `tolerance`."
    )
