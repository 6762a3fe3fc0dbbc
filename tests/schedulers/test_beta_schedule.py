"""Noise levels and timesteps of networks of the DDPM family are equal to those of diffusers."""

import math
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from diffusers_pfgm import PoissonFlowScheduler
from tests.networks import seeded

SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


def vp(**options: Any) -> PoissonFlowScheduler:
    return PoissonFlowScheduler(**{"aug_dim": None, "prediction_type": "epsilon", "beta_schedule": "linear", **options})


@pytest.mark.parametrize("steps", [1, 7, 50, 999])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_timesteps_are_those_of_diffusers(spacing: str, offset: int, steps: int) -> None:
    ours = vp(timestep_spacing=spacing, steps_offset=offset)
    ours.set_timesteps(steps)
    theirs = DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)
    theirs.set_timesteps(steps)
    assert torch.equal(ours.timesteps, theirs.timesteps) and ours.timesteps.dtype == torch.int64
    assert ours.init_noise_sigma == 1 and len(ours.timesteps) == steps


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(
    "kind",
    [
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        DEISMultistepScheduler,
        EulerDiscreteScheduler,
        HeunDiscreteScheduler,
        UniPCMultistepScheduler,
    ],
)
def test_timesteps_of_each_scheduler_are_kept(kind: Any, spacing: str, steps: int) -> None:
    theirs = kind(timestep_spacing=spacing, steps_offset=1)
    theirs.set_timesteps(steps)
    ours = PoissonFlowScheduler.from_config(theirs.config, solver="heun" if kind is HeunDiscreteScheduler else "euler")
    ours.set_timesteps(steps)
    assert torch.allclose(ours.timesteps.double(), torch.as_tensor(theirs.timesteps).double(), rtol=1e-6)
    assert len(ours.timesteps) == len(theirs.timesteps)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sigmas_are_those_of_diffusers(schedule: str) -> None:
    ours, theirs = vp(beta_schedule=schedule), EulerDiscreteScheduler(beta_schedule=schedule)
    assert torch.allclose(torch.tensor(ours.parameterization.train_sigmas).float(), theirs.sigmas[:-1].flip(0))
    assert torch.equal(ours.betas, theirs.betas) and torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    assert ours.sigma_range == (ours.parameterization.train_sigmas[-1], ours.parameterization.train_sigmas[0])


def test_add_noise_equals_that_of_ddpm() -> None:
    ours, theirs = vp(beta_schedule="scaled_linear"), DDPMScheduler(beta_schedule="scaled_linear")
    x, noise = (torch.randn(6, 2, 4, 4, generator=seeded(i)) for i in (0, 1))
    t = torch.tensor([0, 1, 50, 500, 998, 999])
    assert torch.allclose(ours.add_noise(x, noise, t), theirs.add_noise(x, noise, t), atol=1e-6)
    assert ours.add_noise(x.half(), noise.half(), t).dtype == torch.float16


def test_max_norm_of_the_prior_is_in_data_units() -> None:
    # At D = 1 the radius is heavy-tailed, and the state is in data units divided by √(1 + σ²).
    scheduler = vp(aug_dim=1.0, max_norm=500.0)
    scheduler.set_timesteps(10)
    scale = scheduler.data_scale(scheduler.sigmas[0].item())
    norms = scale * scheduler.sample_prior((2000, 1, 2, 2), seeded()).flatten(1).norm(dim=1)
    assert 450 < norms.max() <= 500.01 and scale > 50


def test_custom_timesteps_and_sigmas_are_used() -> None:
    ours = vp()
    ours.set_timesteps(timesteps=[900, 500, 100, 0])
    assert ours.timesteps.tolist() == [900, 500, 100, 0] and ours.timesteps.dtype == torch.int64
    sigmas = ours.sigmas[:-1]
    assert torch.allclose(
        sigmas.double(), torch.tensor([ours.parameterization.train_sigmas[t] for t in (900, 500, 100, 0)]).double()
    )
    ours.set_timesteps(sigmas=sigmas.tolist())
    assert torch.allclose(ours.timesteps.float(), torch.tensor([900.0, 500.0, 100.0, 0.0]), atol=1e-3)
    ours.set_timesteps(timesteps=[10.5])
    assert ours.timesteps.tolist() == [10.5]
    between = math.sqrt(ours.parameterization.train_sigmas[10] * ours.parameterization.train_sigmas[11])
    assert ours.sigmas[0].item() == pytest.approx(between, rel=1e-6)


def test_half_precision_only_rounds_the_states() -> None:
    ends = []
    for dtype in (torch.float16, torch.float32):
        scheduler = vp()
        scheduler.set_timesteps(10)
        x = torch.randn(2, 3, 4, 4, generator=seeded()).half().to(dtype)
        for t in scheduler.timesteps:
            output = scheduler.step(torch.tanh(x), t, scheduler.scale_model_input(x, t))
            x = output.prev_sample
        assert x.dtype == dtype and x.isfinite().all()
        ends.append(x.float())
    assert (ends[0] - ends[1]).norm() < 0.01 * ends[1].norm()


