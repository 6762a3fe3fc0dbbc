"""Solvers of diffusers on the field of charges, at any D."""

import pytest
import torch

from diffusers_pfgm.examples.diffusers_solvers import DIFFUSERS_SOLVERS, integrate_by_diffusers, karras_sigmas
from diffusers_pfgm.physics.field import posterior_mean
from diffusers_pfgm.solvers.multistep import integrate
from diffusers_pfgm.solvers.spacing import geometric_sigmas
from tests.networks import seeded


@pytest.mark.parametrize("aug_dim", [1.0, None])
@pytest.mark.parametrize("name", DIFFUSERS_SOLVERS)
def test_solvers_follow_the_field_lines(name: str, aug_dim: float | None) -> None:
    charges = torch.randn(4, 1, 2, 2, generator=seeded(0), dtype=torch.float64)

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return posterior_mean(x, sigma, charges, aug_dim)

    x = 20 * torch.randn(8, 1, 2, 2, generator=seeded(1), dtype=torch.float64)
    expected = integrate(denoise, x, [*geometric_sigmas(20.0, 0.5, 400), 0.0])
    errors = []
    for count in (6, 30):
        ends = integrate_by_diffusers(name, denoise, x, karras_sigmas(20.0, 0.5, count))
        errors.append((ends - expected).abs().max().item())
    assert errors[1] < 0.05 and errors[1] < errors[0] / 10


def test_karras_sigmas_are_those_of_diffusers() -> None:
    from diffusers import EDMEulerScheduler

    scheduler = EDMEulerScheduler(sigma_min=0.01, sigma_max=50.0)
    scheduler.set_timesteps(7)
    assert karras_sigmas(50.0, 0.01, 7) == pytest.approx(scheduler.sigmas[:-1].tolist(), rel=1e-5)
