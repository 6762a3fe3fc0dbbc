r"""Solvers of the backward ODE with fixed steps, as tables of coefficients.

Along a field line dx/dσ = (x − x̂)/σ (PFGM, arXiv 2209.11178, section 3.3; PFGM++, arXiv 2302.04265, section 3). In
λ = −log σ this is dx/dλ = x̂ − x, linear except for x̂. Its exact solution over a step h = λ' − λ is

    x' = e^(−h) x + ∫₀^h e^(s−h) x̂(λ + s) ds,        e^(−h) = σ'/σ.

Each solver approximates x̂(λ) by a polynomial through earlier evaluations, so that every network call is followed by one
linear combination,

    x' = x_coefficient · x + Σ_j weights[j] · x̂_j,        j = 0 the newest x̂,

whose coefficients depend only on the noise levels and are computed before the run.

- **euler**: x̂ constant; equal to Euler's method in σ.
- **heun**: the trapezoid rule in σ (EDM, arXiv 2206.00364, algorithm 1); two calls per step, one for the last step.
- **multistep**: x̂ a polynomial in λ through the latest `order` values (exponential Adams-Bashforth; at D = ∞ and
  order 2 the `solver_type="heun"` of diffusers' DPM-Solver++(2M), arXiv 2211.01095). With the corrector, the previous
  step is repeated with a polynomial that includes the x̂ just computed (exponential Adams-Moulton, as in UniPC, arXiv
  2302.04867). This needs no further call and raises the order of accuracy by one. As predictor and corrector share the
  term e^(−h) x, the correction only adds multiples of known x̂'s. The order is lowered to 2 (or 1) for a step more
  than 1.25 (or 2) times as long in λ as the previous one, except for order 2 without the corrector, which remains
  DPM-Solver++(2M).

For all of them the last step, to σ = 0, is x' = x̂.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..physics.denoiser import Denoise

SOLVERS = ("multistep", "heun", "euler")
MAX_ORDER = 3


@dataclass(frozen=True)
class Step:
    """One network call, and the linear combination that follows it.

    Attributes:
        sigma: noise level σ of the network call, in data units.
        x_coefficient: coefficient of x in the combination.
        weights: coefficients of the latest x̂'s, newest first.
    """

    sigma: float
    x_coefficient: float
    weights: tuple[float, ...]

    def __call__(self, x: torch.Tensor, denoised: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return x' from x (B, *) and the x̂'s (B, *) so far, newest first."""
        x = self.x_coefficient * x if self.x_coefficient else torch.zeros_like(x)
        for weight, value in zip(self.weights, denoised, strict=False):
            x = torch.add(x, value, alpha=weight)
        return x


def check_solver(solver: str, order: int) -> None:
    """Raise a ValueError unless `solver` and `order` are among the solvers of this module."""
    if solver not in SOLVERS:
        raise ValueError(f"`solver` must be one of {SOLVERS}, but is {solver!r}.")
    if not (isinstance(order, int) and 1 <= order <= MAX_ORDER):
        raise ValueError(f"`solver_order` (`order` of `plan_steps`) must be 1, 2 or 3, but is {order}.")


def plan_steps(
    sigmas: Sequence[float], solver: str = "multistep", order: int = MAX_ORDER, use_corrector: bool = True
) -> list[Step]:
    """Plan the steps of a run, one for each network call.

    Args:
        sigmas: noise levels of the run, σ_0 > σ_1 > ... > σ_n ≥ 0, n ≥ 1, in data units. For "multistep" and "euler"
            they may also increase.
        solver: "multistep", "heun" or "euler". Defaults to "multistep".
        order: order of "multistep", 1 to 3; lower for the first steps, which have fewer evaluations. Defaults to 3.
        use_corrector: whether "multistep" uses the corrector. Without it, order 3 still corrects its first step, whose
            error would otherwise lower the order of the whole run. Defaults to True.

    Returns:
        n steps, or 2n − 1 for "heun" (2n if σ_n > 0).

    Raises:
        ValueError: if `solver` or `order` is another one, there are fewer than two σ's, or a σ is not finite or not
            positive (the last may be 0) or equals the one before (the last may).
    """
    check_solver(solver, order)
    levels = tuple(sigmas)
    if len(levels) < 2:
        raise ValueError(f"`sigmas` must be two noise levels or more, but are {list(levels)}.")
    is_allowed = all(0 < sigma < math.inf for sigma in levels[:-1]) and all(0 <= sigma < math.inf for sigma in levels)
    if not is_allowed or any(a == b for a, b in itertools.pairwise(levels[:-1])):
        raise ValueError(
            "`sigmas` must be finite and positive (the last may be 0), without repetition (the last may be repeated), "
            f"but are {list(levels)}."
        )
    return list(_plan(levels, solver, order, use_corrector))


@functools.lru_cache(maxsize=64)  # planning takes a millisecond, and the same run is usually repeated
def _plan(sigmas: tuple[float, ...], solver: str, order: int, use_corrector: bool) -> tuple[Step, ...]:
    if solver == "heun":
        return tuple(step for pair in itertools.pairwise(sigmas) for step in _heun(*pair))
    if solver == "euler":
        order, use_corrector = 1, False
    lambdas = [-math.log(sigma) if sigma else math.inf for sigma in sigmas]
    return tuple(_multistep(sigmas[i], lambdas, i, order, use_corrector) for i in range(len(sigmas) - 1))


