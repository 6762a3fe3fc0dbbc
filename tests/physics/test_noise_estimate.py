"""The estimate of a sample's noise level: its value by another integration, its limits and its gradient."""

import math

import pytest
import torch

from diffusers_pfgm.physics.kernel import PoissonKernel
from diffusers_pfgm.physics.noise_estimate import NoiseEstimate
from tests.networks import seeded

MEAN, STD, SPREAD = -0.4, 0.6, 0.12  # data_mean, data_std and mean_square_std


def x_with(deviation: torch.Tensor, size: int) -> torch.Tensor:
    """Samples (B, size) with these values of ‖x − μ‖²/N."""
    return MEAN + deviation.sqrt().unsqueeze(1).expand(-1, size)


def integrated(deviation: float, sigma: float, aug_dim: float, size: int) -> float:
    """ŝ by a sum over 20,001 equally spaced values of ln s in float64."""
    variance = STD**2
    low = math.log(sigma) - min(10 * (2 * aug_dim) ** -0.5, 6)
    high = max(math.log(sigma), math.log(deviation) / 2) + 9
    log_s = torch.linspace(low, high, 20_001, dtype=torch.float64)
    s = log_s.exp()
    spread = SPREAD**2 + 4 * s**2 * variance / size + 2 * s**4 / size
    prior = aug_dim * (sigma / s).log() - aug_dim * (sigma / s) ** 2 / 2
    likelihood = -((deviation - variance - s**2) ** 2) / (2 * spread) - spread.log() / 2
    return float(((prior + likelihood).softmax(0) * log_s).sum().exp())


@pytest.mark.parametrize("aug_dim", [0.2, 1.0, 5.0, 64.0, 2048.0])
@pytest.mark.parametrize("size", [16, 784, 49_152])
def test_it_is_the_posterior_mean_of_the_logarithm(aug_dim: float, size: int) -> None:
    estimate = NoiseEstimate(aug_dim, MEAN, STD, SPREAD)
    for sigma in (0.002, 0.1, 1.0, 40.0):
        ratios = [0.5, 1.0, 1.6, 20.0] if aug_dim < 10 else [0.95, 1.0, 1.05]
        deviations = [STD**2 + SPREAD * offset + (sigma * ratio) ** 2 for ratio in ratios for offset in (-1, 0, 2)]
        x = x_with(torch.tensor(deviations, dtype=torch.float64), size)
        expected = torch.tensor([integrated(value, sigma, aug_dim, size) for value in deviations], dtype=torch.float64)
        error = (estimate(x, sigma).flatten() / expected).log().abs()
        assert error.max() < 0.02, (sigma, error)


@pytest.mark.parametrize("aug_dim", [1.0, 5.0, 64.0])
def test_far_from_the_data_it_is_the_noise_level_of_the_sample(aug_dim: float) -> None:
    noise = PoissonKernel(aug_dim).sample((500, 1, 28, 28), 40.0, seeded())
    noise = noise[noise.flatten(1).norm(dim=1) > 28 * 10]
    estimate = NoiseEstimate(aug_dim, MEAN, STD, SPREAD)(MEAN + noise, 40.0).flatten()
    # ‖noise‖²/N, with the share of the prior that Bayes' rule adds: E[1/s²] is (N + D) / (‖noise‖² + D σ²).
    expected = ((noise.flatten(1).square().sum(1) + aug_dim * 40.0**2) / (784 + aug_dim)).sqrt()
    assert (estimate / expected).log().abs().max() < 0.02


def test_it_becomes_sigma_as_d_grows() -> None:
    x = torch.randn(8, 784, generator=seeded())
    for sigma in (0.002, 1.0, 80.0):
        ratio = NoiseEstimate(1e9, MEAN, STD, SPREAD)(sigma * x, sigma) / sigma
        assert torch.allclose(ratio, torch.ones(8, 1), rtol=0, atol=1e-4)


def test_its_gradient_is_that_of_its_values() -> None:
    x = torch.randn(3, 12, generator=seeded(), dtype=torch.float64, requires_grad=True)
    sigma = torch.tensor([[0.1], [0.5], [3.0]], dtype=torch.float64)
    estimate = NoiseEstimate(1.0, MEAN, STD, SPREAD)
    # The nodes of the integral are constants of the gradient, which so differs by the error of the integral.
    assert torch.autograd.gradcheck(lambda x: estimate(x, sigma), x, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_any_norm_and_sigma_is_safe(dtype: torch.dtype) -> None:
    largest = min(1e6, float(torch.finfo(dtype).max) / 2) / math.sqrt(784)
    x = torch.ones(6, 784, dtype=dtype) * torch.tensor([0.0, 1e-3, 0.6, 3.0, 1e3, largest]).unsqueeze(1).to(dtype)
    for aug_dim in (0.01, 1.0, 1e9):
        for sigma in (0.002, 1.0, 80.0):
            estimate = NoiseEstimate(aug_dim, 0.0, 0.01, 0.0)(x, sigma)
            assert estimate.dtype == torch.float32
            assert estimate.isfinite().all() and (estimate > 0).all()


def test_a_row_does_not_depend_on_its_batch() -> None:
    x = torch.randn(5, 2, 3, 4, generator=seeded())
    sigma = torch.rand(5, 1, 1, 1, generator=seeded()) + 0.1
    estimate = NoiseEstimate(1.0, MEAN, STD, SPREAD)
    rows = torch.cat([estimate(x[i : i + 1], sigma[i].item()) for i in range(5)])
    assert torch.allclose(estimate(x, sigma), rows, rtol=1e-6)


def test_extremes_of_x_and_sigma_are_finite() -> None:
    for value in (0.0, 1e15, 1e18, 3e38):
        for sigma in (1e-8, 1.0, 1e4):
            assert NoiseEstimate(0.01, 0.0, 0.01, 0.0)(torch.full((1, 64), value), sigma).isfinite().all(), value
