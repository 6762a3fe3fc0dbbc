"""Sampling from a consistency model: jumps and fresh noise, as diffusers' scheduler makes them at D = ∞."""

import math
from typing import Any

import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, EDMEulerScheduler

from diffusers_pfgm import (
    PFGMEditingPipeline,
    PFGMInversePipeline,
    PFGMLikelihoodPipeline,
    PFGMPipeline,
    PoissonFlow,
    PoissonFlowScheduler,
    fit_sigmas,
)
from diffusers_pfgm.inverse import Inpainting
from tests.networks import ExactNetwork, make_tiny_unet, seeded

LEVELS = [80.0, 1.0, 0.3]


def make_scheduler(aug_dim: float | None = 1.0, **options: Any) -> PoissonFlowScheduler:
    options = {"consistency_boundary": 0.05, "consistency_sigmas": LEVELS, "sigma_data": 0.5} | options
    if aug_dim is not None:
        options |= {"data_mean": 0.0, "mean_square_std": 0.1}
    return PoissonFlowScheduler(aug_dim, 0.002, 80.0, "epsilon", **options)


def make_pipeline(aug_dim: float | None = 1.0, classes: int | None = None, **options: Any) -> PFGMPipeline:
    unet = make_tiny_unet(out_channels=1, num_class_embeds=classes)
    id2label = None if classes is None else {number: f"digit {number}" for number in range(classes - 1)}
    pipe = PFGMPipeline(unet, make_scheduler(aug_dim, **options), id2label)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_it_equals_the_consistency_scheduler_of_diffusers(digits: torch.Tensor) -> None:
    theirs = CMStochasticIterativeScheduler(sigma_min=2.0**-9, sigma_max=80.0, clip_denoised=False)
    theirs.set_timesteps(timesteps=[39, 25, 20])
    sigmas = theirs.sigmas[:2].tolist()  # the third is their end, σ_min, where nothing changes any more
    ours = make_scheduler(None, consistency_sigmas=sigmas)
    ours.set_timesteps(2)
    assert ours.timesteps.tolist() == pytest.approx([math.log(sigma) / 4 for sigma in sigmas], rel=1e-5)
    network = ExactNetwork(digits[:50].float(), ours.parameterization)
    x = y = ours.sample_prior((4, 1, 8, 8), seeded())
    ours_generator, their_generator = seeded(1), seeded(1)
    for t, their_t, sigma in zip(ours.timesteps, theirs.timesteps, theirs.sigmas, strict=False):
        output = network(ours.scale_model_input(x, t), t).sample
        x = ours.step(output, t, x, ours_generator).prev_sample
        # A network for their boundary with the same prediction of the data.
        prediction = ours.parameterization.denoised(network(y * ours.parameterization.c_in(sigma), t).sample, y, sigma)
        theirs.scale_model_input(y, their_t)
        c_skip, c_out = theirs.get_scalings_for_boundary_condition(sigma)
        y = theirs.step((prediction - c_skip * y) / c_out, their_t, y, their_generator).prev_sample
        assert torch.allclose(x, y, atol=1e-4)  # their noise has the level √(σ² − σ_min²)


