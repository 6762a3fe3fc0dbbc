"""Targets of the perturbation objective from charges, and its loss with the Student-t preconditioning."""

import pytest
import torch

from diffusers_pfgm import ChargeField, Charges, ClassCharges, PerturbationObjective, PoissonFlowScheduler
from diffusers_pfgm.losses.loss_output import LossOutput
from tests.networks import make_tiny_unet, seeded

STATISTICS = {"sigma_data": 0.75, "data_mean": -0.4, "mean_square_std": 0.07}


def objective_for(aug_dim: float | None = 1.0, prediction_type: str = "sample") -> PerturbationObjective:
    scheduler = PoissonFlowScheduler(aug_dim, prediction_type=prediction_type)
    return PerturbationObjective(scheduler.parameterization, aug_dim, 0.0)


@pytest.mark.parametrize("aug_dim", [1.0, 64.0, None])
@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
def test_the_exact_field_has_no_loss(digits: torch.Tensor, aug_dim: float | None, prediction_type: str) -> None:
    data = digits[:200]
    model = ChargeField(data, aug_dim, prediction_type)
    for charges in (data, Charges(data)):
        result = objective_for(aug_dim, prediction_type)(model, data[:32], seeded(), charges)
        assert result.loss < 1e-12
    assert objective_for(aug_dim, prediction_type)(model, data[:32], seeded()).loss > 1e-3


def test_one_charge_is_the_sample_itself(digits: torch.Tensor) -> None:
    unet = make_tiny_unet(out_channels=1)
    data = digits[:1].float()
    losses = [objective_for()(unet, data, seeded(), charges).loss for charges in (None, data)]
    assert torch.allclose(*losses)


def test_each_class_has_the_posterior_mean_of_its_charges(digits: torch.Tensor) -> None:
    data, labels = digits[:40], torch.arange(40) % 2
    fields = [ChargeField(data[labels == label], 1.0, "sample") for label in (0, 1)] + [
        ChargeField(data, 1.0, "sample")
    ]

    def model(x: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> object:
        rows = [fields[int(label)](x[i : i + 1], timestep[i : i + 1]).sample for i, label in enumerate(class_labels)]
        return type("Output", (), {"sample": torch.cat(rows)})

    with_null = torch.where(torch.arange(40) % 5 == 0, 2, labels)  # the null class has all charges
    for charges, options in ((data, {"charge_labels": labels}), (ClassCharges(data, labels), {})):
        result: LossOutput = objective_for()(model, data, seeded(), charges, with_null, **options)
        assert result.loss < 1e-12
    with pytest.raises(ValueError, match="`charge_labels` were given without `class_labels`"):
        objective_for()(model, data, seeded(), data, charge_labels=labels)


def test_at_infinite_d_it_is_the_objective_of_edm_to_the_bit(digits: torch.Tensor) -> None:
    results = []
    for statistics in (STATISTICS, {"sigma_data": 0.75}):
        parameterization = PoissonFlowScheduler(None, prediction_type="epsilon", **statistics).parameterization
        unet = make_tiny_unet(out_channels=1)
        optimizer = torch.optim.AdamW(unet.parameters(), 1e-3)
        generator = seeded()
        for _ in range(3):
            optimizer.zero_grad()
            PerturbationObjective(parameterization, None)(unet, digits[:16].float(), generator).loss.backward()
            optimizer.step()
        results.append(torch.cat([weight.detach().flatten() for weight in unet.parameters()]))
    assert torch.equal(*results)


@pytest.mark.parametrize(("statistics", "bounded"), [(STATISTICS, True), ({"sigma_data": 0.75}, False)])
def test_at_small_d_no_sample_dominates_a_batch(
    digits: torch.Tensor, statistics: dict[str, float], bounded: bool
) -> None:
    data = digits[:128].float()
    scheduler = PoissonFlowScheduler(1.0, prediction_type="epsilon", **statistics)
    objective = PerturbationObjective(scheduler.parameterization, 1.0, bounded=bounded)
    network = make_tiny_unet(out_channels=1)
    generator = seeded()
    losses = torch.stack([objective(network, data, generator).per_sample.detach() for _ in range(20)])
    share = (losses.amax(1) / losses.sum(1)).median().item()
    if bounded:
        assert share < 0.05
    else:  # EDM's preconditioning with the whole kernel, as PFGM++ would have it at D = 1
        assert share > 0.3
