"""Schedulers and losses do not depend on torch's default device: their tables are computed on the CPU."""

import pytest
import torch

from diffusers_pfgm import PoissonFlowScheduler
from diffusers_pfgm.losses.loss_output import LossOutput
from diffusers_pfgm.solvers.spacing import fit_knots


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
