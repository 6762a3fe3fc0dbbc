"""For any small D, where samples start far away, samples end near the data, in float32 as in float64."""

import pytest
import torch

from diffusers_pfgm import ChargeField, PFGMPipeline, PoissonFlow, PoissonFlowScheduler
from tests.networks import seeded

CHARGES = torch.rand(10, 1, 8, 8, generator=seeded(), dtype=torch.float64) * 2 - 1


def ends(
    prediction_type: str, aug_dim: float, start: torch.Tensor, steps: int, sigma_min: float = 0.01
) -> torch.Tensor:
    scheduler = PoissonFlowScheduler(aug_dim, sigma_min, prediction_type=prediction_type)
    field = ChargeField(CHARGES.to(start.dtype), aug_dim, prediction_type)
    return PoissonFlow(field, scheduler).sample(None, steps, latents=start).sample.flatten(1).double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("prediction_type", ["field", "sample", "epsilon"])
@pytest.mark.parametrize("aug_dim", [0.005, 0.025, 0.16, 0.52])
def test_samples_end_near_the_charges(aug_dim: float, prediction_type: str, dtype: torch.dtype) -> None:
    start = PoissonFlowScheduler(aug_dim).sample_prior((200, 1, 8, 8), seeded(1), dtype=dtype)
    samples = ends(prediction_type, aug_dim, start, 20)
    assert samples.isfinite().all() and samples.abs().max() < 1.05


@pytest.mark.parametrize("aug_dim", [0.05, 0.16, 0.52])
def test_the_field_in_float32_ends_at_the_same_charges_as_x_hat_in_float64(aug_dim: float) -> None:
    # At σ_min = 1e-6 samples that start far away also end at a charge.
    start = PoissonFlowScheduler(aug_dim).sample_prior((300, 1, 8, 8), seeded(1))
    exact = ends("sample", aug_dim, start.double(), 60, 1e-6)
    samples = ends("field", aug_dim, start, 60, 1e-6)
    distances, nearest = torch.cdist(exact, CHARGES.flatten(1)).min(1)
    hits = distances < 1e-3
    assert hits.sum() > 100 and torch.equal(torch.cdist(samples, CHARGES.flatten(1)).argmin(1)[hits], nearest[hits])
    assert (samples[hits] - exact[hits]).abs().max() < 1e-2


def test_images_of_a_pipeline_are_finite() -> None:
    field = ChargeField(CHARGES.float(), 0.02)
    pipe = PFGMPipeline(unet=field, scheduler=PoissonFlowScheduler(aug_dim=0.02))
    pipe.set_progress_bar_config(disable=True)
    images = pipe(batch_size=64, generator=seeded(), output_type="pt").images
    assert images.isfinite().all() and images.std() > 0.02
