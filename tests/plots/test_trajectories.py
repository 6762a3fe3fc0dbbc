"""A recorded trajectory is the scheduler's run, and its norms have the expected distribution."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler

from diffusers_pfgm import ChargeField, PFGMPipeline, PoissonFlowScheduler
from diffusers_pfgm.plots import norm_quantiles, plot_trajectories, record_trajectory
from tests.networks import make_tiny_pipeline, seeded


@pytest.mark.parametrize("solver", ["multistep", "heun", "euler"])
def test_states_are_those_of_the_pipeline(solver: str) -> None:
    pipe = make_tiny_pipeline(3)
    pipe.scheduler = PoissonFlowScheduler.from_config(pipe.scheduler.config, solver=solver, prior="plane")
    latents = pipe.scheduler.sample_prior((2, 3, 8, 8), seeded())
    tensors_by_name: dict[str, list[torch.Tensor]] = {"latents": [latents], "pred_original_sample": []}

    def keep(_: PFGMPipeline, step: int, t: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        for name, values in tensors_by_name.items():
            values.append(tensors[name])
        return {}

    options = {"callback_on_step_end": keep, "callback_on_step_end_tensor_inputs": [*tensors_by_name]}
    pipe(num_inference_steps=5, latents=latents, **options)
    trajectory = record_trajectory(pipe.unet, pipe.scheduler, latents, 5)
    assert torch.equal(trajectory.states, torch.stack(tensors_by_name["latents"]))
    assert torch.equal(trajectory.denoised, torch.stack(tensors_by_name["pred_original_sample"]))
    assert torch.equal(trajectory.sigmas, pipe.scheduler.sigmas.double())
    norms = torch.stack([state.flatten(1).norm(dim=1) for state in tensors_by_name["latents"]]).double()
    assert torch.allclose(trajectory.norms, norms, rtol=1e-6)
    radii = (norms.square() + trajectory.sigmas.square().unsqueeze(1)).sqrt()
    assert torch.allclose(trajectory.hemisphere_radii, radii, rtol=1e-6)


def test_latents_of_half_precision_are_stepped_in_float32() -> None:
    pipe = make_tiny_pipeline()
    latents = pipe.scheduler.sample_prior((2, 1, 8, 8), seeded(), dtype=torch.float16)
    half, full = (record_trajectory(pipe.unet, pipe.scheduler, each, 5).states for each in (latents, latents.float()))
    assert torch.equal(half, full)


def test_the_schedulers_run_is_left_alone() -> None:
    pipe = make_tiny_pipeline()
    pipe.scheduler.set_timesteps(7)
    record_trajectory(pipe.unet, pipe.scheduler, torch.zeros(1, 1, 8, 8), 3)
    assert len(pipe.scheduler.timesteps) == 7 and pipe.scheduler.step_index is None


def test_states_of_the_ddpm_family_have_data_units() -> None:
    charge = torch.full((1, 1, 4, 4), 0.5)
    scheduler = PoissonFlowScheduler(aug_dim=None, beta_schedule="linear", prediction_type="sample")

    def model(x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor]:
        return (charge.expand_as(x),)

    latents = scheduler.sample_prior((3, 1, 4, 4), seeded())
    trajectory = record_trajectory(model, scheduler, latents, 6)
    # With x̂ fixed each line is straight in σ: x − x̂ ∝ σ.
    lines = (trajectory.states - charge).double()
    expected = lines[0] * (trajectory.sigmas / trajectory.sigmas[0]).view(-1, 1, 1, 1, 1)
    assert torch.allclose(lines, expected, atol=1e-4 * lines[0].abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize("aug_dim", [1.0, 8.0, None])
def test_norms_have_the_expected_quantiles_at_every_noise_level(aug_dim: float | None) -> None:
    data = 2 * torch.randn(500, 6, generator=seeded())
    scheduler = PoissonFlowScheduler(aug_dim=aug_dim, sigma_max=80.0)
    latents = scheduler.sample_prior((1500, 6), seeded(1))
    trajectory = record_trajectory(ChargeField(data, aug_dim), scheduler, latents, 40)
    expected = norm_quantiles(trajectory, data)
    quantiles = trajectory.norms.quantile(torch.tensor([0.16, 0.5, 0.84]).double(), dim=1)
    # Both have the same noise, but other data points. Quantiles of 1,500 norms vary by 2 % where the data dominate.
    assert (quantiles / expected - 1).abs().max() < 0.05
    wrong = norm_quantiles(trajectory, 2 * data)[1]
    assert (quantiles[1] / wrong - 1).abs().max() > 0.4


def test_expected_quantiles_respect_the_limit_of_the_prior() -> None:
    data, scheduler = torch.zeros(1, 6), PoissonFlowScheduler(max_norm=50.0)
    trajectory = record_trajectory(ChargeField(data), scheduler, scheduler.sample_prior((2000, 6), seeded()), 10)
    expected = norm_quantiles(trajectory, data)
    # The field lines of a single charge at 0 are rays, so the quantiles are equal except for rounding in float32.
    quantiles = trajectory.norms.quantile(torch.tensor([0.16, 0.5, 0.84]).double(), dim=1)
    assert expected[2, 0] < 50 and torch.allclose(quantiles, expected, rtol=1e-4)


def test_radius_and_norm_decrease_in_one_ratio_far_away() -> None:
    scheduler = PoissonFlowScheduler(sigma_max=1e4, sigma_min=1e3)
    latents = scheduler.sample_prior((50, 3), seeded())
    trajectory = record_trajectory(ChargeField(torch.randn(5, 3, generator=seeded())), scheduler, latents, 10)
    ratios = trajectory.norms[:-1] / trajectory.hemisphere_radii[:-1]
    assert torch.allclose(ratios, ratios[0].expand_as(ratios), atol=0.01)  # the norm of the data is 1e-3 of σ


def test_augmented_radii_are_sigma_times_root_d() -> None:
    scheduler = PoissonFlowScheduler(aug_dim=16.0)
    field = ChargeField(torch.zeros(1, 2), aug_dim=16.0)
    trajectory = record_trajectory(field, scheduler, torch.ones(1, 2), 4)
    assert torch.equal(trajectory.augmented_radii, 4 * trajectory.sigmas)
    assert torch.allclose(trajectory.hemisphere_radii[0], (trajectory.augmented_radii[0].square() + 2).sqrt())


def test_the_figure_shows_norms_and_radii() -> None:
    data = torch.randn(5, 3, generator=seeded())
    scheduler = PoissonFlowScheduler()
    trajectory = record_trajectory(ChargeField(data), scheduler, scheduler.sample_prior((9, 3), seeded()), 8)
    figure = plot_trajectories(trajectory, data)
    norm, radius, _ = figure.axes
    for axes, values in ((norm, trajectory.norms), (radius, trajectory.hemisphere_radii)):
        for line, expected in zip(axes.lines[:9], values[:-1].unbind(1), strict=True):
            assert torch.allclose(torch.tensor(line.get_ydata()).double(), expected)
            assert torch.allclose(torch.tensor(line.get_xdata()).double(), trajectory.sigmas[:-1])
    assert len(norm.lines) == 9 + 1 + 3 and len(radius.lines) == 9 + 1


def test_without_a_hemisphere_there_is_no_radius() -> None:
    scheduler = PoissonFlowScheduler(aug_dim=None)
    trajectory = record_trajectory(ChargeField(torch.zeros(1, 2), None), scheduler, torch.ones(1, 2), 4)
    assert len(plot_trajectories(trajectory).axes) == 2
    with pytest.raises(ValueError, match=r"`hemisphere_radii` needs a finite `aug_dim`"):
        _ = trajectory.hemisphere_radii


def test_a_scheduler_of_diffusers() -> None:
    scheduler = EDMDPMSolverMultistepScheduler(sigma_data=0.5)
    trajectory = record_trajectory(lambda x, t: (torch.zeros_like(x),), scheduler, torch.ones(1, 1, 4, 4), 4)
    assert math.isinf(trajectory.scheduler.kernel.aug_dim) and trajectory.sigmas[0] == pytest.approx(80.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda trajectory: norm_quantiles(trajectory, torch.zeros(4, 3)),
            r"`data` must have the shape \(K, \*\) of the states \(2,\) each, but has \(4, 3\)",
        ),
        (lambda trajectory: plot_trajectories(trajectory, torch.zeros(2)), r"`data` must .* but has \(2,\)"),
    ],
)
def test_bad_input(call: Callable[..., object], message: str) -> None:
    trajectory = record_trajectory(ChargeField(torch.zeros(1, 2)), PoissonFlowScheduler(), torch.ones(1, 2), 2)
    with pytest.raises(ValueError, match=message):
        call(trajectory)