@pytest.mark.parametrize("solver", ["multistep", "euler"])
@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_first_step_from_zero_terminal_snr_equals_ddim(solver: str, prediction_type: str) -> None:
    scheduler = vp(
        prediction_type=prediction_type, solver=solver, timestep_spacing="trailing", rescale_betas_zero_snr=True
    )
    scheduler.set_timesteps(5)
    theirs = DDIMScheduler(
        timestep_spacing="trailing",
        prediction_type=prediction_type,
        rescale_betas_zero_snr=True,
        clip_sample=False,
    )
    theirs.set_timesteps(5)
    x = torch.randn(2, 1, 4, 4, generator=seeded())
    output, t = torch.randn(2, 1, 4, 4, generator=seeded(1)), scheduler.timesteps[0]
    actual = scheduler.step(output, t, x)
    expected = theirs.step(output, t, x)
    assert torch.allclose(actual.prev_sample, expected.prev_sample, atol=1e-6)
    assert torch.allclose(actual.pred_original_sample, expected.pred_original_sample, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta_schedule": "sigmoid"}, "`beta_schedule` must be one of .* but is 'sigmoid'"),
        ({"timestep_spacing": "even"}, "`timestep_spacing` must be one of .* but is 'even'"),
        ({"trained_betas": [0.1, 1.0]}, r"The betas make sigma infinite, .*: beta\[1\] = 1 gives alpha_cumprod = 0"),
        ({"trained_betas": [0.1, -0.2]}, r"beta\[1\] = -0.2"),
        ({"trained_betas": [0.0, 0.5]}, r"beta\[0\] = 0"),
        ({"beta_end": 1.0}, r"make sigma infinite.*change `beta_start`, `beta_end`"),
        ({"beta_start": 1e-8}, r"beta\[0\] = 1e-08 gives alpha_cumprod = 1"),
        ({"trained_betas": [0.01, 1e-9, 0.02]}, r"beta\[1\] = 1e-09"),
        ({"trained_betas": []}, "The length of `trained_betas` must be at least 1 and at most 1000000, but is 0"),
        ({"num_train_timesteps": 0}, "`num_train_timesteps` must be at least 1 and at most 1000000, but is 0"),
        ({"beta_end": 0.9, "num_train_timesteps": 10_000}, "make sigma infinite"),
        ({"rescale_betas_zero_snr": True}, "'epsilon' cannot determine x̂ where sigma is infinite"),
        (
            {"rescale_betas_zero_snr": True, "prediction_type": "sample", "solver": "heun"},
            "`solver` 'heun' cannot start at infinite sigma",
        ),
        ({"sigma_data": 0.5}, "`sigma_data` = 0.5 preconditions a network as in EDM, but a beta schedule"),
        ({"final_sigmas_type": "one"}, "`final_sigmas_type` must be 'zero' or 'sigma_min', but is 'one'"),
    ],
)
def test_invalid_schedules_raise(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vp(**options)


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        (
            {},
            {"num_inference_steps": 1001},
            "`num_inference_steps` must be at most 1000, the number of trained timesteps, but is 1001",
        ),
        (
            {"steps_offset": 1},
            {"num_inference_steps": 1000},
            "`steps_offset` = 1 gives 1000 timesteps from 1000, but 1000 timesteps from 0 to 999, the trained ones",
        ),
        ({}, {"timesteps": [1000, 3]}, r"`timesteps` must be from 0 to 999, as trained, but are \[1000.0, 3.0\]"),
        ({}, {"sigmas": [500.0, 1.0]}, r"`sigmas` must be at most 157.4\d*, the largest of the beta schedule"),
        ({}, {"timesteps": [3, 5]}, "`timesteps` must be a list of strictly decreasing numbers"),
    ],
)
def test_invalid_timesteps_raise(options: dict[str, Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vp(**options).set_timesteps(**arguments)


def test_a_run_may_end_at_sigma_min() -> None:
    # Without a beta schedule there is one σ more than network calls; with one the run ends at the first timestep.
    scheduler = PoissonFlowScheduler(prediction_type="sample", final_sigmas_type="sigma_min", solver="euler")
    scheduler.set_timesteps(4)
    assert scheduler.sigmas[-1].item() == pytest.approx(0.01) and len(scheduler.timesteps) == 4
    ratios = scheduler.sigmas[1:] / scheduler.sigmas[:-1]
    assert torch.allclose(ratios, ratios[0])
    x, t = torch.ones(1, 1, 2, 2), scheduler.timesteps[0]
    prev_sample = scheduler.step(torch.zeros(1, 1, 2, 2), t, x).prev_sample
    assert torch.allclose(prev_sample, x * ratios[0])
    for sigmas, end in (([10.0, 1.0, 0.0], 0.0), ([10.0, 1.0], 0.01), ([10.0, 0.5, 0.5], 0.01)):
        scheduler.set_timesteps(sigmas=sigmas)  # a final 0 is the end; EDM's schedulers contain the last σ twice
        assert len(scheduler.timesteps) == 2 and scheduler.sigmas[-1].item() == pytest.approx(end)
    ours = vp(final_sigmas_type="sigma_min")
    ours.set_timesteps(4)
    assert ours.sigmas[-1].item() == pytest.approx(ours.parameterization.train_sigmas[0])
