"""Solvers of diffusers on the field of charges, at any D."""

from typing import Any

import pytest
import torch

from diffusers_pfgm import PFGMPipeline, PoissonFlowScheduler
from diffusers_pfgm.examples.diffusers_solvers import (
    DIFFUSERS_SOLVERS,
    draw_by_diffusers,
    integrate_by_diffusers,
    karras_sigmas,
)
from diffusers_pfgm.physics.field import posterior_mean
from diffusers_pfgm.solvers.multistep import integrate
from diffusers_pfgm.solvers.spacing import geometric_sigmas
from tests.networks import make_smallest_unet, seeded


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


STUDENT_T = {"sigma_data": 0.5, "data_mean": 0.0, "mean_square_std": 0.1}
DDPM = {"aug_dim": None, "sigma_min": None, "sigma_max": None, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("name", DIFFUSERS_SOLVERS)
@pytest.mark.parametrize("options", [STUDENT_T, STUDENT_T | {"prior": "hemisphere"}, DDPM])
def test_images_are_those_of_the_pipeline(name: str, options: dict[str, Any]) -> None:
    """Runs of many steps by both solvers end at the same images, whatever the prior and the scale of the state."""
    scheduler = PoissonFlowScheduler(prediction_type="epsilon", **options)
    pipe = PFGMPipeline(make_smallest_unet(1), scheduler)
    pipe.set_progress_bar_config(disable=True)
    sigmas = karras_sigmas(*scheduler.sigma_range, 60)
    latents = scheduler.sample_prior((4, 1, 8, 8), seeded(0))
    ours = pipe(sigmas=sigmas, latents=latents, output_type="pt").images * 2 - 1
    assert (draw_by_diffusers(name, pipe, latents, sigmas) - ours).abs().mean() < 0.01


def test_karras_sigmas_are_those_of_diffusers() -> None:
    from diffusers import EDMEulerScheduler

    scheduler = EDMEulerScheduler(sigma_min=0.01, sigma_max=50.0)
    scheduler.set_timesteps(7)
    assert karras_sigmas(50.0, 0.01, 7) == pytest.approx(scheduler.sigmas[:-1].tolist(), rel=1e-5)