def integration_steps(
    denoise: Denoise,
    x: torch.Tensor,
    sigmas: Sequence[float],
    solver: str = "multistep",
    order: int = MAX_ORDER,
    use_corrector: bool = True,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Integrate the ODE from the first σ to the last, one network call at a time.

    Args:
        denoise: x̂ (B, *) as a function of x (B, *) and σ.
        x: points at the first σ, (B, *), in data units.
        sigmas, solver, order, use_corrector: see `plan_steps`.

    Yields:
        x̂ of each call and x after the step that follows it, both (B, *).
    """
    history: list[torch.Tensor] = []
    for step in plan_steps(sigmas, solver, order, use_corrector):
        history = [denoise(x, step.sigma), *history[:MAX_ORDER]]
        x = step(x, history)
        yield history[0], x


def integrate(
    denoise: Denoise,
    x: torch.Tensor,
    sigmas: Sequence[float],
    solver: str = "multistep",
    order: int = MAX_ORDER,
    use_corrector: bool = True,
) -> torch.Tensor:
    """Integrate the ODE from x (B, *) at the first σ to the last σ. Arguments as in `integration_steps`.

    Returns:
        x (B, *) at the last σ, in data units.

    Examples:
        >>> at_origin = lambda x, sigma: torch.zeros_like(x)  # one charge at 0: field lines are rays
        >>> integrate(at_origin, torch.tensor([[8.0]]), [4.0, 2.0, 1.0])
        tensor([[2.]])
    """
    end = x
    for _, end in integration_steps(denoise, x, sigmas, solver, order, use_corrector):  # noqa: B007
        pass
    return end


def trapezoid_weights(sigma: float, target: float) -> tuple[float, tuple[float, float]]:
    """The coefficients of the exponential trapezoid rule from σ to σ' = `target`, larger or smaller.

    The rule is x' = x_coefficient · x + w_0 x̂(x) + w_1 x̂(x'), where x̂ is linear in λ between the two ends. Solved for x
    it is the same rule from σ' to σ, so that a step back inverts it.

    Returns:
        x_coefficient and (w_0, w_1).
    """
    lambdas = [-math.log(sigma), -math.log(target)]
    end_weight, start_weight = _adams(lambdas, 0, range(1, -1, -1))
    return target / sigma, (start_weight, end_weight)


def variance_preserving(steps: Sequence[Step], final_sigma: float) -> list[Step]:
    """The same steps for the scaled state x / √(1 + σ²) of the DDPM family; x̂ remains in data units."""
    scales = [math.sqrt(1 + sigma**2) for sigma in (*(step.sigma for step in steps), final_sigma)]
    return [
        Step(step.sigma, step.x_coefficient * scale / next_scale, tuple(weight / next_scale for weight in step.weights))
        for step, scale, next_scale in zip(steps, scales[:-1], scales[1:], strict=True)
    ]


def _heun(sigma: float, target: float) -> list[Step]:
    euler = Step(sigma, target / sigma, (1 - target / sigma,))
    if target == 0:
        return [euler]
    # From the Euler point x_e: x_e + (σ' − σ)/2 · (dx/dσ(x_e) − dx/dσ(x)), where (x − x̂)/σ = (x_e − x̂)/σ'.
    half = (sigma - target) / (2 * target)
    return [euler, Step(target, 1.0, (half, -half))]


def _multistep(sigma: float, lambdas: Sequence[float], i: int, order: int, use_corrector: bool) -> Step:
    x_coefficient = math.exp(lambdas[i] - lambdas[i + 1])
    if x_coefficient == 0:
        return Step(sigma, 0.0, (1.0,))

    def latest(index: int, count: int) -> range:
        return range(index, max(index - count, -1), -1)

    weights = _adams(lambdas, i, latest(i, _usable_order(lambdas, i, order, use_corrector)))
    # Order 3 always corrects its first step: the error O(h²) of Euler's method there would make the run second order.
    if i > 0 and (use_corrector or (order == 3 and i == 1)):
        used = _usable_order(lambdas, i - 1, order, use_corrector)
        predicted = [0.0, *_adams(lambdas, i - 1, latest(i - 1, used))]
        corrected = _adams(lambdas, i - 1, latest(i, used + 1))
        changes = [x_coefficient * (new - old) for new, old in zip(corrected, predicted, strict=True)]
        weights = [sum(pair) for pair in itertools.zip_longest(weights, changes, fillvalue=0.0)]
    return Step(sigma, x_coefficient, tuple(weights))


def _usable_order(lambdas: Sequence[float], i: int, order: int, use_corrector: bool) -> int:
    """The order of step i, lowered where a polynomial through close evaluations would be extrapolated too far."""
    if i == 0 or (order == 2 and not use_corrector):
        return order
    growth = (lambdas[i + 1] - lambdas[i]) / (lambdas[i] - lambdas[i - 1])
    return min(order, 3 if growth <= 1.25 else 2 if growth <= 2 else 1)


def _adams(lambdas: Sequence[float], i: int, nodes: range) -> list[float]:
    """The weights ∫₀^h e^(s−h) ℓ_j(s) ds from λ_i to λ_{i+1}, with ℓ_j the Lagrange polynomials of the nodes."""
    h = lambdas[i + 1] - lambdas[i]
    moments = [-math.expm1(-h)]  # ∫₀^h e^(s−h) s^p ds
    for p in range(1, len(nodes)):
        moments.append(h**p - p * moments[-1])
    times = [lambdas[node] - lambdas[i] for node in nodes]
    weights = []
    for j, time in enumerate(times):
        polynomial = [1.0]  # Π_{k≠j} (s − s_k) / (s_j − s_k), lowest power first
        for k, other in enumerate(times):
            if k != j:
                shifted = [0.0, *polynomial]
                scaled = [other * c for c in polynomial] + [0.0]
                polynomial = [(a - b) / (time - other) for a, b in zip(shifted, scaled, strict=True)]
        weights.append(math.fsum(c * m for c, m in zip(polynomial, moments, strict=True)))
    return weights
