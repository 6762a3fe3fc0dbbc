"""Errors of log-densities are within the tolerance, and within the bound that is returned with them."""

import pytest
import torch

from diffusers_pfgm import PoissonFlow, PoissonFlowScheduler
from tests.flow.known_densities import GaussianMixture, charges_in, density, draw_points, flow_of_charges
from tests.networks import seeded


@pytest.mark.parametrize(("aug_dim", "sigma_max"), [(1.0, 40.0), (64.0, 40.0), (None, 40.0), (2.5, 10.0)])
def test_truncation_bounds_the_error_of_ending_at_sigma_max(aug_dim: float | None, sigma_max: float) -> None:
    charges = charges_in(3) + 0.5
    x = draw_points(charges, aug_dim, 0.3, 16)
    result = flow_of_charges(charges, aug_dim, "sample", sigma_min=0.3, sigma_max=sigma_max).log_prob(x, tolerance=1e-6)
    error = (result.log_prob - density(x, charges, aug_dim, 0.3)).abs()
    assert (error <= result.truncation).all() and (error > 1e-6).any()
    assert result.truncation.max() < 3 * 3 / sigma_max**2  # terms of second order, N + D = 4 and ‖y‖² of about 1


def outliers(charges: torch.Tensor, aug_dim: float | None, sigma: float) -> torch.Tensor:
    """Four random points with the density of charges, and four at 3, 5, 8 and 10 standard deviations from a charge."""
    dim = charges.shape[1]
    directions = torch.nn.functional.normalize(torch.randn(4, dim, generator=seeded(9), dtype=torch.float64), dim=1)
    distances = torch.tensor([3.0, 5.0, 8.0, 10.0], dtype=torch.float64).unsqueeze(1) * sigma * dim**0.5
    return torch.cat([draw_points(charges, aug_dim, sigma, 4), charges[:4] + directions * distances])


@pytest.mark.slow
@pytest.mark.parametrize("aug_dim", [1.0, 5.0, 64.0, None])
@pytest.mark.parametrize("dim", [1, 2, 16])
def test_errors_are_within_the_tolerance_and_the_bound(dim: int, aug_dim: float | None) -> None:
    charges = charges_in(dim, 5)
    x = outliers(charges, aug_dim, 0.03)
    exact = density(x, charges, aug_dim, 0.03)
    flow = flow_of_charges(charges, aug_dim, "sample", sigma_min=0.03, sigma_max=5000.0)
    for tolerance in (3e-2, 3e-5) if dim < 16 else (3e-3,):
        result = flow.log_prob(x, tolerance=tolerance)
        error = (result.log_prob - exact).abs()
        assert (error <= tolerance).all() and (error <= result.truncation).all()
        assert result.truncation.max() < 10 * tolerance


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "stds"), [(1, [0.5]), (2, [0.5]), (2, [0.02, 0.3, 0.1]), (3072, [0.5])])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_log_prob_of_outliers_of_smooth_data(dim: int, stds: list[float], dtype: torch.dtype) -> None:
    # Isotropic, so that a single probe of ±1 gives the exact trace of one Gaussian.
    means = torch.randn(len(stds), dim, generator=seeded(dim), dtype=dtype) * (0.5 if len(stds) > 1 else 0.1)
    model = GaussianMixture(means, torch.tensor(stds, dtype=dtype))
    directions = torch.nn.functional.normalize(torch.randn(5, dim, generator=seeded(1), dtype=torch.float64), dim=1)
    deviations = torch.tensor([1.0, 3.0, 5.0, 8.0, 10.0], dtype=torch.float64).unsqueeze(1)
    x = means[-1].double() + directions * deviations * stds[-1] * (1.0 if dim < 3 else dim**0.5)
    exact = GaussianMixture(means.double(), model.stds.double()).log_prob(x, 0.002)
    options = {"aug_dim": None, "prediction_type": "sample", "sigma_min": 0.002, "sigma_max": 8000.0}
    flow = PoissonFlow(model, PoissonFlowScheduler(**options))
    for tolerance in (3e-2, 3e-4):
        result = flow.log_prob(x, None, "exact" if dim < 3 else "hutchinson", 1, seeded(), tolerance=tolerance)
        error = (result.log_prob - exact).abs()
        assert (error <= result.truncation).all()
        assert (error <= tolerance).all() or (dtype == torch.float32 and result.truncation.max() > tolerance)


@pytest.mark.slow
def test_the_tolerance_is_in_nats_in_many_dimensions() -> None:
    charges = charges_in(80, 10)
    x = draw_points(charges, 1.0, 0.05, 1)
    result = flow_of_charges(charges, 1.0, "sample", sigma_min=0.05, sigma_max=1e6).log_prob(x, tolerance=3e-2)
    error = (result.log_prob - density(x, charges, 1.0, 0.05)).abs()
    assert error < result.truncation < 3e-2
