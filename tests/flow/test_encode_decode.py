"""Decoding inverts encoding, and encoded points have the distribution of the prior."""

import math
from typing import Any

import pytest
import torch
from scipy import stats

from diffusers_pfgm import PoissonFlow, PoissonFlowScheduler
from tests.flow.known_densities import charges_in, draw_points, flow_of_charges
from tests.networks import ExactNetwork, make_tiny_unet, seeded


@pytest.mark.slow
@pytest.mark.parametrize("aug_dim", [1.0, 64.0, None])
def test_decoding_inverts_encoding_on_the_exact_field(aug_dim: float | None) -> None:
    charges = charges_in(16).view(7, 1, 4, 4)
    flow = flow_of_charges(charges, aug_dim, sigma_min=0.3)
    x = draw_points(charges, aug_dim, 0.3, 16)
    for options in ({"tolerance": 1e-8}, {"num_inference_steps": 60, "step_tolerance": 1e-10}):
        encoded = flow.encode(x, **options)
        decoded = flow.decode(encoded.latents, **options)
        assert (decoded.sample - x).norm() / x.norm() < 1e-6
        again = flow.encode(decoded.sample, **options).latents
        assert (again - encoded.latents).norm() / again.norm() < 1e-6
    assert encoded.nfe > 60 and decoded.sample.shape == x.shape


@pytest.mark.slow
def test_decoding_inverts_encoding_of_a_network() -> None:
    unet = make_tiny_unet(out_channels=1)
    flow = PoissonFlow(unet, PoissonFlowScheduler(prediction_type="sample", max_norm=300.0))
    x = torch.rand(2, 1, 8, 8, generator=seeded()) * 2 - 1
    for options, bound in (({"num_inference_steps": 20, "step_tolerance": 1e-5}, 1e-3), ({"tolerance": 1e-6}, 1e-4)):
        latents = flow.encode(x, **options).latents
        assert latents.dtype == torch.float32 and latents.norm() > 40
        assert (flow.decode(latents, **options).sample - x).norm() / x.norm() < bound


@pytest.mark.slow
def test_step_tolerance_is_at_least_the_precision_of_the_network() -> None:
    flow = PoissonFlow(make_tiny_unet(out_channels=1), PoissonFlowScheduler(prediction_type="sample", max_norm=300.0))
    x = torch.rand(3, 1, 8, 8, generator=seeded()) * 2 - 1
    latents = flow.encode(x, 10, step_tolerance=1e-12).latents
    assert (flow.decode(latents, 10, step_tolerance=1e-12).sample - x).norm() / x.norm() < 1e-5


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_latents_of_a_beta_schedule_are_at_its_last_timestep(spacing: str) -> None:
    charges, calls = charges_in(4), []
    scheduler = PoissonFlowScheduler(
        aug_dim=None, prediction_type="epsilon", beta_schedule="linear", timestep_spacing=spacing
    )
    network = ExactNetwork(charges, scheduler.parameterization, None)

    def model(sample: torch.Tensor, timestep: torch.Tensor) -> Any:
        calls.append((sample, timestep))
        return network(sample, timestep)

    flow = PoissonFlow(model, scheduler)
    latents = flow.encode(charges, tolerance=1e-3).latents
    calls.clear()
    assert torch.allclose(flow.sample(latents=latents).sample, charges, atol=1e-2)
    assert calls[0][1] == 999 and torch.allclose(calls[0][0], latents / math.hypot(1, flow.sigma_max))


def test_encoded_points_are_uniform_on_the_hemisphere() -> None:
    # Theorem 1 of PFGM, with fixed seeds.
    charges = charges_in(4)
    z = 2000.0
    x = draw_points(charges, 1.0, 0.3, 2000, seed=5)
    latents = flow_of_charges(charges, sigma_min=0.3, sigma_max=z).encode(x).latents
    points = torch.cat([latents, torch.full((2000, 1), z)], dim=1)
    points = points / points.norm(dim=1, keepdim=True)
    # For a coordinate u of a uniform point of the sphere in R^5, (1 + u) / 2 ~ Beta(2, 2); z is |u|.
    law = stats.beta(2, 2)
    for coordinate in points[:, :4].T:
        assert stats.kstest((1 + coordinate) / 2, law.cdf).pvalue > 0.01
    assert stats.kstest(points[:, 4], lambda u: 2 * law.cdf((1 + u) / 2) - 1).pvalue > 0.01
    rotated = (points[:, 0] + points[:, 1]) / math.sqrt(2)
    assert stats.kstest((1 + rotated) / 2, law.cdf).pvalue > 0.01
    cosines = (points[:1000] * points[1000:])[:, :4].sum(1) / (
        points[:1000, :4].norm(dim=1) * points[1000:, :4].norm(dim=1)
    )
    assert stats.kstest((1 + cosines) / 2, stats.beta(1.5, 1.5).cdf).pvalue > 0.01


def test_samples_equal_a_run_of_the_scheduler(digits: torch.Tensor) -> None:
    flow = flow_of_charges(digits[:50])
    scheduler = flow.scheduler
    scheduler.set_timesteps(12)
    x = latents = scheduler.move_to_prior(scheduler.sample_prior((4, 1, 8, 8), seeded(), dtype=torch.float64))
    for timestep in scheduler.timesteps:
        x = scheduler.step(flow.model(x, timestep).sample, timestep, x).prev_sample
    output = flow.sample((4, 1, 8, 8), 12, seeded())
    assert torch.equal(output.sample, x) and output.nfe == 12
    assert torch.equal(flow.sample(latents=latents, num_inference_steps=12).sample, x)
