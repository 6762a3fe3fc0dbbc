"""A network with the Student-t preconditioning gives the same x̂ in every pipeline, solver and flow."""

from pathlib import Path

import pytest
import torch
from diffusers import EDMEulerScheduler

from diffusers_pfgm import PFGMInversePipeline, PFGMPipeline, PoissonFlow, PoissonFlowScheduler
from diffusers_pfgm.inverse.operators import Inpainting
from diffusers_pfgm.physics.denoiser import Denoiser
from diffusers_pfgm.solvers import integrate
from tests.networks import make_tiny_unet, seeded

OPTIONS = {"sigma_data": 0.75, "data_mean": -0.4, "mean_square_std": 0.07, "prediction_type": "epsilon"}


@pytest.fixture
def pipe() -> PFGMPipeline:
    pipe = PFGMPipeline(make_tiny_unet(out_channels=1), PoissonFlowScheduler(**OPTIONS))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("prior", ["plane", "shell", "hemisphere"])
@pytest.mark.parametrize("solver", ["multistep", "heun"])
def test_a_run_is_the_integral_of_the_denoiser(pipe: PFGMPipeline, prior: str, solver: str) -> None:
    pipe.scheduler = scheduler = PoissonFlowScheduler.from_config(pipe.scheduler.config, prior=prior, solver=solver)
    images = pipe(3, 6, seeded(), output_type="latent").images
    scheduler.set_timesteps(6)
    x = scheduler.move_to_prior(scheduler.sample_prior((3, 1, 8, 8), seeded()))
    denoiser = Denoiser(pipe.unet, scheduler.parameterization)
    sigmas = [*scheduler._run.sigmas, 0.0]
    with torch.no_grad():
        expected = integrate(lambda x, sigma: denoiser(x, scheduler.sigma_of_samples(sigma)), x, sigmas, solver=solver)
    assert torch.allclose(images, expected, atol=1e-4)


def test_a_saved_pipeline_keeps_the_statistics(pipe: PFGMPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    loaded = PFGMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.scheduler.parameterization == pipe.scheduler.parameterization
    images = [each(2, 4, seeded(), output_type="pt").images for each in (pipe, loaded)]
    assert torch.equal(*images)


def test_guidance_and_measurements_use_the_same_denoiser(pipe: PFGMPipeline) -> None:
    network = make_tiny_unet(out_channels=1, num_class_embeds=3)  # two classes and the null class
    conditional = PFGMPipeline(network, pipe.scheduler, id2label={0: "a", 1: "b"})
    conditional.set_progress_bar_config(disable=True)
    labels = [0, 1]
    plain, guided = (
        conditional(2, 4, seeded(), class_labels=labels, guidance_scale=scale, output_type="latent").images
        for scale in (1.0, 1.0 + 1e-9)
    )
    assert torch.allclose(plain, guided, atol=1e-5)
    # One pixel with much noise is measured, so that the guidance by the measurement changes almost nothing.
    inverse = PFGMInversePipeline(pipe.unet, pipe.scheduler)
    inverse.set_progress_bar_config(disable=True)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 0, 0] = 1
    options = {"num_inference_steps": 5, "generator": seeded(), "noise_std": 1e4}
    output = inverse(torch.zeros(2, 1, 8, 8), Inpainting(mask), **options)
    assert torch.allclose(output.samples, pipe(2, 5, seeded(), output_type="latent").images, atol=1e-3)


@pytest.mark.slow
def test_encode_decode_and_density_use_the_gradient_of_the_estimate(pipe: PFGMPipeline) -> None:
    scheduler = PoissonFlowScheduler(sigma_min=0.3, sigma_max=20.0, **OPTIONS)
    flow = PoissonFlow(pipe.unet.double(), scheduler)
    x = torch.randn(2, 1, 8, 8, generator=seeded(), dtype=torch.float64)
    latents = flow.encode(x, 30).latents
    assert (flow.decode(latents, 30).sample - x).abs().max() < 1e-3
    divergence = flow.divergence(x, 1.0)
    denoiser = Denoiser(pipe.unet, scheduler.parameterization)
    shift = 1e-5 * torch.eye(64, dtype=torch.float64).view(64, 1, 8, 8)
    with torch.no_grad():
        columns = (denoiser(x[:1] + shift, 1.0) - denoiser(x[:1] - shift, 1.0)).flatten(1) / 2e-5
    # The nodes of the estimate's integral are constants of its gradient.
    assert divergence[0, 0].item() == pytest.approx(64 - columns.trace().item(), rel=1e-3)


def test_schedulers_that_cannot_call_it_are_refused(pipe: PFGMPipeline) -> None:
    pipe.scheduler = EDMEulerScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match="the noise level of each sample"):
        pipe(1, 2)


def test_incomplete_statistics_are_explained() -> None:
    for options in ({"data_mean": 0.0}, {"data_mean": 0.0, "mean_square_std": 0.1}):
        with pytest.raises(ValueError, match=r"The Student-t preconditioning needs .* is None"):
            PoissonFlowScheduler(prediction_type="epsilon", **options)
    with pytest.raises(ValueError, match="`mean_square_std` a finite number >= 0"):
        PoissonFlowScheduler(**{**OPTIONS, "mean_square_std": -1.0})
