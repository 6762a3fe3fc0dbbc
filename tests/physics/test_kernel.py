"""The kernel is a normalized density, its draws follow it, and at D = 1 they are the prior of PFGM."""

import math
from typing import Any

import pytest
import scipy.stats
import torch

from diffusers_pfgm import PoissonKernel
from tests.networks import seeded

DIMS = [0.05, 0.5, 1.0, 2.5, 64.0, math.inf]


@pytest.mark.parametrize("aug_dim", DIMS[1:])
@pytest.mark.parametrize("sigma", [0.3, 4.0])
def test_density_integrates_to_one_on_a_line(aug_dim: float, sigma: float) -> None:
    # Substituting x = tan(t) makes the infinite line finite; the heavy tail of D = 0.5 needs it.
    t = torch.linspace(-math.pi / 2, math.pi / 2, 200_002, dtype=torch.float64)[1:-1]
    x, jacobian = t.tan(), 1 / t.cos().square()
    density = PoissonKernel(aug_dim).log_prob(x.unsqueeze(1), sigma).exp() * jacobian
    # For D < 1 the integrand has a singularity at the ends of t, which the trapezoid rule integrates to 1e-2 only.
    assert torch.trapezoid(density, t).item() == pytest.approx(1, abs=1e-2 if aug_dim < 1 else 1e-4)


@pytest.mark.parametrize("dim", [1, 5, 64])
@pytest.mark.parametrize("aug_dim", [0.5, 1.0, 2.5, 64.0])
def test_log_prob_is_the_multivariate_t(dim: int, aug_dim: float) -> None:
    x = 3 * torch.randn(20, dim, generator=seeded(), dtype=torch.float64)
    expected = scipy.stats.multivariate_t.logpdf(x.numpy(), shape=0.49, df=aug_dim, loc=[0.0] * dim)
    assert PoissonKernel(aug_dim).log_prob(x, 0.7).numpy() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("aug_dim", [1e7, 1e12, math.inf])
def test_large_aug_dim_is_gaussian(aug_dim: float) -> None:
    x = torch.randn(20, 30, generator=seeded(), dtype=torch.float64)
    expected = scipy.stats.norm.logpdf(x.numpy(), scale=2.0).sum(1)
    # The difference is O(N² / D) = 1e-4 at D = 1e7.
    assert PoissonKernel(aug_dim).log_prob(x, 2.0).numpy() == pytest.approx(expected, abs=1e-4)


def test_log_prob_is_continuous_where_the_formula_of_its_constant_changes() -> None:
    x = torch.randn(4, 100, generator=seeded(), dtype=torch.float64)
    below, above = PoissonKernel(2e4 - 1e-6).log_prob(x), PoissonKernel(2e4 + 1e-6).log_prob(x)
    assert torch.allclose(below, above, rtol=0, atol=1e-9)  # the last term of the series is 4e-8 here


@pytest.mark.parametrize("aug_dim", DIMS)
@pytest.mark.parametrize("dim", [1, 7])
def test_draws_follow_the_density(aug_dim: float, dim: int) -> None:
    x = PoissonKernel(aug_dim).sample((20_000, dim), 2.0, seeded(1), dtype=torch.float64)
    squares = (x / 2).square().sum(1).numpy()
    if math.isinf(aug_dim):
        radius_test = scipy.stats.kstest(squares, scipy.stats.chi2(dim).cdf)
    else:
        share = aug_dim / (aug_dim + squares)  # small where a radius is large, so that its digits are kept
        radius_test = scipy.stats.kstest(share, scipy.stats.beta(aug_dim / 2, dim / 2).cdf)
    assert radius_test.pvalue > 0.01
    assert scipy.stats.binomtest(int((x[:, 0] > 0).sum()), len(x)).pvalue > 0.01


def test_prior_is_uniform_on_the_hemisphere() -> None:
    z, dim = 40.0, 6
    x = PoissonKernel(1.0).sample((20_000, dim), z, seeded(2), dtype=torch.float64)
    points = torch.nn.functional.normalize(torch.cat([x, torch.full((len(x), 1), z)], dim=1), dim=1)
    # A squared coordinate of a uniform direction in R^(N+1) is Beta(1/2, N/2).
    for axis in (0, 3, dim):
        assert scipy.stats.kstest(points[:, axis].square().numpy(), scipy.stats.beta(0.5, dim / 2).cdf).pvalue > 0.01


@pytest.mark.parametrize(("dim", "draws"), [(64, 40_000), (3072, 20_000)])
def test_prior_radius_has_the_authors_quantiles(statistics: dict[str, Any], dim: int, draws: int) -> None:
    radius = PoissonKernel(1.0).sample((draws, dim), 40.0, seeded(0)).norm(dim=1)
    for probability, quantile in statistics["prior_radius"][f"n{dim}_z40_unclipped"]["quantiles"].items():
        assert (radius < quantile).double().mean().item() == pytest.approx(float(probability), abs=0.01)


def test_each_row_is_drawn_from_its_own_generator() -> None:
    kernel = PoissonKernel(1.0)
    whole = kernel.sample((3, 2, 4), 2.0, [seeded(i) for i in range(3)])
    for i in range(3):
        assert torch.equal(whole[i : i + 1], kernel.sample((1, 2, 4), 2.0, seeded(i)))


