"""Training noise is the Student t kernel conditioned on its norm, and its flow ends at the data."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy import stats

from diffusers_pfgm import PoissonFlowScheduler, PoissonKernel
from diffusers_pfgm.physics.bounded_noise import reach, sample_bounded
from tests.networks import seeded

CPU = torch.device("cpu")


def draws(aug_dim: float, count: int, dim: int) -> torch.Tensor:
    return sample_bounded(PoissonKernel(aug_dim), (count, dim), torch.ones(count), seeded(), CPU, torch.float32)


@pytest.mark.parametrize("dim", [1, 2, 64])
@pytest.mark.parametrize("aug_dim", [0.01, 0.2, 1.0, 2.5, 64.0])
def test_norms_follow_the_conditioned_kernel(aug_dim: float, dim: int) -> None:
    squares = draws(aug_dim, 4000, dim).double().square().sum(1).numpy()
    # D / (‖n‖² + D) is distributed as Beta(D/2, N/2), restricted to values above the one at the reach.
    law = stats.beta(aug_dim / 2, dim / 2)
    limit = aug_dim / (reach(dim) ** 2 + aug_dim)
    quantiles = law.sf(aug_dim / (squares + aug_dim)) / law.sf(limit)
    assert quantiles.max() <= 1 + 1e-6 and stats.kstest(quantiles, "uniform").pvalue > 1e-3


def test_directions_are_uniform() -> None:
    x = draws(0.2, 20_000, 2).double()
    angles = torch.atan2(x[:, 1], x[:, 0]) / (2 * math.pi) + 0.5
    assert stats.kstest(angles.numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_draws_within_the_reach_equal_those_of_the_kernel(dtype: torch.dtype) -> None:
    sigma, shape = torch.linspace(0.1, 8.0, 32), (32, 1, 4, 4)
    for aug_dim in (64.0, 1e6):
        kernel = PoissonKernel(aug_dim)
        noise = sample_bounded(kernel, shape, sigma, seeded(), CPU, dtype)
        expected = kernel.sample(shape, sigma, seeded(), dtype=dtype)
        assert noise.dtype == dtype and torch.allclose(noise, expected, rtol=2e-3 if dtype == torch.float16 else 1e-6)


def test_each_generator_draws_its_own_row() -> None:
    kernel, sigma = PoissonKernel(0.2), torch.tensor([0.5, 1.0, 2.0])
    rows = sample_bounded(kernel, (3, 5), sigma, [seeded(i) for i in range(3)], CPU, torch.float32)
    for i, row in enumerate(rows):
        assert torch.equal(row, sample_bounded(kernel, (1, 5), sigma[i : i + 1], seeded(i), CPU, torch.float32)[0])


@pytest.mark.slow
@pytest.mark.parametrize("aug_dim", [0.2, 1.0])
def test_the_flow_of_bounded_noise_ends_at_the_data(aug_dim: float) -> None:
    """Two charges with the weights 0.3 and 0.7 in two dimensions, and x̂ for the conditioned kernel."""
    charges, weights = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64), torch.tensor([0.3, 0.7])

    def network(x: torch.Tensor, sigma: torch.Tensor) -> Any:
        sigma = sigma.double().reshape(-1, 1)
        distance = (x.double().unsqueeze(1) - charges).norm(dim=2)
        density = torch.exp(-(2 + aug_dim) / 2 * torch.log(distance**2 + aug_dim * sigma**2))
        posterior = density * weights * (distance <= reach(2) * sigma)
        nearest = torch.nn.functional.one_hot(distance.argmin(1), 2)  # beyond the reach by the error of a step
        posterior = torch.where(posterior.sum(1, keepdim=True) > 0, posterior, nearest)
        return SimpleNamespace(sample=(posterior / posterior.sum(1, keepdim=True)) @ charges)

    limit = 400.0 * reach(2)
    scheduler = PoissonFlowScheduler(aug_dim, 1e-3, 400.0, "sample", max_norm=limit)
    scheduler.set_timesteps(300)
    x = scheduler.sample_prior((20_000, 2), seeded(), dtype=torch.float64)
    for timestep in scheduler.timesteps:
        x = scheduler.step(network(x, timestep).sample, timestep, x).prev_sample
    assert (x.unsqueeze(1) - charges).norm(dim=2).min(1).values.max() < 1e-2
    # Five standard errors of a proportion of 20,000 draws, and a margin since σ_max = 400 is finite.
    assert (x[:, 0] < 0).double().mean().item() == pytest.approx(0.3, abs=0.02)
