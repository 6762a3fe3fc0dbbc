"""The prior, the noise of training, and the velocity between data and noise."""

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler

from diffusers_pfgm import PoissonFlowScheduler, PoissonKernel
from tests.networks import seeded
from tests.schedulers.exact_runs import epsilon


def test_prior_radii_beyond_max_norm_are_drawn_again() -> None:
    limited = PoissonFlowScheduler(max_norm=500.0).sample_prior((20_000, 1, 8, 8), seeded())
    free = PoissonFlowScheduler().sample_prior((40_000, 1, 8, 8), seeded(1))
    radius, expected = (x.flatten(1).norm(dim=1) for x in (limited, free))
    assert radius.max() <= 500
    expected = expected[expected <= 500]
    # No shell: below the limit the quantiles are those of the unlimited prior.
    for probability in (0.1, 0.5, 0.9, 0.99):
        assert radius.quantile(probability).item() == pytest.approx(expected.quantile(probability).item(), rel=0.03)


def test_prior_with_one_generator_per_sample() -> None:
    scheduler, before = PoissonFlowScheduler(max_norm=400.0), torch.get_rng_state()
    whole = scheduler.sample_prior((5, 1, 8, 8), [seeded(i) for i in range(5)])
    for i in range(5):
        assert torch.equal(whole[i : i + 1], scheduler.sample_prior((1, 1, 8, 8), seeded(i)))
    assert torch.equal(before, torch.get_rng_state())


def test_prior_in_half_precision_respects_max_norm() -> None:
    prior = PoissonFlowScheduler(max_norm=500.0).sample_prior((20_000, 1, 8, 8), seeded(), dtype=torch.bfloat16)
    assert prior.flatten(1).float().norm(dim=1).max() <= 500


def test_an_unreachable_max_norm_raises() -> None:
    with pytest.raises(ValueError, match=r"`max_norm` = 1\.0 is out of reach"):
        PoissonFlowScheduler(max_norm=1.0).sample_prior((2, 3, 8, 8), seeded())
    with pytest.raises(ValueError, match="list of 1, but the batch has 2"):
        PoissonFlowScheduler(max_norm=500.0).sample_prior((2, 1, 8, 8), [seeded()])


@pytest.mark.parametrize("aug_dim", [1.0, 64.0, None])
def test_prior_and_noise_are_draws_of_the_kernel(aug_dim: float | None) -> None:
    shape, kernel = (3, 1, 4, 4), PoissonKernel(aug_dim)
    for max_norm in (None, 1e6):
        scheduler = PoissonFlowScheduler(aug_dim, max_norm=max_norm)
        assert torch.equal(scheduler.sample_prior(shape, seeded()), kernel.sample(shape, 40.0, seeded()))
    assert torch.equal(scheduler.sample_noise(shape, seeded()), kernel.sample(shape, 1.0, seeded()))


def test_noise_is_limited_as_in_training() -> None:
    """The perturbation objective limits the noise to the norm σ · reach at every σ."""
    reach = 4 * 192**0.5
    options = {"prediction_type": "epsilon", "sigma_data": 0.5, "sigma_max": 80.0, "max_norm": 80 * reach}
    scheduler = PoissonFlowScheduler(1.0, **options)
    assert scheduler.sample_noise((2000, 192), seeded()).norm(dim=1).max() <= 1.00001 * reach
    scheduler.set_timesteps(sigmas=[1.0, 0.5, 0.1])
    assert scheduler.sample_prior((2000, 192), seeded()).norm(dim=1).max() <= 1.00001 * reach
    theirs = EDMEulerScheduler.from_config(scheduler.config)
    assert (
        PoissonFlowScheduler.from_scheduler(theirs).sample_noise((2000, 192), seeded()).norm(dim=1).max()
        <= 1.00001 * reach
    )
    field = PoissonFlowScheduler(max_norm=100.0)  # its training has another distribution of noise
    assert field.sample_noise((2000, 192), seeded()).norm(dim=1).max() > reach


def test_add_noise_scales_the_kernel() -> None:
    x, scheduler = torch.randn(3, 2, 4, generator=seeded()), PoissonFlowScheduler()
    noise = scheduler.sample_noise(x.shape, seeded(1))
    noisy = scheduler.add_noise(x, noise, torch.tensor([0.5, 2.0, 40.0]))
    assert torch.allclose(noisy, x + torch.tensor([0.5, 2.0, 40.0]).view(3, 1, 1) * noise)
    edm = PoissonFlowScheduler(prediction_type="epsilon", sigma_data=0.5)
    edm.set_timesteps(3)
    assert torch.allclose(edm.add_noise(x, noise, edm.timesteps[:1]), x + 40 * noise, rtol=1e-5)


def test_add_noise_keeps_the_dtype() -> None:
    scheduler = PoissonFlowScheduler(prediction_type="epsilon", sigma_data=0.5)
    scheduler.set_timesteps(7)
    x, noise = torch.zeros(7, 1, 2, 2), torch.ones(7, 1, 2, 2)
    noisy = scheduler.add_noise(x.half(), noise.half(), scheduler.timesteps)
    expected = scheduler.add_noise(x, noise, scheduler.timesteps).half()
    assert noisy.dtype == torch.float16 and torch.equal(noisy, expected)
    mixed = scheduler.add_noise(x.half(), noise, scheduler.timesteps)
    assert mixed.dtype == torch.float16 and torch.equal(mixed, expected)


