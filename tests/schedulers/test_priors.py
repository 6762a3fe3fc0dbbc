"""The priors from which pipelines start: the plane, the shell and the hemisphere."""

import json
from pathlib import Path

import pytest
import torch

from diffusers_pfgm import ChargeField, PFGMPipeline, PoissonFlow, PoissonFlowScheduler, fit_sigmas
from diffusers_pfgm.physics.noise_estimate import NoiseEstimate
from diffusers_pfgm.schedulers.stepping import scheduler_steps
from tests.networks import ExactNetwork, make_smallest_unet, make_tiny_unet, seeded

PRIORS = ("plane", "shell", "hemisphere")


def started(prior: str | None, size: int = 64, **options: object) -> tuple[PoissonFlowScheduler, torch.Tensor]:
    scheduler = PoissonFlowScheduler(prior=prior, **options)
    scheduler.set_timesteps(5)
    return scheduler, scheduler.sample_prior((100, size), seeded(), dtype=torch.float64)


def test_all_norms_on_the_shell_are_equal_and_no_direction_changes() -> None:
    scheduler, latents = started(None, sigma_data=0.5, data_mean=0.3, mean_square_std=0.1, prediction_type="epsilon")
    moved = scheduler.move_to_prior(latents)
    assert torch.allclose((moved - 0.3).norm(dim=1), torch.full((100,), 8 * 40.0, dtype=torch.float64))
    assert torch.allclose(torch.nn.functional.cosine_similarity(moved - 0.3, latents - 0.3), torch.ones(100).double())
    assert torch.allclose(scheduler.move_to_prior(moved), moved, rtol=1e-12)


