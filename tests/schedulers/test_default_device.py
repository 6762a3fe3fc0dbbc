"""Schedulers, losses and pipelines do not depend on torch's default device."""

import pytest
import torch

from diffusers_pfgm import ChargeField, PFGMEditingPipeline, PFGMPipeline, PoissonFlowScheduler
from diffusers_pfgm.losses.loss_output import LossOutput
from diffusers_pfgm.solvers.spacing import fit_knots
from tests.networks import make_tiny_unet, seeded


@pytest.mark.parametrize("options", [{}, {"sigma_knots": [40.0, 1.0, 0.01]}, {"beta_schedule": "linear"}])
def test_timesteps_are_the_same_on_another_default_device(options: dict) -> None:
    expected = PoissonFlowScheduler(**options)
    expected.set_timesteps(7)
    with torch.device("meta"):  # whose tensors have no values
        scheduler = PoissonFlowScheduler(**options)
        scheduler.set_timesteps(7, device="cpu")
        timesteps, sigmas = scheduler.timesteps.tolist(), scheduler.sigmas.tolist()
        level = scheduler.parameterization.c_noise(2.0)
    assert (timesteps, sigmas) == (expected.timesteps.tolist(), expected.sigmas.tolist())
    assert level == expected.parameterization.c_noise(2.0)


def test_knots_and_bands_are_computed_on_the_cpu() -> None:
    x = torch.linspace(-2, 2, 8).view(2, 4)
    values = torch.ones(2)
    with torch.device("meta"):
        knots = fit_knots(lambda x, sigma: x / (1 + sigma**2), x, [8.0, 4.0, 2.0, 1.0])
        bands = LossOutput(values.mean(), values, values).bands()
    assert knots[0] == 8.0 and knots[-1] == 1.0 and list(bands.values()) == [1.0]


@pytest.mark.parametrize("statistics", [{}, {"data_mean": 0.0, "mean_square_std": 0.1}, {"prior": "hemisphere"}])
def test_a_pipeline_runs_on_the_device_of_its_network(statistics: dict) -> None:
    scheduler = PoissonFlowScheduler(prediction_type="epsilon", sigma_data=0.5, **statistics)
    pipe = PFGMPipeline(make_tiny_unet(out_channels=1), scheduler)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(2, 3, seeded(), output_type="pt").images
    with torch.device("meta"):
        assert torch.equal(pipe(2, 3, seeded(), output_type="pt").images, expected)


def test_images_are_interpolated_on_the_device_of_the_network() -> None:
    pipe = PFGMEditingPipeline(ChargeField(torch.rand(5, 1, 4, 4, generator=seeded()) * 2 - 1), PoissonFlowScheduler())
    pipe.set_progress_bar_config(disable=True)
    first, second = torch.rand(2, 1, 1, 4, 4, generator=seeded())
    expected = pipe.interpolate(first, second, 3, num_inference_steps=10, output_type="pt").images
    with torch.device("meta"):
        images = pipe.interpolate(first, second, 3, num_inference_steps=10, output_type="pt").images
    assert torch.equal(images, expected)
