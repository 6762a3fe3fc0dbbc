"""Laws of the solvers: order of convergence, the last step, the authors' end points, and PFGM's theorem."""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import scipy.stats
import torch

from diffusers_pfgm import Charges, PoissonKernel, plan_steps
from diffusers_pfgm.physics.charges import mean_of_charges
from diffusers_pfgm.solvers.multistep import variance_preserving
from tests.networks import seeded


def spaced(start: float, end: float, count: int) -> list[float]:
    return np.geomspace(start, end, count).tolist()


def exact_mean(charges: torch.Tensor, aug_dim: float, scale: float = 1.0) -> Callable[..., torch.Tensor]:
    prepared = Charges(charges)

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        sigmas = torch.full((len(x),), sigma / scale).double()
        return x + mean_of_charges(x, sigmas, prepared, aug_dim, from_x=True)

    return denoise


def integrate(
    x: torch.Tensor, mean: Callable[..., torch.Tensor], sigmas: Sequence[float], *solver: object
) -> torch.Tensor:
    history: list[torch.Tensor] = []
    for step in plan_steps(sigmas, *solver):  # type: ignore[arg-type]
        history.insert(0, mean(x, step.sigma))
        x = step(x, history)
    return x


@functools.cache
def converging_case(aug_dim: float) -> tuple[Callable[..., torch.Tensor], torch.Tensor, torch.Tensor]:
    """x̂ of 20 charges, points at σ = 10, and their end points at σ = 1 by six times as many steps as are compared."""
    mean = exact_mean(torch.randn(20, 6, generator=seeded(0), dtype=torch.float64), aug_dim)
    start = PoissonKernel(aug_dim).sample((16, 6), 10.0, seeded(1), dtype=torch.float64)
    return mean, start, integrate(start, mean, spaced(10, 1, 1001))


@pytest.mark.parametrize("aug_dim", [1.0, math.inf])
@pytest.mark.parametrize(
    ("solver", "order", "use_corrector", "slope"),
    [
        ("euler", 1, False, 1),
        ("heun", 1, False, 2),
        ("multistep", 1, False, 1),
        ("multistep", 2, False, 2),
        ("multistep", 3, False, 3),
        ("multistep", 1, True, 2),
        ("multistep", 2, True, 3),
        ("multistep", 3, True, 4),
    ],
)
def test_order_of_convergence(aug_dim: float, solver: str, order: int, use_corrector: bool, slope: int) -> None:
    mean, start, truth = converging_case(aug_dim)
    counts = [20, 40, 80, 160]
    errors = [
        (integrate(start, mean, spaced(10, 1, n + 1), solver, order, use_corrector) - truth).square().mean().sqrt()
        for n in counts
    ]
    fitted = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert fitted == pytest.approx(slope, abs=0.25)


def test_sigma_may_decrease_or_increase() -> None:
    mean = exact_mean(torch.randn(20, 6, generator=seeded(0), dtype=torch.float64), 1.0)
    start = PoissonKernel(1.0).sample((16, 6), 10.0, seeded(1), dtype=torch.float64)
    decoded = integrate(start, mean, spaced(10, 0.5, 400))
    assert torch.allclose(integrate(decoded, mean, spaced(0.5, 10, 400)), start, rtol=1e-4, atol=1e-4)


def test_the_last_step_is_the_posterior_mean() -> None:
    for solver in ("multistep", "heun", "euler"):
        last = plan_steps([2.0, 1.0, 0.0], solver)[-1]
        x, latest = torch.randn(2, 3), torch.randn(2, 3)
        assert torch.equal(last(x, [latest, x, x, x]), latest)


@pytest.mark.parametrize(("solver", "calls"), [("multistep", 5), ("heun", 9), ("euler", 5)])
def test_number_of_calls(solver: str, calls: int) -> None:
    assert len(plan_steps([*spaced(40, 0.01, 5), 0.0], solver)) == calls


@pytest.mark.parametrize(("solver", "steps"), [("euler", 100), ("heun", 25), ("heun", 50), ("multistep", 15)])
@pytest.mark.parametrize("sigma_min", [1e-3, 1e-2])
def test_end_points_are_the_authors(
    endpoints: dict[str, torch.Tensor], solver: str, steps: int, sigma_min: float
) -> None:
    charges = endpoints["charges"]
    mean = exact_mean(charges, 1.0)
    start = endpoints["x_init"].double().flatten(1)
    end = integrate(start, mean, [*spaced(40, sigma_min, steps), 0.0], solver)
    expected = torch.cdist(endpoints["rk45"].double().flatten(1), charges).argmin(1)
    assert torch.equal(torch.cdist(end, charges).argmin(1), expected)


def uniformity(charges: torch.Tensor, aug_dim: float, scale: float) -> list[float]:
    """p-values of the hypothesis that encoded points have uniform directions on the hemisphere."""
    dim = charges.shape[1]
    chosen = torch.randint(len(charges), (20_000,), generator=seeded(0))
    # Close to a charge its own field dominates, so that its flux has the distribution of its kernel.
    start = charges[chosen] + PoissonKernel(1.0).sample((len(chosen), dim), 0.01, seeded(1), dtype=torch.float64)
    mean = exact_mean(charges, aug_dim, scale)
    top = 1000.0
    end = integrate(start, mean, spaced(0.01, top, 80)) - charges.mean(0)
    points = torch.nn.functional.normalize(torch.cat([end, torch.full((len(end), 1), top)], dim=1), dim=1)
    axes = torch.linalg.svd(charges - charges.mean(0))[2]
    along = points[:, :-1] @ axes[0]
    law = scipy.stats.beta(0.5, dim / 2)
    return [
        scipy.stats.kstest(points[:, -1].square().numpy(), law.cdf).pvalue,
        scipy.stats.kstest(along.square().numpy(), law.cdf).pvalue,
        scipy.stats.binomtest(int((along > 0).sum()), len(along)).pvalue,
    ]


