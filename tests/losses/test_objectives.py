"""What the objectives share: errors for bad input, and the dtypes of data and networks."""

import math

import pytest
import torch

from diffusers_pfgm import (
    ChargeField,
    ConsistencyObjective,
    FieldObjective,
    Parameterization,
    PerturbationObjective,
    recommend_hyperparameters,
)
from diffusers_pfgm.losses.loss_output import drop_labels
from diffusers_pfgm.physics.noise_estimate import NoiseEstimate
from tests.networks import make_tiny_unet, seeded

HYPERPARAMETERS = recommend_hyperparameters(data_norm=5.0, data_dim=64)


def test_bad_input_is_explained(digits: torch.Tensor) -> None:
    data = digits[:8].float()
    objective = FieldObjective(HYPERPARAMETERS)
    with pytest.raises(ValueError, match="returns one channel more than the data"):
        objective(make_tiny_unet(out_channels=1), data)
    broken = data.clone()
    broken[3, 0, 2, 2] = math.nan
    with pytest.raises(ValueError, match="`clean` must be finite, but index 3 holds"):
        objective(make_tiny_unet(), broken)
    with pytest.raises(ValueError, match="`charges` must be finite, but index 3 holds"):
        objective(make_tiny_unet(), data, broken)
    with pytest.raises(ValueError, match="`clean` must be finite, but index 3 holds"):
        PerturbationObjective(Parameterization("epsilon"))(make_tiny_unet(out_channels=1), broken)
    for name in ("p_mean", "p_std"):
        with pytest.raises(ValueError, match=f"`{name}` must be a finite number, but is nan"):
            PerturbationObjective(Parameterization("epsilon"), **{name: math.nan})
    for probability in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=f"`probability` must be a number from 0 to 1, but is {probability}"):
            drop_labels(torch.zeros(3), probability, 7)
    with pytest.raises(ValueError, match="'field' needs the field of many charges: use `FieldObjective`"):
        PerturbationObjective(Parameterization("field"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_of_half_precision_are_computed_in_float32(digits: torch.Tensor, dtype: torch.dtype) -> None:
    data = digits[:8].to(dtype)
    field = FieldObjective(HYPERPARAMETERS)(ChargeField(data), data, generator=seeded())
    sample = PerturbationObjective(Parameterization("sample"))(ChargeField(data, 1.0, "sample"), data, seeded())
    assert field.loss.dtype == sample.loss.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("default_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("statistics", [None, NoiseEstimate(1.0, 0.0, 0.5, 0.1)])
def test_a_network_is_called_in_the_dtype_of_the_data(
    digits: torch.Tensor, dtype: torch.dtype, default_dtype: torch.dtype, statistics: NoiseEstimate | None
) -> None:
    parameterization = Parameterization("epsilon", sigma_data=0.5, noise_estimate=statistics)
    consistency = Parameterization("epsilon", sigma_data=0.5, noise_estimate=statistics, boundary=0.05)
    for objective, channels in [
        (PerturbationObjective(parameterization), 1),
        (PerturbationObjective(parameterization, aug_dim=None), 1),
        (ConsistencyObjective(consistency, 80.0, 0.5), 1),
        (FieldObjective(HYPERPARAMETERS, sigma_data=0.5), 2),
    ]:
        unet = make_tiny_unet(out_channels=channels).to(dtype)
        torch.set_default_dtype(default_dtype)
        try:
            loss = objective(unet, digits[:4].to(dtype), generator=seeded()).loss
        finally:
            torch.set_default_dtype(torch.float32)
        assert loss.isfinite() and loss.dtype == torch.promote_types(loss.dtype, torch.float32)