@pytest.mark.parametrize("aug_dim", [1.0, 64.0, None])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_each_call_has_noise_of_the_next_level(aug_dim: float | None, steps: int) -> None:
    pipe = make_pipeline(aug_dim)
    states: list[torch.Tensor] = []
    predictions: list[torch.Tensor] = []

    def record(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        states.append(tensors["latents"])
        predictions.append(tensors["pred_original_sample"])
        return {}

    names = ["latents", "pred_original_sample"]
    output = pipe(64, steps, seeded(), callback_on_step_end=record, callback_on_step_end_tensor_inputs=names)
    assert output.nfe == steps == len(states)
    for state, prediction, sigma in zip(states, predictions, LEVELS[1:steps], strict=False):
        norms = (state - prediction).flatten(1).norm(dim=1) / (8 * sigma)  # 1 for noise of norm √N = 8
        if aug_dim is None:
            assert norms.mean().item() == pytest.approx(1, abs=0.05) and norms.std() > 0.03
        else:
            assert torch.allclose(norms, torch.ones(64), rtol=1e-4)  # on the shell
    assert torch.equal(states[-1], predictions[-1])


@pytest.mark.parametrize("prior", ["plane", "hemisphere"])
def test_other_priors_get_noise_of_the_kernel(prior: str) -> None:
    pipe = make_pipeline(1.0, prior=prior, max_norm=80.0 * 8 * 4)
    images = pipe(4, 2, seeded(), output_type="pt").images
    assert images.isfinite().all()
    scheduler = pipe.scheduler
    norms = scheduler.renoise(torch.zeros(4000, 1, 8, 8), 0.3, seeded()).flatten(1).norm(dim=1)
    radius = scheduler.kernel.sample((40_000, 1, 8, 8), 0.3, seeded(1)).flatten(1).norm(dim=1)
    radius = radius[radius <= 0.3 * 8 * 4]  # the training noise is bounded
    quantiles = torch.tensor([0.1, 0.5, 0.9])
    assert torch.allclose(norms.quantile(quantiles), radius.quantile(quantiles), rtol=0.06)


@pytest.mark.parametrize(("aug_dim", "dtype"), [(0.02, torch.float32), (1.0, torch.float16)])
def test_noise_on_the_shell_has_no_heavy_tail(aug_dim: float, dtype: torch.dtype) -> None:
    noisy = make_scheduler(aug_dim).renoise(torch.zeros(2000, 1, 8, 8, dtype=dtype), 1.0, seeded())
    assert torch.allclose(noisy.float().flatten(1).norm(dim=1), torch.full((2000,), 8.0), rtol=5e-3)


def test_predictions_are_clamped_before_new_noise_is_added() -> None:
    denoised = torch.linspace(-3, 3, 64).view(1, 1, 8, 8)
    for clip in (True, False):
        noisy = make_scheduler(consistency_clip=clip).renoise(denoised, 1e-4, seeded())
        assert torch.allclose(noisy, denoised.clamp(-1, 1) if clip else denoised, atol=1e-3)


def test_a_consistency_model_of_the_field_has_the_bounded_noise_of_its_tuning() -> None:
    scheduler = PoissonFlowScheduler(max_norm=40.0 * 4 * 4, consistency_boundary=0.05, consistency_sigmas=[40.0, 1.0])
    norms = scheduler.renoise(torch.zeros(2000, 1, 4, 4), 0.5, seeded()).flatten(1).norm(dim=1)
    assert 0.3 * 16 * 0.5 < norms.max() <= 16 * 0.5


def test_images_depend_on_their_generators_only() -> None:
    pipe = make_pipeline()
    state = torch.get_rng_state()
    together = pipe(3, 2, [seeded(i) for i in range(3)], output_type="pt").images
    alone = torch.cat([pipe(1, 2, [seeded(i)], output_type="pt").images for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.equal(torch.get_rng_state(), state)


def test_custom_levels_are_allowed() -> None:
    assert make_pipeline()(1, generator=seeded(), sigmas=[80.0, 2.0, 1.0, 0.5], output_type="pt").nfe == 4


@pytest.mark.parametrize("aug_dim", [1.0, None])
def test_a_saved_pipeline_draws_the_same(aug_dim: float | None, tmp_path: Any) -> None:
    pipe = make_pipeline(aug_dim, classes=4, consistency_guidance=2.0)
    pipe.save_pretrained(tmp_path)
    loaded = PFGMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    images = [each(3, 2, seeded(), output_type="pt", class_labels=1).images for each in (pipe, loaded)]
    assert torch.equal(*images)
    card = (tmp_path / "README.md").read_text()
    assert "| learned guidance scale | 2 |" in card and "num_inference_steps=2" in card
    assert "one call at each of the first σ = 80, 1, 0.3" in card


def test_learned_guidance_needs_no_second_half_of_the_batch() -> None:
    pipe = make_pipeline(classes=4, consistency_guidance=2.0)
    plain = pipe(2, 1, seeded(), output_type="pt", class_labels=1).images
    same = pipe(2, 1, seeded(), output_type="pt", class_labels=1, guidance_scale=2.0).images
    assert torch.equal(plain, same)
    with pytest.raises(ValueError, match=r"`guidance_scale` must be 2, .* but is 3.0"):
        pipe(2, 1, seeded(), class_labels=1, guidance_scale=3.0)
    with pytest.raises(ValueError, match=r"`guidance_scale` = 2.0 needs `class_labels`"):
        pipe(2, 1, seeded(), guidance_scale=2.0)
    other = make_pipeline(classes=4)  # tuned without guidance, which the pipeline then computes
    assert not torch.equal(other(2, 1, seeded(), output_type="pt", class_labels=1, guidance_scale=3.0).images, plain)


def test_what_needs_the_ode_refuses_a_consistency_model(digits: torch.Tensor) -> None:
    pipe = make_pipeline()
    image = digits[:1].float() / 2 + 0.5
    reason = "`scheduler` is of a consistency model"
    with pytest.raises(ValueError, match=reason):
        pipe(1, tolerance=1e-2)
    with pytest.raises(ValueError, match=reason):
        PoissonFlow(pipe.unet, pipe.scheduler)
    with pytest.raises(ValueError, match=reason):
        fit_sigmas(pipe.unet, pipe.scheduler, (1, 8, 8))
    with pytest.raises(ValueError, match=reason):
        PFGMLikelihoodPipeline(**pipe.components)(image)
    with pytest.raises(ValueError, match=reason):
        PFGMEditingPipeline(**pipe.components).encode(image)
    with pytest.raises(ValueError, match=reason):
        PFGMInversePipeline(**pipe.components)(image, Inpainting(torch.ones(1, 8, 8)))
    swapped = EDMEulerScheduler.from_config(make_scheduler(None).config)
    with pytest.raises(ValueError, match=r"`scheduler` \(EDMEulerScheduler\) is unable to sample from a consistency"):
        PFGMPipeline(pipe.unet, swapped)(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"consistency_sigmas": None}, "needs `consistency_boundary` and `consistency_sigmas`"),
        ({"consistency_boundary": None}, "needs `consistency_boundary` and `consistency_sigmas`"),
        ({"consistency_sigmas": [1.0, 2.0]}, "must be positive, strictly decreasing"),
        ({"consistency_sigmas": [100.0]}, "at most `sigma_max` = 80.0"),
        ({"consistency_sigmas": []}, "must be positive, strictly decreasing"),
        ({"consistency_sigmas": [80.0, 0.0]}, "must be positive, strictly decreasing"),
        ({"consistency_sigmas": 80.0}, "`consistency_sigmas` must be a list of numbers or None"),
        ({"solver": "heun"}, "`solver` must be 'multistep', the default, for a consistency model, but is 'heun'"),
        ({"consistency_boundary": -1.0}, "must be a finite number > 0 or None, but is -1.0"),
        ({"consistency_guidance": math.inf}, "`consistency_guidance` must be a finite number"),
        ({"final_sigmas_type": "sigma_min"}, "must be 'zero' for a consistency model"),
    ],
)
def test_options_that_are_not_allowed_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_scheduler(**options)


@pytest.mark.parametrize("options", [{}, {"num_inference_steps": 4}])
def test_more_steps_than_levels_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=r"must be at most 3 for this consistency model.* Pass `num_inference_steps=1`"
    ):
        make_pipeline()(1, **options)