def lopsided_charges(dim: int) -> torch.Tensor:
    """Four charges close together and a distant one: their parts of the hemisphere depend on the field's exponent."""
    charges = torch.randn(5, dim, generator=seeded(3), dtype=torch.float64)
    charges[4] += 4
    return charges


@pytest.mark.slow
@pytest.mark.parametrize("dim", [2, 16])
def test_encoded_points_are_uniform_on_the_hemisphere(dim: int) -> None:
    """Theorem 1 of PFGM (arXiv 2209.11178)."""
    assert min(uniformity(lopsided_charges(dim), 1.0, 1.0)) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("dim", [2, 16])
def test_with_a_wrong_exponent_encoded_points_are_not_uniform(dim: int) -> None:
    # D = 2 at the same radius r = σ√2 has the exponent N + 2 in place of N + 1.
    assert min(uniformity(lopsided_charges(dim), 2.0, math.sqrt(2))) < 1e-6


def test_heun_is_the_trapezoid_rule_in_sigma() -> None:
    def mean(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return torch.sin(x + sigma)

    x = torch.randn(5, generator=seeded(), dtype=torch.float64)
    slope = (x - mean(x, 2.0)) / 2
    euler = x - slope
    expected = x - (slope + euler - mean(euler, 1.0)) / 2
    assert torch.allclose(integrate(x, mean, [2.0, 1.0], "heun"), expected)


@pytest.mark.parametrize(("solver", "final"), [("multistep", 0.0), ("multistep", 0.3), ("heun", 0.0), ("euler", 0.3)])
def test_variance_preserving_steps_are_the_same_steps(solver: str, final: float) -> None:
    mean = exact_mean(torch.randn(20, 6, generator=seeded(0), dtype=torch.float64), math.inf)
    x = 10 * torch.randn(4, 6, generator=seeded(1), dtype=torch.float64)
    sigmas = [10.0, 6.0, 2.5, 1.0, 0.4, final]
    steps = variance_preserving(plan_steps(sigmas, solver), final)
    state, history = x / math.sqrt(101), []
    for step in steps:
        history.insert(0, mean(state * math.sqrt(1 + step.sigma**2), step.sigma))
        state = step(state, history)
    assert torch.allclose(state * math.sqrt(1 + final**2), integrate(x, mean, sigmas, solver))


@pytest.mark.parametrize(("growth", "nodes"), [(0.5, 3), (1.2, 3), (1.3, 2), (1.9, 2), (2.1, 1), (10.0, 1)])
def test_a_step_much_longer_than_the_last_has_a_lower_order(growth: float, nodes: int) -> None:
    lengths = [0.1, 0.1, 0.1, 0.1 * growth]
    sigmas = [math.exp(-sum(lengths[:i])) for i in range(5)]
    weights = plan_steps(sigmas, "multistep", 3, False)[-1].weights
    assert len(weights) == nodes and sum(weights) == pytest.approx(1 - math.exp(-0.1 * growth))
    # Order 2 without the corrector is DPM-Solver++'s at any spacing.
    assert len(plan_steps(sigmas, "multistep", 2, False)[-1].weights) == 2


@pytest.mark.parametrize("order", [2, 3])
def test_a_long_last_step_is_no_worse_than_euler(order: int) -> None:
    # The field lines of normal data with the standard deviation 1/2 are x ∝ √(σ² + 1/4).
    sigmas = [14.6, 5.1, 2.3, 1.2, 0.57, 0.03]
    x = torch.full((1, 1), sigmas[0], dtype=torch.float64)
    end = x * math.hypot(sigmas[-1], 0.5) / math.hypot(sigmas[0], 0.5)
    mean = lambda x, sigma: x / (1 + 4 * sigma**2)  # noqa: E731
    euler, multistep = (abs(integrate(x, mean, sigmas, *solver) - end) for solver in (("euler",), ("multistep", order)))
    assert multistep < euler


def test_a_long_step_does_no_harm() -> None:
    # A spacing as it is fitted at D = ∞: short steps where field lines separate, one long step to the plane.
    charges = torch.randn(30, 16, generator=seeded(0), dtype=torch.float64)
    mean = exact_mean(charges, math.inf)
    x = 40 * torch.randn(200, 16, generator=seeded(1), dtype=torch.float64)
    end = integrate(x, mean, [40.0, *spaced(4, 0.4, 14), 0.01, 0.0])
    assert torch.cdist(end, charges).min(1).values.max() < 1e-6


@pytest.mark.parametrize("solver", [("rk45",), ("Heun",), ("multistep", 0), ("multistep", 4), ("multistep", 2.0)])
def test_unknown_solvers_and_orders_raise(solver: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match=r"`solver` must be one of|`plan_steps`\) must be 1, 2 or 3, but is"):
        plan_steps([4.0, 2.0, 1.0], *solver)  # type: ignore[arg-type]


@pytest.mark.parametrize("sigmas", [[], [1.0]])
def test_a_run_has_two_levels(sigmas: list[float]) -> None:
    with pytest.raises(ValueError, match="`sigmas` must be two noise levels or more"):
        plan_steps(sigmas)


@pytest.mark.parametrize("sigmas", [[4.0, 0.0, 1.0], [-1.0, 2.0], [math.nan, 1.0], [math.inf, 1.0], [2.0, 2.0, 1.0]])
def test_sigmas_of_no_run_raise(sigmas: list[float]) -> None:
    with pytest.raises(ValueError, match=r"`sigmas` must be finite and positive \(the last may be 0\)"):
        plan_steps(sigmas)
