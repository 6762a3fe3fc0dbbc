"""However small D is, and so however far samples start, they end among the data, in float32 where float64 does."""

import pytest
import torch

from diffusers_pfgm import ChargeField, PFGMPipeline, PoissonFlow, PoissonFlowScheduler
from tests.conftest import seeded

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
def test_samples_lie_among_the_charges(aug_dim: float, prediction_type: str, dtype: torch.dtype) -> None:
    start = PoissonFlowScheduler(aug_dim).sample_prior((200, 1, 8, 8), seeded(1), dtype=dtype)
    found = ends(prediction_type, aug_dim, start, 20)
    assert found.isfinite().all() and found.abs().max() < 1.05


@pytest.mark.parametrize("aug_dim", [0.05, 0.16, 0.52])
def test_the_field_of_float32_ends_where_the_mean_of_float64_does(aug_dim: float) -> None:
    # At a height as low as 1e-6 also samples that start far away end at a charge.
    start = PoissonFlowScheduler(aug_dim).sample_prior((300, 1, 8, 8), seeded(1))
    exact, found = ends("sample", aug_dim, start.double(), 60, 1e-6), ends("field", aug_dim, start, 60, 1e-6)
    distances, nearest = torch.cdist(exact, CHARGES.flatten(1)).min(1)
    hits = distances < 1e-3
    assert hits.sum() > 100 and torch.equal(torch.cdist(found, CHARGES.flatten(1)).argmin(1)[hits], nearest[hits])
    assert (found[hits] - exact[hits]).abs().max() < 1e-2


def test_images_of_a_pipeline_are_finite() -> None:
    field = ChargeField(CHARGES.float(), 0.02)
    pipe = PFGMPipeline(unet=field, scheduler=PoissonFlowScheduler(aug_dim=0.02))
    pipe.set_progress_bar_config(disable=True)
    images = pipe(batch_size=64, generator=seeded(), output_type="pt").images
    assert images.isfinite().all() and images.std() > 0.02
