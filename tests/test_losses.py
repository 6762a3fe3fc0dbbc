"""Objectives have their minimum where theory says, and say what is wrong."""

import itertools
import math

import pytest
import torch

from diffusers_pfgm import (
    ChargeField,
    Charges,
    FieldObjective,
    Parameterization,
    PerturbationObjective,
    recommend_hyperparameters,
)
from diffusers_pfgm.physics.field import FieldOutput
from tests.conftest import make_tiny_unet, seeded

HYPERPARAMETERS = recommend_hyperparameters(data_norm=5.0, data_dim=64)


def test_the_exact_field_has_no_field_loss(digits: torch.Tensor) -> None:
    data = digits[:200].float()
    for charges in (data, Charges(data)):
        result = FieldObjective(HYPERPARAMETERS)(ChargeField(data), data[:32], charges, seeded())
        assert result.loss < 1e-10


def test_the_field_loss_is_that_of_the_larger_batch(digits: torch.Tensor) -> None:
    data = digits[:200].float()
    result = FieldObjective(HYPERPARAMETERS)(ChargeField(data), data[:32], generator=seeded())
    assert result.loss > 1e-4  # the field of 32 charges is another


def test_the_field_loss_counts_n_plus_one_components(digits: torch.Tensor) -> None:
    data = digits[:50].float()

    def off_by_one_along_z(x: torch.Tensor, z: torch.Tensor) -> FieldOutput:
        output = ChargeField(data)(x, z).sample
        output[:, -1] += 1
        return FieldOutput(output)

    result = FieldObjective(HYPERPARAMETERS)(off_by_one_along_z, data[:32], data, seeded())
    assert result.loss.item() == pytest.approx(1 / 65, rel=1e-4)


@pytest.mark.parametrize("aug_dim", [2.5, 64.0, math.inf])
@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
def test_the_posterior_mean_minimises_the_perturbation_loss(
    digits: torch.Tensor, aug_dim: float, prediction_type: str
) -> None:
    data = digits[:50].float()
    field = ChargeField(data, aug_dim, prediction_type)
    objective = PerturbationObjective(Parameterization(prediction_type), aug_dim, p_mean=0.0)
    batch = data.repeat(40, 1, 1, 1)

    def loss(scale: float, shift: float) -> float:
        def bent(x: torch.Tensor, sigma: torch.Tensor) -> FieldOutput:
            return FieldOutput(scale * field(x, sigma).sample + shift)

        return objective(bent, batch, seeded()).loss.item()

    least = loss(1.0, 0.0)
    assert all(loss(*other) > least for other in [(0.9, 0.0), (1.1, 0.0), (1.0, 0.1), (1.0, -0.1)])


@pytest.mark.parametrize("aug_dim", [1.0, 64.0, None])
@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction"])
def test_perturbation_trains_a_preconditioned_network(
    digits: torch.Tensor, aug_dim: float | None, prediction_type: str
) -> None:
    unet = make_tiny_unet(out_channels=1)
    objective = PerturbationObjective(Parameterization(prediction_type, sigma_data=0.7), aug_dim)
    result = objective(unet, digits[:8].float(), [seeded(i) for i in range(8)])
    result.loss.backward()
    assert result.loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in unet.parameters())


def test_bands_average_to_the_loss(digits: torch.Tensor) -> None:
    data = digits[:64].float()
    result = FieldObjective(HYPERPARAMETERS)(make_tiny_unet(), data, generator=seeded())
    bands = result.bands()
    edges = ["0", "0.01", "0.1", "1.0", "10.0", "inf"]
    assert set(bands) <= {f"loss/sigma_{low}_{high}" for low, high in itertools.pairwise(edges)}
    inside = (result.sigma > 0.1) & (result.sigma <= 1.0)
    assert bands["loss/sigma_0.1_1.0"] == pytest.approx(result.per_sample[inside].mean().item())
    assert result.loss.item() == pytest.approx(result.per_sample.mean().item())


def test_a_seed_makes_the_loss_repeatable_and_leaves_the_global_state(digits: torch.Tensor) -> None:
    data, before = digits[:16].float(), torch.get_rng_state()
    losses = [FieldObjective(HYPERPARAMETERS)(make_tiny_unet(), data, generator=seeded(3)).loss for _ in range(2)]
    assert torch.equal(*losses) and torch.equal(before, torch.get_rng_state())


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
    with pytest.raises(ValueError, match="'field' needs the field of many charges: use `FieldObjective`"):
        PerturbationObjective(Parameterization("field"))
