r"""A search for the best noise levels of a run with few steps.

A spacing that is fitted to the field (`solvers.spacing`) gives any number of steps, but below ten steps the best noise
levels are those for which the errors of the steps cancel, which no density of steps describes. They are found by the
simplex method of Nelder and Mead on the logarithms of the noise levels, for the mean over starting points of

    ρ(e) = e²/(e² + τ²),        e = the root mean square difference between the end of the run and the true end.

ρ (Geman and McClure) is bounded: a start that ends at another sample than it should counts as one, however far away
that sample is, and close to the true end ρ measures the error itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.optimize import minimize

TOLERANCE = 0.3  # τ, in standard deviations of the ends
FIRST_CHANGE = 0.2  # by how much each further vertex of the first simplex raises the logarithm of one noise level
EVALUATIONS = 40  # the number of runs of a search, for each step of a run

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


def search_sigmas(run: Run, reference: torch.Tensor, sigmas: Sequence[float], least: float) -> list[float]:
    """Search the noise levels of a run whose ends are closest to the true ends.

    Args:
        run: the ends (B, *) of a run for its noise levels, decreasing.
        reference: the true ends, (B, *).
        sigmas: noise levels to begin with, decreasing and positive. The first is kept.
        least: the smallest noise level that is allowed.

    Returns:
        As many noise levels, decreasing.
    """
    first = sigmas[0]
    start = np.log(np.asarray(sigmas[1:]))
    if not start.size:
        return list(sigmas)

    def loss(logs: np.ndarray) -> float:
        ends = [np.log(first), *logs]
        if logs[-1] < np.log(least) or any(a - b < 1e-3 for a, b in itertools.pairwise(ends)):
            return 2.0  # above all values of ρ
        return end_errors(run([first, *np.exp(logs).tolist()]), reference).mean().item()

    # Towards larger noise levels, since the last may be the least.
    simplex = np.vstack([start, start + FIRST_CHANGE * np.eye(start.size)])
    options = {"maxfev": EVALUATIONS * len(sigmas), "initial_simplex": simplex, "adaptive": True}
    found = minimize(loss, start, method="Nelder-Mead", options=options)
    return [first, *np.exp(found.x).tolist()]