def test_points_on_the_hemisphere_are_on_the_same_ray_and_have_the_same_distance() -> None:
    for aug_dim in (1.0, 5.0):
        scheduler, latents = started("hemisphere", aug_dim=aug_dim)
        moved = scheduler.move_to_prior(latents)
        sigma = scheduler.sigma_of_samples(40.0)
        assert torch.allclose(moved / sigma, latents / 40.0)  # the direction of (x, r) is unchanged
        distances = (moved.square().sum(1) + aug_dim * sigma.squeeze(1) ** 2).sqrt()
        assert torch.allclose(distances, torch.full((100,), 40.0 * (64 + aug_dim) ** 0.5, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("prior", PRIORS)
def test_the_mean_has_no_direction_and_stays(prior: str, dtype: torch.dtype) -> None:
    scheduler = PoissonFlowScheduler(prior=prior)
    scheduler.set_timesteps(5)
    assert torch.equal(scheduler.move_to_prior(torch.zeros(2, 784, dtype=dtype)), torch.zeros(2, 784, dtype=dtype))


@pytest.mark.parametrize("prior", ["shell", "hemisphere"])
def test_very_distant_points_keep_their_direction(prior: str) -> None:
    scheduler = PoissonFlowScheduler(aug_dim=0.05, prior=prior)
    scheduler.set_timesteps(5)
    latents = torch.randn(20, 64, generator=seeded()) * torch.logspace(0, 34, 20).unsqueeze(1)
    moved = scheduler.move_to_prior(latents)
    directions = latents / latents.abs().amax(1, keepdim=True)
    assert torch.allclose(torch.nn.functional.cosine_similarity(moved, directions), torch.ones(20), atol=1e-5)
    assert moved[5:].norm(dim=1) == pytest.approx(torch.full((15,), 8 * 40.0), rel=1e-3)


def test_pipelines_choose_by_the_dimension() -> None:
    scheduler = PoissonFlowScheduler()
    assert (scheduler.prior_of(63), scheduler.prior_of(64)) == ("plane", "shell")
    assert PoissonFlowScheduler(aug_dim=None).prior_of(784) == "plane"  # the Gaussian has only one
    assert PoissonFlowScheduler(prior="hemisphere").prior_of(784) == "hemisphere"
    # The scheduler's own draws remain the paper's prior on the plane.
    assert started(None)[1].norm(dim=1).std() > 100
    assert started("shell")[1].norm(dim=1).std() < 1e-9
    with pytest.raises(ValueError, match="`prior` must be one of"):
        PoissonFlowScheduler(prior="ball")


def test_the_prior_is_saved_and_folders_without_one_keep_the_plane(tmp_path: Path) -> None:
    PoissonFlowScheduler(prior="hemisphere").save_pretrained(tmp_path)
    assert PoissonFlowScheduler.from_pretrained(tmp_path).config.prior == "hemisphere"
    PoissonFlowScheduler().save_pretrained(tmp_path)
    path = tmp_path / "scheduler_config.json"
    config = json.loads(path.read_text())
    assert config.pop("prior") is None
    assert PoissonFlowScheduler.from_pretrained(tmp_path).prior_of(784) == "shell"
    assert PoissonFlowScheduler.from_config({"aug_dim": 1.0}).prior_of(784) == "shell"  # not a saved configuration
    path.write_text(json.dumps(config))  # as version 0.1.0 wrote it
    assert PoissonFlowScheduler.from_pretrained(tmp_path).prior_of(784) == "plane"


@pytest.mark.parametrize("prior", ["plane", "hemisphere"])
@pytest.mark.parametrize("aug_dim", [1.0, 5.0])
@pytest.mark.parametrize("size", [1, 2, 4, 16, 64])
def test_two_charges_get_samples_by_their_weights(size: int, aug_dim: float, prior: str) -> None:
    share = share_of_first_charge(size, aug_dim, prior)
    assert share == pytest.approx(0.3, abs=0.012), share  # three standard errors of 20,000 samples are 0.0097


@pytest.mark.parametrize("aug_dim", [1.0, 5.0])
def test_the_default_gives_charges_their_weights_in_64_dimensions(aug_dim: float) -> None:
    assert share_of_first_charge(64, aug_dim, None) == pytest.approx(0.3, abs=0.012)


def share_of_first_charge(size: int, aug_dim: float, prior: str | None) -> float:
    """The share of 20,000 samples at the first of two charges, of which it is 3 of 10."""
    first = torch.full((size,), -(size**-0.5), dtype=torch.float64)
    charges = torch.cat([first.expand(3, size), -first.expand(7, size)])
    scheduler = PoissonFlowScheduler(aug_dim, prediction_type="sample", prior=prior)
    flow = PoissonFlow(ChargeField(charges, aug_dim, "sample"), scheduler)
    samples = flow.sample((20_000, size), 12, seeded()).sample
    return ((samples - first).norm(dim=1) < 0.5).double().mean().item()


@pytest.mark.slow
def test_digits_remain_equally_likely(digits: torch.Tensor) -> None:
    count = 100
    charges = digits[:count]
    for prior in (None, "hemisphere"):
        scheduler = PoissonFlowScheduler(prediction_type="sample", prior=prior)
        flow = PoissonFlow(ChargeField(charges, prediction_type="sample"), scheduler)
        samples = flow.sample((6_000, 1, 8, 8), 20, seeded()).sample
        nearest = torch.cdist(samples.flatten(1), charges.flatten(1)).argmin(1)
        counts = torch.bincount(nearest, minlength=count).double()
        chi2 = ((counts - 60).square() / 60).sum().item() / (count - 1)
        assert chi2 < 1.5, (prior, chi2)  # 1 ± 0.14 where the charges are equally likely


@pytest.mark.parametrize("prior", PRIORS)
def test_fixed_and_adaptive_runs_of_a_pipeline_agree(digits: torch.Tensor, prior: str) -> None:
    scheduler = PoissonFlowScheduler(prior=prior, sigma_min=0.5, final_sigmas_type="sigma_min")
    pipe = PFGMPipeline(ChargeField(digits[:50]), scheduler)
    pipe.set_progress_bar_config(disable=True)
    results = [
        pipe(4, generator=seeded(1), output_type="latent", **options).images
        for options in ({"num_inference_steps": 300}, {"tolerance": 1e-5})
    ]
    assert torch.allclose(*results, atol=2e-3)


def test_the_hemisphere_needs_the_timestep_of_each_sample(digits: torch.Tensor) -> None:
    scheduler = PoissonFlowScheduler(prior="hemisphere")
    scheduler.set_timesteps(3)
    state = scheduler.move_to_prior(scheduler.sample_prior((2, 1, 8, 8), seeded(), dtype=torch.float64))
    timestep = scheduler.timesteps[0]
    output = ChargeField(digits)(state, timestep).sample
    with pytest.raises(ValueError, match="`prior` of the scheduler to 'shell'"):
        scheduler.step(output, timestep, state)
    assert scheduler.network_timestep(state, timestep).shape == (2,)


def test_latents_of_the_plane_give_the_images_of_the_same_generator() -> None:
    pipe = PFGMPipeline(make_tiny_unet(), PoissonFlowScheduler())
    pipe.set_progress_bar_config(disable=True)
    latents = pipe.scheduler.sample_prior((2, 1, 8, 8), seeded())
    images = [pipe(2, 4, output_type="pt", **start).images for start in ({"latents": latents}, {"generator": seeded()})]
    assert torch.equal(*images)


def test_the_spacing_is_fitted_to_the_prior(digits: torch.Tensor) -> None:
    knots = [
        fit_sigmas(ChargeField(digits[:200]), PoissonFlowScheduler(prior=prior), (1, 8, 8), seeded()).config.sigma_knots
        for prior in ("plane", "shell", "hemisphere")
    ]
    # Without the spread of the norms all lines turn at the same σ, where the steps are then dense.
    widths = [torch.tensor(each).log()[4].item() - torch.tensor(each).log()[-4].item() for each in knots]
    assert widths[1] < widths[0]
    assert widths[2] < widths[0]


def test_schedulers_steps_pass_each_sample_its_timestep() -> None:
    options = {"sigma_data": 0.5, "data_mean": 0.0, "mean_square_std": 0.1, "prediction_type": "epsilon"}
    scheduler = PoissonFlowScheduler(**options)
    scheduler.set_timesteps(3)
    seen = []

    def model(sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
        seen.append(timestep)
        return (torch.zeros_like(sample),)

    for _ in scheduler_steps(scheduler, model, torch.randn(4, 1, 8, 8, generator=seeded()) * 40):
        pass
    assert [timestep.shape for timestep in seen] == [(4,)] * 3


def test_the_noise_level_of_a_state_is_estimated_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    estimated = []
    estimate = NoiseEstimate.__call__

    def counted(self: NoiseEstimate, x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        estimated.append(sigma)
        return estimate(self, x, sigma)

    monkeypatch.setattr(NoiseEstimate, "__call__", counted)
    statistics = {"data_mean": 0.0, "mean_square_std": 0.1}
    scheduler = PoissonFlowScheduler(sigma_data=0.5, prediction_type="epsilon", **statistics)
    pipe = PFGMPipeline(make_smallest_unet(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    pipe(num_inference_steps=3, output_type="pt")
    assert len(estimated) == 3

    # A state that was changed in place is another one, and each backward pass needs an estimate of its own.
    scheduler.set_timesteps(3)
    state = scheduler.sample_prior((2, 1, 8, 8), seeded())
    t = scheduler.timesteps[0]
    scheduler.network_timestep(state, t)
    state *= 0.5
    parameterization = scheduler.parameterization
    expected = parameterization.timestep(parameterization.noise_level(state, scheduler.sigma_of_call(t)))
    assert torch.equal(scheduler.network_timestep(state, t), expected)
    state.requires_grad_()
    gradients = [torch.autograd.grad(scheduler.network_timestep(state, t).sum(), state)[0] for _ in range(2)]
    assert torch.equal(*gradients) and gradients[0].any()


def test_noisy_images_below_sigma_max_are_not_moved(digits: torch.Tensor) -> None:
    charges = digits[:500]
    pipe = PFGMPipeline(ChargeField(charges), PoissonFlowScheduler())
    pipe.set_progress_bar_config(disable=True)
    noisy = charges[:200] + 0.3 * torch.randn(200, 1, 8, 8, generator=seeded(), dtype=torch.float64)
    images = pipe(latents=noisy, sigmas=[0.3 * 0.7**i for i in range(12)], output_type="pt").images * 2 - 1
    nearest = torch.cdist(images.flatten(1), charges.flatten(1)).argmin(1)
    assert (nearest == torch.arange(200)).double().mean() > 0.97


def test_timesteps_come_before_the_hemisphere() -> None:
    scheduler = PoissonFlowScheduler(prior="hemisphere")
    with pytest.raises(ValueError, match="`move_to_prior` was called before `set_timesteps`"):
        scheduler.move_to_prior(scheduler.sample_prior((2, 64), seeded()))


@pytest.mark.parametrize("tolerance", [None, 1e-2])
def test_guidance_of_a_field_on_the_hemisphere_is_that_of_single_samples(
    digits: torch.Tensor, tolerance: float | None
) -> None:
    labels = torch.arange(40) % 2
    network = ExactNetwork(digits[:40], PoissonFlowScheduler().parameterization, 1.0, labels)
    pipe = PFGMPipeline(network, PoissonFlowScheduler(prior="hemisphere"), id2label={0: "a", 1: "b"})
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 6, "guidance_scale": 2.0, "output_type": "latent"}
    if tolerance is not None:
        options |= {"tolerance": tolerance}
    together = pipe(generator=[seeded(i) for i in range(4)], class_labels=[0, 1, 1, 0], batch_size=4, **options).images
    for i, label in enumerate([0, 1, 1, 0]):
        alone = pipe(generator=seeded(i), class_labels=label, **options).images
        # With the adaptive solver the steps depend on the batch.
        assert torch.allclose(together[i : i + 1], alone, atol=1e-6 if tolerance is None else 0.2)


def test_a_float16_state_stays_float16() -> None:
    options = {"sigma_data": 0.5, "data_mean": 0.0, "mean_square_std": 0.1, "prediction_type": "epsilon"}
    scheduler = PoissonFlowScheduler(**options)
    scheduler.set_timesteps(3)
    state = torch.ones(2, 1, 8, 8, dtype=torch.float16)
    assert scheduler.scale_model_input(state, scheduler.timesteps[0]).dtype == torch.float16


def test_a_velocity_is_read_back_at_the_estimated_noise_level() -> None:
    options = {"sigma_data": 0.5, "data_mean": 0.0, "mean_square_std": 0.1, "prediction_type": "v_prediction"}
    scheduler = PoissonFlowScheduler(**options)
    scheduler.set_timesteps(4)
    sample = 0.5 * torch.randn(4, 1, 8, 8, generator=seeded(), dtype=torch.float64)
    noise = scheduler.sample_noise(sample.shape, seeded(1), dtype=torch.float64)
    x = scheduler.add_noise(sample, noise, scheduler.timesteps)
    velocity = scheduler.get_velocity(sample, noise, scheduler.timesteps)
    sigma = torch.as_tensor(scheduler._run.sigmas, dtype=torch.float64).view(-1, 1, 1, 1)
    parameterization = scheduler.parameterization
    denoised = parameterization.denoised(velocity, x, parameterization.noise_level(x, sigma))
    assert torch.allclose(denoised, sample, atol=1e-4)
