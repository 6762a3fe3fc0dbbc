"""The field objective has the minimum that the theory predicts, with classes too."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_pfgm import (
    ChargeField,
    Charges,
    ClassCharges,
    FieldObjective,
    recommend_hyperparameters,
)
from diffusers_pfgm.physics.field import FieldOutput
from tests.networks import make_tiny_unet, seeded

HYPERPARAMETERS = recommend_hyperparameters(data_norm=5.0, data_dim=64)


def test_the_exact_field_has_no_loss(digits: torch.Tensor) -> None:
    data = digits[:200].float()
    for charges in (data, Charges(data)):
        result = FieldObjective(HYPERPARAMETERS)(ChargeField(data), data[:32], charges, seeded())
        assert result.loss < 1e-10


def test_the_field_of_another_batch_has_a_loss(digits: torch.Tensor) -> None:
    data = digits[:200].float()
    result = FieldObjective(HYPERPARAMETERS)(ChargeField(data), data[:32], generator=seeded())
    assert result.loss > 1e-4  # the field of 32 charges differs


def test_the_field_loss_is_a_mean_over_n_plus_one_components(digits: torch.Tensor) -> None:
    data = digits[:50].float()

    def off_by_one_along_z(x: torch.Tensor, z: torch.Tensor) -> FieldOutput:
        output = ChargeField(data)(x, z).sample
        output[:, -1] += 1
        return FieldOutput(output)

    result = FieldObjective(HYPERPARAMETERS)(off_by_one_along_z, data[:32], data, seeded())
    assert result.loss.item() == pytest.approx(1 / 65, rel=1e-4)


def test_a_seed_makes_the_field_loss_repeatable_without_the_global_generator(digits: torch.Tensor) -> None:
    data, before = digits[:16].float(), torch.get_rng_state()
    losses = [FieldObjective(HYPERPARAMETERS)(make_tiny_unet(), data, generator=seeded(3)).loss for _ in range(2)]
    assert torch.equal(*losses) and torch.equal(before, torch.get_rng_state())


def test_the_exact_field_of_another_gamma_has_no_loss(digits: torch.Tensor) -> None:
    data = digits[:50].float()
    result = FieldObjective(HYPERPARAMETERS, gamma=0.5)(ChargeField(data, gamma=0.5), data[:32], data, seeded())
    assert result.loss < 1e-10


def test_the_field_loss_uses_the_mean_of_the_last_channel(digits: torch.Tensor) -> None:
    data = digits[:50].float()

    def uneven(x: torch.Tensor, z: torch.Tensor) -> FieldOutput:
        output = ChargeField(data)(x, z).sample
        noise = torch.randn(output[:, -1].shape, generator=seeded(1))
        output[:, -1] += noise - noise.mean((1, 2), keepdim=True)
        return FieldOutput(output)

    assert FieldObjective(HYPERPARAMETERS)(uneven, data[:32], data, seeded()).loss < 1e-10


@pytest.mark.parametrize("name", ["class_labels", "context"])
def test_keyword_arguments_are_passed_to_the_network(digits: torch.Tensor, name: str) -> None:
    data, inputs, value = digits[:4].float(), [], torch.tensor([3, 3, 1, 0])

    def record(x: torch.Tensor, z: torch.Tensor, **options: Any) -> FieldOutput:
        inputs.append(options)
        return FieldOutput(torch.cat([x, x], dim=1))

    FieldObjective(HYPERPARAMETERS)(record, data, generator=seeded(), **{name: value})
    assert list(inputs[0]) == [name] and torch.equal(inputs[0][name], value)


def test_each_class_has_the_field_of_its_charges(digits: torch.Tensor) -> None:
    data, labels, null = digits[:40].float(), torch.arange(40) % 4, 4
    class_labels = labels[:20].clone()
    class_labels[::5] = null

    def exact(x: torch.Tensor, z: torch.Tensor, class_labels: torch.Tensor) -> FieldOutput:
        rows = []
        for i, label in enumerate(class_labels.tolist()):
            field = ChargeField(data if label == null else data[labels == label])
            rows.append(field(x[i : i + 1], z[i : i + 1]).sample)
        return FieldOutput(torch.cat(rows))

    objective = FieldObjective(HYPERPARAMETERS)
    options = {"charges": data, "class_labels": class_labels, "charge_labels": labels}
    assert objective(exact, data[:20], generator=seeded(), **options).per_sample.max() < 1e-9
    # The same network has a loss if all charges have the same class.
    options["charge_labels"] = labels * 0
    assert objective(exact, data[:20], generator=seeded(), **options).loss > 1e-4


def test_every_charge_needs_a_label(digits: torch.Tensor) -> None:
    data = digits[:8].float()
    for charges, labels in ((data, torch.zeros(4)), (Charges(data), torch.zeros(8))):
        with pytest.raises(
            ValueError,
            match=r"`charge_labels` must be a tensor with one label for each of the 8 charges|or ClassCharges",
        ):
            FieldObjective(HYPERPARAMETERS)(
                ChargeField(data), data[:4], charges, class_labels=torch.zeros(4), charge_labels=labels
            )


def test_every_sample_needs_a_label(digits: torch.Tensor) -> None:
    data = digits[:8].float()
    objective = FieldObjective(HYPERPARAMETERS)
    for wrong in (torch.zeros(1), torch.zeros(3)):
        with pytest.raises(ValueError, match=r"`class_labels` must have one label for each of the 4 samples, but has"):
            objective(ChargeField(data), data[:4], data, class_labels=wrong, charge_labels=torch.zeros(8))


class LargestTensor(TorchDispatchMode):
    """Record the bytes of the largest tensor that an operation returns, without views."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result._base is None:
            self.bytes = max(self.bytes, result.nbytes)
        return result


def test_only_one_class_of_charges_is_copied_at_a_time() -> None:
    charges = torch.randn(1000, 1, 8, 8, generator=seeded())
    labels = torch.arange(1000) % 10
    objective = FieldObjective(recommend_hyperparameters(data_norm=8, data_dim=64))
    model = lambda x, z, class_labels: SimpleNamespace(sample=torch.zeros(len(x), 2, 8, 8))  # noqa: E731
    with LargestTensor() as largest:
        options = {"generator": seeded(), "class_labels": labels[:8], "charge_labels": labels}
        result = objective(model, charges[:8], charges, **options)
    assert largest.bytes <= 100 * 64 * 8  # one class in float64
    prepared = objective(model, charges[:8], ClassCharges(charges, labels), seeded(), labels[:8])
    assert torch.allclose(result.per_sample, prepared.per_sample, rtol=1e-6)