def test_draws_do_not_change_the_global_generator() -> None:
    before = torch.get_rng_state()
    PoissonKernel(1.0).sample((3, 5), 1.0, seeded())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_draws_are_finite_in_every_dtype(dtype: torch.dtype) -> None:
    x = PoissonKernel(0.05).sample((1000, 3), 40.0, seeded(), dtype=dtype)
    assert x.dtype == dtype and x.isfinite().all()


@pytest.mark.parametrize("aug_dim", [0, -1.0, math.nan])
def test_aug_dim_must_be_positive(aug_dim: float) -> None:
    with pytest.raises(ValueError, match="`aug_dim` must be a number > 0"):
        PoissonKernel(aug_dim)


def test_a_list_of_generators_must_have_one_for_each_sample() -> None:
    with pytest.raises(ValueError, match="list of 2, but the batch has 3"):
        PoissonKernel(1.0).sample((3, 2), 1.0, [seeded(), seeded()])


def test_sigma_must_be_a_number_or_one_for_each_sample() -> None:
    assert PoissonKernel(1.0).sample((3, 2), torch.ones(3)).shape == (3, 2)
    assert PoissonKernel(1.0).sample((3, 2), torch.tensor(2.0)).shape == (3, 2)
    with pytest.raises(ValueError, match=r"`sigma` must be a number or have the shape \(1,\), but has \(5,\)"):
        PoissonKernel(1.0).sample((1, 3), torch.ones(5))


def test_each_row_has_its_own_scale() -> None:
    kernel, sigma = PoissonKernel(1.0), torch.tensor([0.5, 4.0, 40.0])
    expected = sigma.view(3, 1, 1) * kernel.sample((3, 2, 4), 1.0, seeded())
    assert torch.allclose(kernel.sample((3, 2, 4), sigma, seeded()), expected)


def test_log_prob_of_float32_is_that_of_float64() -> None:
    x, kernel = 3 * torch.randn(4, 3072, generator=seeded()), PoissonKernel(64.0)
    log_prob, expected = kernel.log_prob(x, 0.7), kernel.log_prob(x.double(), 0.7)
    assert log_prob.dtype == torch.float32 and torch.equal(log_prob, expected.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("aug_dim", [0.005, 1.0])
def test_draws_beyond_a_dtype_keep_their_direction(dtype: torch.dtype, aug_dim: float) -> None:
    x = PoissonKernel(aug_dim).sample((4000, 2), 40.0, seeded(3), dtype=dtype)
    assert x.dtype == dtype and x.isfinite().all()
    x = x.double()[x.double().abs().amax(1) > torch.finfo(dtype).max ** 0.5]  # rows whose radius may be limited
    x = x / x.abs().amax(1, keepdim=True)
    assert len(x) > 50 or aug_dim == 1.0
    angle = torch.atan2(x[:, 1], x[:, 0]).numpy() / (2 * math.pi) + 0.5
    assert not len(x) or scipy.stats.kstest(angle, "uniform").pvalue > 0.01


def test_log_prob_is_finite_for_every_possible_draw() -> None:
    for size in (1e150, 1e200, 1e300):
        x = torch.tensor([[0.6, -0.8]], dtype=torch.float64) * size
        expected = -(2 + 0.01) * math.log(size)  # the part −(N + D) log ‖x‖, plus a constant
        constant = PoissonKernel(0.01).log_prob(x / size * 1e100, 0.7).item() + (2 + 0.01) * math.log(1e100)
        assert PoissonKernel(0.01).log_prob(x, 0.7).item() == pytest.approx(expected + constant, rel=1e-12)


def test_log_prob_has_at_least_the_range_of_float32() -> None:
    x = torch.full((2, 200_000), 0.5)
    for dtype in (torch.float16, torch.bfloat16):
        log_prob = PoissonKernel(1.0).log_prob(x.to(dtype), 80.0)  # about -1e6, which float16 does not have
        assert log_prob.dtype == torch.float32 and torch.equal(log_prob, PoissonKernel(1.0).log_prob(x, 80.0))


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf, torch.tensor([1.0, -1.0])])
def test_log_prob_needs_a_positive_sigma(sigma: float | torch.Tensor) -> None:
    with pytest.raises(ValueError, match="`sigma` must be a finite number > 0 for every sample, but is"):
        PoissonKernel(1.0).log_prob(torch.ones(2, 3), sigma)


@pytest.mark.parametrize("shape", [(2, 1), (3,), (1, 2)])
def test_log_prob_needs_a_number_or_a_sigma_for_each_sample(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"`sigma` must be a number or have the shape \(2,\), but has"):
        PoissonKernel(1.0).log_prob(torch.ones(2, 3), torch.ones(shape))


@pytest.mark.parametrize("max_norm", [math.nan, 0.0, -1.0])
def test_max_norm_must_be_positive(max_norm: float) -> None:
    with pytest.raises(ValueError, match="`max_norm` must be a number > 0 or None, but is"):
        PoissonKernel(1.0).sample((2, 3), max_norm=max_norm)