def test_heavy_tailed_noise_does_not_overflow_float16() -> None:
    scheduler = PoissonFlowScheduler()
    noise = torch.tensor([[3000.0, -3000.0, 1.0]]).half()
    noisy = scheduler.add_noise(torch.zeros(1, 3).half(), noise, torch.tensor([40.0]))
    assert noisy.tolist() == [[65504.0, -65504.0, 40.0]]


def test_a_velocity_keeps_the_dtype() -> None:
    x, noise = (torch.randn(4, 2, 3, 3, generator=seeded(i)) for i in (0, 1))
    statistics = {"sigma_data": 0.5, "data_mean": 0.0, "mean_square_std": 0.1}
    for options in ({}, {"beta_schedule": "linear"}, statistics):
        scheduler = PoissonFlowScheduler(prediction_type="v_prediction", **options)
        t = torch.full((4,), 2.0)
        velocity = scheduler.get_velocity(x.half(), noise, t)
        expected = scheduler.get_velocity(x.half().float(), noise, t).half()
        assert velocity.dtype == torch.float16 and torch.equal(velocity, expected)


def test_integer_samples_are_refused() -> None:
    scheduler = PoissonFlowScheduler(prediction_type="v_prediction")
    x, noise, t = torch.ones(2, 1, 4, 4).to(torch.uint8), torch.ones(2, 1, 4, 4), torch.tensor([1.0])
    for name, call in (("original_samples", scheduler.add_noise), ("sample", scheduler.get_velocity)):
        with pytest.raises(ValueError, match=rf"`{name}` must be a tensor of floating-point numbers, but is .*uint8"):
            call(x, noise, t)


def test_numbers_of_timesteps_are_refused_without_a_beta_schedule() -> None:
    x, noise = torch.zeros(3, 1, 4, 4), torch.ones(3, 1, 4, 4)
    for scheduler in (PoissonFlowScheduler(), PoissonFlowScheduler(prediction_type="epsilon", sigma_data=0.5)):
        with pytest.raises(ValueError, match=r"`timesteps` must be noise levels, .* but are torch.int64"):
            scheduler.add_noise(x, noise, torch.tensor([999, 500, 1]))
        with pytest.raises(ValueError, match=r"`timesteps` must be noise levels, .* but are torch.int64"):
            scheduler.get_velocity(x, noise, torch.tensor(2))
    numbered = PoissonFlowScheduler(prediction_type="epsilon", beta_schedule="linear")
    assert numbered.add_noise(x, noise, torch.tensor([999, 500, 1])).shape == x.shape
    # As with diffusers' schedulers, one sample at several timesteps gives one state for each.
    assert numbered.add_noise(x[:1], noise[:1], torch.tensor([999, 500])).shape == (2, 1, 4, 4)


@pytest.mark.parametrize(
    "options",
    [
        {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction"},
        {"beta_schedule": "linear", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
        {"prediction_type": "v_prediction"},
        {"prediction_type": "v_prediction", "sigma_data": 0.5},
        {"prediction_type": "v_prediction", "sigma_data": 1.0, "aug_dim": 3.0},
    ],
)
def test_x_hat_of_the_exact_velocity_is_the_data(options: dict[str, Any]) -> None:
    scheduler = PoissonFlowScheduler(**options)
    scheduler.set_timesteps(5)
    x, noise = (torch.randn(5, 2, 3, 3, generator=seeded(i)).double() for i in (0, 1))
    for i, t in enumerate(scheduler.timesteps[1:], 1):
        states = scheduler.add_noise(x, noise, t)
        velocity = scheduler.get_velocity(x, noise, t)
        sigma = float(scheduler.sigmas[i])
        denoised = scheduler.parameterization.denoised(velocity, states * scheduler.data_scale(sigma), sigma)
        assert torch.allclose(denoised, x, atol=1e-3)  # σ is rounded to float32
        many = scheduler.get_velocity(x, noise, t.repeat(5))
        assert torch.equal(many, velocity) and velocity.dtype == torch.float64


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_the_velocity_equals_that_of_ddpm(schedule: str) -> None:
    ours, theirs = (kind(beta_schedule=schedule) for kind in (epsilon, DDPMScheduler))
    x, noise = (torch.randn(6, 2, 4, 4, generator=seeded(i)) for i in (0, 1))
    t = torch.tensor([0, 1, 50, 500, 998, 999])
    assert torch.allclose(ours.get_velocity(x, noise, t), theirs.get_velocity(x, noise, t), atol=1e-6)
    assert ours.get_velocity(x.half(), noise.half(), t).dtype == torch.float16


@pytest.mark.slow
def test_noise_of_a_beta_schedule_is_one_graph() -> None:
    scheduler = epsilon(beta_schedule="linear")
    scheduler.set_timesteps(4)
    sample, noise = (torch.randn(4, 1, 4, 4, generator=seeded(i)) for i in range(2))
    for method in (scheduler.add_noise, scheduler.get_velocity):
        torch._dynamo.reset()
        compiled = torch.compile(method, fullgraph=True, backend="eager")
        assert torch.allclose(compiled(sample, noise, scheduler.timesteps), method(sample, noise, scheduler.timesteps))
