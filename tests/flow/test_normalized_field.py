"""The normalized field of a model is that of its x̂, whatever the model predicts."""

import math

import pytest
import torch

from diffusers_pfgm import Parameterization, PoissonFlow, PoissonFlowScheduler, normalized_field, posterior_mean
from diffusers_pfgm.physics.denoiser import Denoiser
from tests.flow.known_densities import charges_in, draw_points, flow_of_charges
from tests.networks import make_tiny_unet, seeded


@pytest.mark.parametrize("prediction_type", ["field", "sample", "epsilon"])
@pytest.mark.parametrize("shape", [(4,), (1, 2, 2)])
def test_normalized_field_is_that_of_the_charges(prediction_type: str, shape: tuple[int, ...]) -> None:
    charges = charges_in(4).view(7, *shape)
    x = draw_points(charges, 1.0, 1.0, 5)
    flow = flow_of_charges(charges, 1.0, prediction_type)
    for z in (0.3, 20.0, torch.tensor([0.02, 0.3, 1.0, 5.0, 40.0])):
        for gamma in (5.0, 0.0):
            field = flow.normalized_field(x, z, gamma)
            assert field.shape == (5, 5) and field.dtype == torch.float64
            assert torch.allclose(field, normalized_field(x, z, charges, gamma), rtol=0, atol=1e-9)
    assert torch.equal(flow.normalized_field(x, 0.3), flow.normalized_field(x, 0.3, 5.0))


@pytest.mark.parametrize("prediction_type", ["field", "sample", "epsilon"])
def test_z_is_the_augmented_radius(prediction_type: str) -> None:
    charges = charges_in(3)
    x = draw_points(charges, 4.0, 0.5, 5)
    field = flow_of_charges(charges, 4.0, prediction_type).normalized_field(x, 1.0)
    offset = torch.cat([posterior_mean(x, 0.5, charges, 4.0) - x, torch.full((5, 1), -1.0)], dim=1)
    expected = math.sqrt(3) * offset / (offset.norm(dim=1, keepdim=True) + 5.0)
    assert torch.allclose(field, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("gamma", [5.0, 0.5])
def test_the_denoised_sample_of_a_preconditioned_network_is_read_back(gamma: float) -> None:
    options = {"sigma_data": 0.5, "data_mean": 0.0, "mean_square_std": 0.1, "prediction_type": "epsilon"}
    scheduler = PoissonFlowScheduler(**options)
    unet = make_tiny_unet(out_channels=1)
    z = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    column = z.view(3, 1, 1, 1)
    x = column * torch.randn(3, 1, 8, 8, generator=seeded(), dtype=torch.float64)
    field = PoissonFlow(unet, scheduler).normalized_field(x, z, gamma)
    assert field.shape == (3, 65) and field.isfinite().all()
    with torch.no_grad():
        denoised = Denoiser(unet, scheduler.parameterization)(x, column)
    output = torch.cat([field[:, :-1].view(3, 1, 8, 8), field[:, -1].view(3, 1, 1, 1).expand(3, 1, 8, 8)], dim=1)
    parameterization = Parameterization("field", gamma)
    assert torch.allclose(parameterization.denoised(output, x, column), denoised, rtol=0, atol=1e-9)
    assert torch.allclose(parameterization.target(denoised, x, column), output, rtol=0, atol=1e-12)


def test_invalid_arguments_raise() -> None:
    flow = flow_of_charges(charges_in(3))
    x = torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"`x` must have the shape \(B, \*\) of one point or more, but has \(3,\)"):
        flow.normalized_field(x[0], 1.0)
    with pytest.raises(ValueError, match="`x` must be finite, but index 0, 1 holds NaN"):
        flow.normalized_field(x * math.nan, 1.0)
    for z in (0.0, -1.0, math.nan, math.inf, torch.tensor([1.0, 0.0])):
        with pytest.raises(ValueError, match="`z` must be a finite number > 0 for every sample, but is"):
            flow.normalized_field(x, z)
    with pytest.raises(ValueError, match=r"`z` must be a number or have the shape \(2,\).*but has \(3,\)"):
        flow.normalized_field(x, torch.ones(3))
    for gamma in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="`gamma` must be a finite number >= 0"):
            flow.normalized_field(x, 1.0, gamma)
    with pytest.raises(ValueError, match="`aug_dim` of the scheduler must be finite"):
        flow_of_charges(charges_in(3), None).normalized_field(x, 1.0)
