"""Calls that do not fit a run raise an error or warn."""

import pytest
import torch

from diffusers_pfgm import PoissonFlowScheduler
from tests.networks import seeded
from tests.schedulers.exact_runs import epsilon


def test_steps_out_of_order_raise() -> None:
    scheduler, x, output = PoissonFlowScheduler(), torch.ones(1, 1, 4, 4), torch.ones(1, 2, 4, 4)
    with pytest.raises(ValueError, match="used before `set_timesteps`"):
        scheduler.step(output, 1.0, x)
    scheduler.set_timesteps(2)
    with pytest.raises(
        ValueError, match=r"`model_output` must have the shape \(1, 2, 4, 4\) for prediction_type 'field'"
    ):
        scheduler.step(x, scheduler.timesteps[0], x)
    for t in scheduler.timesteps:
        scheduler.step(output, t, x)
    with pytest.raises(ValueError, match="after the last of 2 timesteps"):
        scheduler.step(output, scheduler.timesteps[-1], x)


def test_a_network_with_sigma_data_needs_a_scaled_input() -> None:
    scheduler, x = epsilon(sigma_data=0.5), torch.ones(1, 1, 2, 2)
    for _ in range(2):  # the second run is checked again
        scheduler.set_timesteps(2)
        with pytest.raises(ValueError, match=r"`scale_model_input` was not called before `step`.*DDPMPipeline"):
            scheduler.step(x, scheduler.timesteps[0], x)
        for t in scheduler.timesteps:
            scheduler.scale_model_input(x, t)
            scheduler.step(x, t, x)


def test_a_run_from_an_unknown_start_warns(caplog: pytest.LogCaptureFixture) -> None:
    x, output = torch.ones(1, 1, 2, 2), torch.ones(1, 2, 2, 2)
    for ask in (
        lambda scheduler: scheduler.init_noise_sigma,
        lambda scheduler: scheduler.sample_prior((1, 1, 2, 2), seeded()),
        lambda scheduler: scheduler.add_noise(x, x, torch.tensor(1.0)),
        lambda scheduler: scheduler.scale_model_input(x, scheduler.timesteps[0]),
        None,
    ):
        scheduler = PoissonFlowScheduler()
        scheduler.set_timesteps(2)
        if ask is not None:
            ask(scheduler)
        assert not caplog.records
        scheduler.step(output, scheduler.timesteps[0], x)
    assert [record.getMessage()[:25] for record in caplog.records] == ["`step` begins a run, but "]


def test_a_single_number_as_state_raises() -> None:
    for scheduler in (epsilon(beta_schedule="linear"), epsilon(sigma_data=0.5), PoissonFlowScheduler()):
        scheduler.set_timesteps(2)
        with pytest.raises(ValueError, match=r"`sample` must be a state .* StableDiffusionLatentUpscalePipeline"):
            scheduler.scale_model_input(scheduler.sigmas[0], scheduler.timesteps[0])
