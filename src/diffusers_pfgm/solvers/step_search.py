r"""A search for the best noise levels of a run with few steps.

A spacing that is fitted to the field (`solvers.spacing`) gives any number of steps, but below ten steps the best noise
levels are those for which the errors of the steps cancel, which no density of steps describes. The n noise levels are
at the quantiles q_k of the spacing's density,

    q_k = e (u + a u (1 − u) + b u (1 − u) (1 − 2u)),        u = k/(n − 1),        k = 0, ..., n − 1,

where e is the quantile of the last one, and a and b move the others. The spacing itself has e = (n − 1)/n and a = b =
0. With three numbers, however many steps there are, a few hundred field lines are enough to find levels that are also
better for other field lines. The simplex method of Nelder and Mead minimizes the mean over these field lines of

    ρ(d) = d²/(d² + τ²),        d = the root mean square difference between the end of the run and the true end.

ρ (Geman and McClure) is at most 1, so a field line that ends at a wrong sample adds at most 1, at any distance. Close
to the true end ρ is proportional to the squared error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.optimize import minimize

TOLERANCE = 0.3  # τ, in standard deviations of the ends
FIRST_CHANGES = (-0.05, 0.3, 0.3)  # changes of e, a and b in the first simplex
LEAST_STEP = 1e-3  # the least difference of the quantiles of two noise levels
EVALUATIONS = 75  # the largest number of runs

Run = Callable[[Sequence[float]], torch.Tensor]  # the ends (B, *) of a run with the noise levels of its steps


def end_errors(ends: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return ρ of each sample, (B,).

    Args:
        ends: ends of a run, (B, *), in data units.
        reference: the true ends, (B, *).
    """
    squares = (ends - reference).flatten(1).square().mean(1)
    scale = (TOLERANCE * reference.std()).square()
    return (squares / (squares + scale)).nan_to_num(nan=1.0)


def search_sigmas(
    run: Run, reference: torch.Tensor, spacing: Callable[[Sequence[float]], list[float]], num_steps: int
) -> list[float]:
    """Search the noise levels of a run whose ends are closest to the true ends.

    Args:
        run: the ends (B, *) of a run for its noise levels, decreasing.
        reference: the true ends, (B, *).
        spacing: the noise levels at quantiles of the spacing's density, from 0 for σ_max to 1 for σ_min.
        num_steps: the number n of noise levels.

    Returns:
        n noise levels, decreasing.
    """
    if num_steps == 1:
        return spacing([0.0])
    u = np.linspace(0, 1, num_steps)

    def quantiles(parameters: np.ndarray) -> np.ndarray:
        end, a, b = parameters
        return end * (u + u * (1 - u) * (a + b * (1 - 2 * u)))

    def loss(parameters: np.ndarray) -> float:
        positions = quantiles(parameters)
        if positions[-1] > 1 or np.diff(positions).min() < LEAST_STEP:
            return 2.0  # above all values of ρ
        return end_errors(run(spacing(positions.tolist())), reference).mean().item()

    start = np.array([(num_steps - 1) / num_steps, 0.0, 0.0])
    simplex = np.vstack([start, start + np.diag(FIRST_CHANGES)])
    best = minimize(loss, start, method="Nelder-Mead", options={"maxfev": EVALUATIONS, "initial_simplex": simplex})
    return spacing(quantiles(best.x).tolist())
