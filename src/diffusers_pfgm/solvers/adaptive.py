"""Adaptive Runge-Kutta solvers (Dormand-Prince) of the flow's equation, by torchdiffeq.

Points are followed by the pair of orders 5 and 4 that the paper calls RK45, densities by the pair of order 8, whose
error estimates are far more reliable for the sharp peaks of a trace between two data points.
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

MAX_CALLS = 10_000  # of the model in one run; 50 to 500 are usual
STAGES = {"dopri5": 6, "dopri8": 13}  # calls a step
FIRST_STEP = 0.1  # of a density's way, in log sigma
STEP_SHARE = 0.3  # of the tolerance in nats that a step may take: the steps of most runs add up to one or two of them
COARSEST_STEP = 3e-4  # nats; steps of larger errors are too long for their estimates to be trusted
ROUNDINGS = 4  # of a model's dtype, between what it is given and what it returns


def check_tolerance(tolerance: float, name: str = "tolerance") -> None:
    """Raise a ValueError that names the argument unless it is a positive number."""
    if not 0 < tolerance < math.inf:
        raise ValueError(f"`{name}` must be a finite number > 0, such as 1e-3, but is {tolerance}.")


def integrate_adaptive(
    denoise: Denoise, x: torch.Tensor, sigma_start: float, sigma_end: float, tolerance: float
) -> torch.Tensor:
    """Follow field lines from one noise level to another, either way.

    With u = x / √(1 + σ²), which stays of order one, and t = log σ the equation dx/dt = x − x̂ is

        du/dt = (x / (1 + σ²) − x̂) / √(1 + σ²),

    which far above the data is next to nothing, so that the solver takes long steps there.

    Args:
        denoise: x̂ from x and σ.
        x: (B, *), points at `sigma_start`, in data units.
        sigma_start: the first σ, in data units.
        sigma_end: the last.
        tolerance: of a step's error, relative to each element of u and absolute; the root mean square over the elements
            of a sample, the largest over samples.

    Returns:
        The points at `sigma_end`.

    Raises:
        ValueError: if the tolerance is not a positive number, x̂ is not finite or too rough for it, or the solver would
            need more than 10,000 calls.

    Reference:
        PFGM, arXiv 2209.11178, section 4.1, which solves dx/dt for z = e^t as well.
    """
    check_tolerance(tolerance)
    options = {"norm": lambda error: error.square().mean(1).sqrt().max(), "method": "dopri5"}
    return _follow(without_integrand(denoise), x, sigma_start, sigma_end, 0, tolerance, tolerance, options)[0]


def integrate_density(
    observe: Integrand,
    x: torch.Tensor,
    sigma_start: float,
    sigma_end: float,
    tolerance: float,
    num_quantities: int,
    aug_dim: float,
    rounding: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same with the integrals of traces, by steps whose errors are measured in the log-density.

    Args:
        observe: x̂ and q (B, P), estimates of tr ∂x̂/∂x, from x and σ.
        x: (B, *), points at `sigma_start`, in data units.
        sigma_start: the first σ, in data units.
        sigma_end: the last.
        tolerance: of a log-density, in nats.
        num_quantities: P.
        aug_dim: D.
        rounding: the relative precision of the dtype that the model computes in.

    Returns:
        The points at `sigma_end`, ∫ q d log σ (B, P), and an estimate of the error of a log-density from both (B,), in
        nats: the sum of the errors that the solver has found in its steps, and of what rounding may add.

    Raises:
        ValueError: as in `solve_adaptive`.
    """
    check_tolerance(tolerance)
    step_tolerance = min(tolerance * STEP_SHARE, COARSEST_STEP)
    errors = _DensityErrors(step_tolerance, x, math.log(sigma_start), aug_dim, rounding)

    def observed(points: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        denoised, quantity = observe(points, sigma)
        errors.see(points.flatten(1), denoised.flatten(1), sigma)
        return denoised, quantity

    options = {"norm": errors, "method": "dopri8", "first_step": FIRST_STEP}
    end, total = _follow(observed, x, sigma_start, sigma_end, num_quantities, 0.0, 1.0, options)
    return end, total, errors.total


class _DensityErrors:
    """A step's error as a share of its tolerance, which torchdiffeq takes as the norm of the state's error.

    An estimate may be small by chance, so a step counts with the larger one of its own and that of the step before it.
    A solver's last call in a step is at its end, so that the slope seen last is the one there.
    """

    def __init__(
        self, tolerance: float, start: torch.Tensor, log_sigma: float, aug_dim: float, rounding: float
    ) -> None:
        self.tolerance, self.aug_dim, self.rounding = tolerance, aug_dim, rounding
        self.log_sigma: Any = log_sigma  # where the last step has ended
        self.total = self.last = start.new_zeros(len(start))

    def see(self, x: torch.Tensor, denoised: torch.Tensor, sigma: torch.Tensor) -> None:
        self.sigma, self.scale = sigma, (1 + sigma**2).sqrt()
        self.slope, self.pull = density_slope(x, denoised, sigma, self.aug_dim)
        seen = (self.slope.abs() * (x.abs() + denoised.abs())).sum(1) + x.shape[1]
        self.rounded = ROUNDINGS * self.rounding * seen  # nats for each unit of log sigma

    def __call__(self, error: torch.Tensor) -> torch.Tensor:
        points, integrals = error.split([self.slope.shape[1], error.shape[1] - self.slope.shape[1]], dim=1)
        points = points * self.scale
        squares = points.square().sum(1)
        # The error's own direction may happen to be one that counts little: then that of any direction.
        along = (self.slope * points).sum(1).square().maximum(self.slope.square().sum(1) * squares / points.shape[1])
        nats = along.sqrt() + self.pull[:, 0] * squares / 2 + integrals.abs().amax(1)
        rounded = self.rounded * (self.sigma.log() - self.log_sigma).abs()
        ratio = (nats / (self.tolerance + rounded)).max()
        accepted = ratio <= 1  # as the solver will decide
        self.total = self.total + torch.where(accepted, nats.maximum(self.last) + rounded, 0)
        self.last = torch.where(accepted, nats, self.last)
        self.log_sigma = torch.where(accepted, self.sigma.log(), self.log_sigma)
        return ratio


def _follow(
    observe: Integrand,
    x: torch.Tensor,
    sigma_start: float,
    sigma_end: float,
    num_quantities: int,
    rtol: float,
    atol: float,
    options: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor]:
    """x at `sigma_end`, and the integrals (B, P) of quantities."""
    size, start, end = x[0].numel(), math.hypot(1, sigma_start), math.hypot(1, sigma_end)

    def velocity(time: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        sigma = time.exp()
        total = 1 + sigma**2
        u = state[:, :size]
        denoised, quantity = observe((u * total.sqrt()).to(x.dtype).view_as(x), sigma)
        du = u / total - denoised.flatten(1) / total.sqrt()
        return torch.cat([du, quantity], dim=1).to(x.dtype)

    wide = working_dtype(x.device)  # of time and tolerance, else float64 on any device
    span = torch.tensor([sigma_start, sigma_end], dtype=wide, device=x.device).log()
    state = torch.nn.functional.pad(x.flatten(1) / start, (0, num_quantities))
    method = options.pop("method")
    # Without `step_t` the solver passes the end, where a model has learned nothing, and interpolates.
    options = {"dtype": wide, "step_t": span[1:], "max_num_steps": MAX_CALLS // STAGES[method], **options}
    try:
        final = odeint(velocity, state, span, rtol=rtol, atol=atol, method=method, options=options)[-1]
    except AssertionError as error:  # torchdiffeq's word for steps too small, too many, and states that are not finite
        raise _explained(error, sigma_start, sigma_end) from error
    return (final[:, :size] * end).view_as(x), final[:, size:]


def _explained(error: AssertionError, sigma_start: float, sigma_end: float) -> ValueError:
    between = f"between sigma {sigma_start:.4g} and {sigma_end:.4g}"
    if "max_num_steps" in str(error):
        return ValueError(
            f"The adaptive solver has taken {MAX_CALLS:,} calls of `model` {between} and is not at its end: `model` is "
            "too rough, or less precise than `tolerance`. Raise `tolerance`, or pass `num_inference_steps`."
        )
    return ValueError(
        f"The adaptive solver cannot go on {between} ({error}): `model` gives NaN or infinity there, or jumps, or is "
        "less precise than `tolerance`. Check the one, or raise the other."
    )
