"""The field of a class is the field of its charges."""

import pytest
import torch

from diffusers_pfgm import ClassCharges, normalized_field, posterior_mean
from tests.networks import seeded


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.randint(4, (1797,), generator=seeded()) * 3  # classes need not be consecutive


@pytest.mark.parametrize("label", [0, 3, 6, 9])
def test_a_class_has_the_field_of_its_charges(digits: torch.Tensor, labels: torch.Tensor, label: int) -> None:
    charges = ClassCharges(digits, labels)
    x, z = torch.randn(32, 1, 8, 8, generator=seeded(1), dtype=torch.float64), torch.logspace(-2, 2, 32)
    expected = normalized_field(x, z, digits[labels == label])
    assert torch.allclose(normalized_field(x, z, charges.of(label)), expected, atol=1e-12)
    assert torch.allclose(
        posterior_mean(x, z, charges.of(label), chunk_size=7), posterior_mean(x, z, digits[labels == label]), atol=1e-12
    )


def test_a_label_that_no_charge_has_selects_all_charges(digits: torch.Tensor, labels: torch.Tensor) -> None:
    x, z = torch.randn(8, 1, 8, 8, generator=seeded(1), dtype=torch.float64), torch.logspace(-2, 2, 8)
    field = normalized_field(x, z, ClassCharges(digits, labels).of(12))
    assert torch.allclose(field, normalized_field(x, z, digits), atol=1e-12)


def test_a_label_may_be_a_tensor(digits: torch.Tensor, labels: torch.Tensor) -> None:
    charges = ClassCharges(digits, labels)
    for label in (torch.tensor(3), torch.tensor([3]), torch.tensor(3.0)):
        assert torch.equal(charges.of(label).points, charges.of(3).points)


def test_a_class_is_a_view(digits: torch.Tensor, labels: torch.Tensor) -> None:
    charges = ClassCharges(digits, labels)
    assert charges.of(3).points.untyped_storage().data_ptr() == charges.all.points.untyped_storage().data_ptr()
    assert sum(charges.of(label).shape[0] for label in (0, 3, 6, 9)) == charges.shape[0] == 1797


def test_every_charge_needs_a_label(digits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"`labels` .* one label for each of the 1797 charges, .* the shape \(5,\)"):
        ClassCharges(digits, torch.zeros(5))
    with pytest.raises(ValueError, match=r"`labels` must be a tensor with one label .*, but is list"):
        ClassCharges(digits, [0] * len(digits))  # type: ignore[arg-type]
