r"""Where along σ the steps of a run lie.

Without more knowledge, in equal ratios: steps of equal length in λ = −log σ, whatever the data's scale. A field that is
known, be it a network's, tells more. On a step an exponential method errs by what x̂ bends there, so that steps are
best short where x̂ moves: with a density, in λ, of

    d(λ) ∝ (‖dx̂/dλ‖ / max(1, σ/σ_data))^(1/3),

the root mean square taken over a few dozen field lines. What happens far above the plane is forgiven, since all that
follows contracts it: hence the denominator. A floor keeps the longest step in bounds. The density is kept as a few
knots at equal shares of it, from which any number of heights is interpolated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch

from ..physics.tensors import piecewise_linear
from .multistep import integration_steps

EXPONENT = 1 / 3
FLOOR = 0.02  # of the largest density
KNOTS = 33


def geometric_sigmas(sigma_max: float, sigma_min: float, count: int) -> list[float]:
    """`count` heights from σ_max to σ_min in equal ratios."""
    exponents = torch.linspace(math.log(sigma_max), math.log(sigma_min), count, dtype=torch.float64)
    return exponents.exp().tolist()


def knotted_sigmas(knots: Sequence[float], count: int) -> list[float]:
    """`count` heights from the first knot to the last, at equal shares of the density that the knots stand for."""
    values = torch.tensor(knots, dtype=torch.float64).log()
    shares = torch.linspace(0, 1, len(knots), dtype=torch.float64)
    return piecewise_linear(torch.linspace(0, 1, count, dtype=torch.float64), shares, values).exp().tolist()


def fit_knots(
    denoise: Callable[[torch.Tensor, float], torch.Tensor], x: torch.Tensor, sigmas: Sequence[float]
) -> list[float]:
    """Knots of the step density of a field, from one run along its lines.

    Args:
        denoise: x̂ from x and σ.
        x: (B, *), points of the prior at the first σ, in data units.
        sigmas: the heights of the run, falling; the finer, the better the density.

    Returns:
        33 heights from the first σ to the last.

    Raises:
        ValueError: if x̂ is not finite, or does not move.
    """
    speeds: list[torch.Tensor] = []
    last: torch.Tensor | None = None
    for denoised, _ in integration_steps(denoise, x, [*sigmas, 0.0]):
        if last is not None:
            speeds.append((denoised - last).square().mean().sqrt())
        last = denoised
    assert last is not None  # there is at least one step
    lambdas = -torch.tensor(sigmas, dtype=torch.float64).log()
    lengths = lambdas.diff()
    speed = torch.stack(speeds).cpu().double() / lengths
    if not speed.isfinite().all():
        raise ValueError(
            "`model` gives infinite data at some height, so there is no spacing to fit. Where a small D starts it "
            "farther out than it can see, set the scheduler's `max_norm`, or take a float64 `ChargeField`."
        )
    if speed.max() == 0:
        raise ValueError("`model` gives the same data at every height, so there is no spacing to fit.")
    sigma_data = last.std().item()
    middle = (-(lambdas[1:] + lambdas[:-1]) / 2).exp()
    density = (speed / (middle / sigma_data).clamp(min=1)) ** EXPONENT
    density = density / density.max() + FLOOR
    shares = torch.cat([lambdas.new_zeros(1), (density * lengths).cumsum(0)])
    wanted = torch.linspace(0, 1, KNOTS, dtype=torch.float64)
    knots = (-piecewise_linear(wanted, shares / shares[-1], lambdas)).exp().tolist()
    return [sigmas[0], *knots[1:-1], sigmas[-1]]


def is_decreasing(sigmas: Sequence[float]) -> bool:
    """Whether heights fall strictly, and are positive and finite."""
    falling = all(a > b for a, b in itertools.pairwise(sigmas))
    return falling and sigmas[-1] > 0 and math.isfinite(sigmas[0])


def check_knots(knots: Sequence[float], ends: tuple[float, float]) -> None:
    """Raises ValueError unless `knots` are two or more heights that fall strictly from one of `ends` to the other."""
    if len(knots) < 2 or not is_decreasing(knots):
        raise ValueError(
            f"`sigma_knots` must be two or more heights that fall strictly and stay positive, but are {list(knots)}. "
            "Get them from `fit_sigmas`, or set None."
        )
    if not all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(ends, (knots[0], knots[-1]), strict=True)):
        raise ValueError(
            f"`sigma_knots` were fitted from {knots[0]} to {knots[-1]}, but the network's heights run from "
            f"{ends[0]} to {ends[1]}. Fit again by `fit_sigmas`, or set `sigma_knots=None`."
        )
