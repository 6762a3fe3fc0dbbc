r"""The spacing of the noise levels of a run.

Without knowledge of the field the noise levels have equal ratios, which gives steps of equal length in λ = −log σ for
data of any scale. With a field, exact or learned, the spacing can be fitted. The error of an exponential method in a
step comes from the change of x̂ within it, so that steps should be short where x̂ changes fast: with a density in λ of

    d(λ) ∝ (‖dx̂/dλ‖ / max(1, σ/σ_data))^(1/3),

where the norm is the root mean square over a few dozen field lines. Errors made at large σ are contracted by the later
steps, hence the denominator. A lower limit of the density bounds the longest step. The density is stored as a few
knots, at equal quantiles of it, from which any number of noise levels is interpolated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..physics.tensors import piecewise_linear
from ..utils.checks import check_whole_number
from .multistep import integration_steps

EXPONENT = 1 / 3
FLOOR = 0.02  # added to the density, relative to its maximum
KNOTS = 33


def geometric_sigmas(sigma_max: float, sigma_min: float, count: int) -> list[float]:
    """Return noise levels with equal ratios.

    Args:
        sigma_max: the first noise level, in data units.
        sigma_min: the last one, in data units.
        count: their number.

    Returns:
        `count` noise levels from σ_max to σ_min.

    Raises:
        ValueError: if σ_max or σ_min is not finite and positive, or `count` is not a whole number ≥ 1.
    """
    for name, sigma in (("sigma_max", sigma_max), ("sigma_min", sigma_min)):
        if not 0 < sigma < math.inf:
            raise ValueError(f"`{name}` must be a finite number > 0, but is {sigma}.")
    check_whole_number("count", count, 1)
    exponents = torch.linspace(math.log(sigma_max), math.log(sigma_min), count, dtype=torch.float64, device="cpu")
    return exponents.exp().tolist()


def knotted_sigmas(knots: Sequence[float], count: int) -> list[float]:
    """Return noise levels at equal quantiles of the density of the knots.

    Args:
        knots: noise levels > 0, decreasing, in data units.
        count: the number of noise levels.

    Returns:
        `count` noise levels from the first knot to the last.
    """
    return sigmas_at(knots, torch.linspace(0, 1, count, dtype=torch.float64, device="cpu").tolist())


def sigmas_at(knots: Sequence[float], quantiles: Sequence[float]) -> list[float]:
    """Return the noise levels at these quantiles of the density of the knots: 0 is the first knot, and 1 the last."""
    options: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    values = torch.tensor(knots, **options).log()
    positions = torch.linspace(0, 1, len(knots), **options)
    return piecewise_linear(torch.tensor(quantiles, **options), positions, values).exp().tolist()


def fit_knots(
    denoise: Callable[[torch.Tensor, float], torch.Tensor], x: torch.Tensor, sigmas: Sequence[float]
) -> list[float]:
    """Fit the knots of the step density of a field, from one run along its field lines.

    Args:
        denoise: x̂ as a function of x and σ.
        x: points of the prior at the first σ, (B, *), in data units.
        sigmas: noise levels of the run, decreasing, in data units. More of them give a more precise density.

    Returns:
        33 noise levels from the first σ to the last, decreasing, in data units.

    Raises:
        ValueError: if x̂ is not finite, or is constant.
    """
    speeds: list[torch.Tensor] = []
    last: torch.Tensor | None = None
    for denoised, _ in integration_steps(denoise, x, [*sigmas, 0.0]):
        if last is not None:
            speeds.append((denoised - last).square().mean().sqrt())
        last = denoised
    assert last is not None  # there is at least one step
    lambdas = -torch.tensor(sigmas, dtype=torch.float64, device="cpu").log()
    lengths = lambdas.diff()
    speed = torch.stack(speeds).cpu().double() / lengths
    if not speed.isfinite().all():
        raise ValueError(
            "`model` returns NaN or infinity at some noise level, so there is no spacing to fit. If the latents of a "
            "small D are too large for it, set the scheduler's `max_norm`, or use a float64 `ChargeField`."
        )
    if speed.max() == 0:
        raise ValueError("`model` returns the same x̂ at every noise level, so there is no spacing to fit.")
    sigma_data = last.std().item()
    middle_sigmas = (-(lambdas[1:] + lambdas[:-1]) / 2).exp()
    density = (speed / (middle_sigmas / sigma_data).clamp(min=1)) ** EXPONENT
    density = density / density.max() + FLOOR
    integral = torch.cat([lambdas.new_zeros(1), (density * lengths).cumsum(0)])
    quantiles = torch.linspace(0, 1, KNOTS, dtype=torch.float64, device="cpu")
    knots = (-piecewise_linear(quantiles, integral / integral[-1], lambdas)).exp().tolist()
    return [sigmas[0], *knots[1:-1], sigmas[-1]]


def is_decreasing(sigmas: Sequence[float]) -> bool:
    """Whether noise levels decrease strictly, and are positive and finite."""
    decreasing = all(a > b for a, b in itertools.pairwise(sigmas))
    return decreasing and sigmas[-1] > 0 and math.isfinite(sigmas[0])


def check_knots(knots: Sequence[float], ends: tuple[float, float]) -> None:
    """Raise a ValueError unless `knots` are two or more noise levels that decrease strictly between the two `ends`."""
    if len(knots) < 2 or not is_decreasing(knots):
        raise ValueError(
            f"`sigma_knots` must be two or more positive noise levels that decrease strictly, but are {list(knots)}. "
            "Compute them by `fit_sigmas`, or set `sigma_knots=None`."
        )
    if not all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(ends, (knots[0], knots[-1]), strict=True)):
        raise ValueError(
            f"`sigma_knots` were fitted from {knots[0]} to {knots[-1]}, but the network's noise levels range from "
            f"{ends[0]} to {ends[1]}. Fit them again by `fit_sigmas`, or set `sigma_knots=None`."
        )
