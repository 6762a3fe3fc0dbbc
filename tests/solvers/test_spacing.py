"""Steps are short where x̂ changes fast, for any number of steps."""

import itertools
import math
from typing import Any

import pytest
import torch

from diffusers_pfgm import ChargeField, PoissonFlowScheduler, fit_sigmas, posterior_mean
from diffusers_pfgm.solvers.spacing import KNOTS, check_knots, fit_knots, geometric_sigmas, knotted_sigmas
from tests.networks import seeded


def test_equal_ratios() -> None:
    sigmas = geometric_sigmas(40.0, 0.01, 7)
    assert sigmas[0] == pytest.approx(40) and sigmas[-1] == pytest.approx(0.01) and len(sigmas) == 7
    for a, b in itertools.pairwise(sigmas):
        assert b / a == pytest.approx((0.01 / 40) ** (1 / 6))
    assert geometric_sigmas(40.0, 0.01, 1) == pytest.approx([40])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((0.0, 0.01, 5), "`sigma_max` must be a finite number > 0, but is 0.0"),
        ((1.0, 0.0, 5), "`sigma_min` must be a finite number > 0, but is 0.0"),
        ((1.0, 0.1, -1), "`count` must be a whole number >= 1, but is -1"),
    ],
)
def test_equal_ratios_need_positive_levels(options: tuple[float, float, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        geometric_sigmas(*options)


@pytest.mark.parametrize("count", [1, 2, 5, 33, 400])
def test_knots_in_equal_ratios_give_equal_ratios(count: int) -> None:
    sigmas = knotted_sigmas(geometric_sigmas(40.0, 0.01, 9), count)
    assert sigmas == pytest.approx(geometric_sigmas(40.0, 0.01, count))


def test_knots_divide_the_steps_equally() -> None:
    # Half of the steps are above 1 and half below, each half with equal ratios.
    sigmas = knotted_sigmas([100.0, 1.0, 0.1], 9)
    assert sigmas == pytest.approx([*geometric_sigmas(100.0, 1.0, 5), *geometric_sigmas(1.0, 0.1, 5)[1:]])


def test_steps_are_dense_where_two_charges_separate() -> None:
    # Field lines to charges at ±1 separate at σ of about 1: x̂ is 0 at large σ and ±1 at small σ.
    charges = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    x = 40 * torch.randn(64, 1, generator=seeded(), dtype=torch.float64)
    knots = fit_knots(lambda x, sigma: posterior_mean(x, sigma, charges, None), x, geometric_sigmas(40.0, 0.01, 200))
    assert len(knots) == KNOTS and knots[0] == pytest.approx(40) and knots[-1] == pytest.approx(0.01)
    check_knots(knots, (40.0, 0.01))
    between = sum(0.2 < sigma < 5 for sigma in knots) / len(knots)
    assert between > 0.7 > 2 * math.log(5 / 0.2) / math.log(40 / 0.01) * 0.9  # 39 % with equal ratios


def test_where_x_hat_is_constant_some_steps_remain() -> None:
    def moves_once(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return torch.linspace(-1, 1, 5).expand_as(x) * min(max(math.log2(2 / sigma), 0), 1)

    knots = fit_knots(moves_once, torch.ones(2, 5), geometric_sigmas(40.0, 0.01, 200))
    # With a floor of 2 % on 7.6 of 8.3 units of λ that is about 0.15 / (0.15 + 0.7) of 33 knots; without it, the ends.
    assert 4 <= sum(not 0.95 < sigma < 2.05 for sigma in knots) <= 8


def test_knots_scale_with_the_data() -> None:
    charges = torch.randn(6, 3, generator=seeded(), dtype=torch.float64)
    x = torch.randn(32, 3, generator=seeded(1)) * 40
    knots = [
        fit_knots(
            lambda x, sigma, unit=unit: posterior_mean(x, sigma, unit * charges, 2.0),
            unit * x.double(),
            geometric_sigmas(40.0 * unit, 0.01 * unit, 100),
        )
        for unit in (1.0, 1000.0)
    ]
    assert [1000 * sigma for sigma in knots[0]] == pytest.approx(knots[1], rel=1e-6)


def test_a_constant_or_infinite_x_hat_has_no_spacing() -> None:
    for value, message in ((0.0, "the same x̂ at every noise level"), (math.nan, "NaN or infinity at some noise level")):
        with pytest.raises(ValueError, match=message):
            fit_knots(lambda x, sigma, value=value: torch.full_like(x, value), torch.ones(2, 3), [2.0, 1.0, 0.5])


@pytest.mark.parametrize("knots", [[], [1.0], [1.0, 2.0], [2.0, 2.0, 1.0], [1.0, 0.0], [math.inf, 1.0]])
def test_bad_knots_are_explained(knots: list[float]) -> None:
    with pytest.raises(
        ValueError, match="`sigma_knots` must be two or more positive noise levels that decrease strictly"
    ):
        PoissonFlowScheduler(sigma_knots=knots)


def test_knots_that_are_not_numbers_are_explained() -> None:
    with pytest.raises(ValueError, match="`sigma_knots` must be a list of numbers"):
        PoissonFlowScheduler(sigma_knots=[math.nan, 1.0])


def test_knots_of_another_range_are_explained() -> None:
    knots = [40.0, 1.0, 0.01]
    assert PoissonFlowScheduler(sigma_knots=knots).config.sigma_knots == knots
    with pytest.raises(ValueError, match=r"from 40.0 to 0.01, but the network's noise levels range from 80.0 to 0.01"):
        PoissonFlowScheduler(sigma_knots=knots, sigma_max=80.0)
    with pytest.raises(ValueError, match=r"fitted from 40.0 to 0.01, but the network's noise levels range from 157"):
        PoissonFlowScheduler(prediction_type="epsilon", sigma_knots=knots, beta_schedule="linear")


def decode_to_digit(field: ChargeField, scheduler: Any, calls: int, x: torch.Tensor) -> torch.Tensor:
    scheduler.set_timesteps(calls)
    for t in scheduler.timesteps:
        x = scheduler.step(field(x, t).sample, t, x).prev_sample
    return torch.cdist(x.flatten(1), field.charges.points.flatten(1)).argmin(1)


# Expected: the mean of four seeds is 0.82, 0.96, 0.983 and 0.996 at D = 1. The standard error of 512 samples is 0.009
# at 8 calls. tests/benchmarks asks for these means.
SHELL_BARS = {5: 0.77, 8: 0.935, 10: 0.965, 15: 0.98}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("aug_dim", "prior", "bars"),
    [
        (1.0, "plane", {10: 0.86, 15: 0.94}),
        (1.0, "shell", SHELL_BARS),
        (64.0, "shell", SHELL_BARS),
        (None, "plane", {10: 0.95, 15: 0.97}),
    ],
)
def test_fitted_steps_end_at_the_digit_of_many_steps(
    digits: torch.Tensor, aug_dim: float | None, prior: str, bars: dict[int, float]
) -> None:
    # Expected: the mean of three seeds is 0.90 and 0.96 at D = 1. The proportion of 512 has a standard error of 0.013.
    # Without a fit it is 0.84 and 0.94 at D = 1, and 0.84 and 0.92 at D = ∞. By Euler's method it is 0.67 at 10 calls
    # and 0.95 at 100. Of 512 samples at most one has another digit after 200 steps than after 60.
    # Started on the shell, every D has the shares of D = ∞.
    field, plain = ChargeField(digits, aug_dim), PoissonFlowScheduler(aug_dim, prior=prior)
    fitted = fit_sigmas(field, plain, (1, 8, 8), seeded(100))
    x = plain.sample_prior((512, 1, 8, 8), seeded(), dtype=torch.float64)
    expected = decode_to_digit(field, plain, 60, x)
    for calls, bar in bars.items():
        same = decode_to_digit(field, fitted, calls, x) == expected
        assert same.double().mean() >= bar
