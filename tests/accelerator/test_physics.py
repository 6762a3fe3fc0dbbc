"""Kernel, fields and losses on an accelerator have the values that they have on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffusers_pfgm import (
    ChargeField,
    Charges,
    ClassCharges,
    ConsistencyObjective,
    DistributionMatchingObjective,
    FieldObjective,
    HemisphereLatents,
    LossOutput,
    Parameterization,
    PerturbationObjective,
    PoissonKernel,
    normalized_field,
    perturb,
    posterior_mean,
    recommend_hyperparameters,
)
from diffusers_pfgm.physics import charges as charges_module
from diffusers_pfgm.physics.denoiser import Denoiser
from diffusers_pfgm.training.data.order import position_generators
from tests.accelerator.device import DEVICE, count_waits, needs_accelerator, needs_cuda
from tests.networks import make_tiny_unet, seeded

pytestmark = needs_accelerator

CHARGES = torch.rand(50, 1, 8, 8, generator=seeded()) * 2 - 1
LABELS = torch.arange(50) % 3
HYPERPARAMETERS = recommend_hyperparameters(4.0, 64)


def own_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator(DEVICE).manual_seed(seed)


@pytest.mark.parametrize("aug_dim", [0.5, 1.0, 64.0, None])
def test_draws_of_cpu_generators_are_those_of_the_cpu(aug_dim: float | None) -> None:
    kernel = PoissonKernel(aug_dim)
    for generators in (seeded, lambda: [seeded(1), seeded(2), seeded(3)]):
        drawn, expected = (
            kernel.sample((3, 2, 4), torch.ones(3), generators(), device) for device in (DEVICE, torch.device("cpu"))
        )
        assert drawn.device.type == DEVICE.type
        torch.testing.assert_close(drawn.cpu(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(kernel.log_prob(drawn, 2.0).cpu(), kernel.log_prob(expected, 2.0))


@pytest.mark.parametrize("aug_dim", [0.5, 1.0, 64.0, None])
def test_draws_of_the_devices_generator_have_the_distribution_of_the_kernel(aug_dim: float | None) -> None:
    kernel = PoissonKernel(aug_dim)
    own, expected = (
        kernel.sample((500_000, 4), 2.0, generator, generator.device).norm(dim=1).cpu()
        for generator in (own_generator(), seeded())
    )
    quantiles = torch.tensor([0.1, 0.5, 0.9])
    assert torch.allclose(own.quantile(quantiles), expected.quantile(quantiles), rtol=0.05)
    again = kernel.sample((500_000, 4), 2.0, own_generator(), DEVICE).norm(dim=1).cpu()
    assert torch.equal(own, again)
    each = [own_generator(seed) for seed in range(5)]
    assert kernel.sample((5, 4), 2.0, each, DEVICE, max_norm=100.0).norm(dim=1).max() <= 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("aug_dim", [1.0, 64.0, None])
def test_fields_of_charges(aug_dim: float | None, dtype: torch.dtype) -> None:
    if DEVICE.type == "mps" and dtype == torch.float64:
        pytest.skip("MPS has no float64.")
    sigmas = torch.tensor([0.01, 0.3, 3.0, 1000.0], dtype=dtype)
    x = CHARGES[:4].to(dtype) + sigmas.view(-1, 1, 1, 1) * torch.randn(4, 1, 8, 8, generator=seeded(), dtype=dtype)
    charges = CHARGES.to(dtype)
    # On the CPU in float64, since the tensors of float32 are rounded.
    expected = posterior_mean(x.double(), sigmas.double(), charges.double(), aug_dim)
    for chunk_size in (None, 7):
        found = posterior_mean(x.to(DEVICE), sigmas.to(DEVICE), charges.to(DEVICE), aug_dim, chunk_size)
        torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-4, atol=1e-4)
    if aug_dim == 1:
        field = normalized_field(x.flatten(1).to(DEVICE), sigmas.to(DEVICE), charges.flatten(1).to(DEVICE))
        expected_field = normalized_field(x.flatten(1).double(), sigmas.double(), charges.flatten(1).double())
        torch.testing.assert_close(field.cpu().double(), expected_field, rtol=1e-3, atol=1e-3)


def test_many_points_and_charges_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charges_module, "ACCELERATOR_MEMORY_BUDGET", 10_000)
    x = 2 * torch.randn(40, 1, 8, 8, generator=seeded())
    expected = posterior_mean(x, 0.5, CHARGES)
    torch.testing.assert_close(posterior_mean(x.to(DEVICE), 0.5, CHARGES.to(DEVICE)).cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_field_in_half_precision_is_the_rounded_one(dtype: torch.dtype) -> None:
    x = CHARGES[:3] + 2 * torch.randn(3, 1, 8, 8, generator=seeded())
    field = ChargeField(CHARGES, prediction_type="sample")
    expected = field(x.to(dtype).float(), 2.0).sample
    found = field.to(DEVICE)(x.to(DEVICE, dtype), 2.0).sample
    assert found.dtype == dtype
    torch.testing.assert_close(found.cpu().float(), expected, rtol=2e-2, atol=2e-2)


def objectives() -> dict[str, tuple[Any, int, dict[str, Any]]]:
    """Each objective with the number of output channels of its network and its options."""
    statistics = Parameterization("epsilon", sigma_data=0.5)
    return {
        "field": (FieldObjective(HYPERPARAMETERS), 2, {"charges": Charges(CHARGES.to(DEVICE))}),
        "field of classes": (
            FieldObjective(HYPERPARAMETERS),
            2,
            {"charges": ClassCharges(CHARGES.to(DEVICE), LABELS), "class_labels": LABELS[:8].to(DEVICE)},
        ),
        "perturbation": (PerturbationObjective(statistics, 1.0), 1, {}),
        "perturbation, D = inf": (PerturbationObjective(statistics, None), 1, {}),
        "perturbation of charges": (
            PerturbationObjective(statistics, 64.0),
            1,
            {"charges": Charges(CHARGES.to(DEVICE))},
        ),
    }


def on_cpu(option: Any) -> Any:
    if isinstance(option, Charges):
        return Charges(CHARGES)
    return ClassCharges(CHARGES, LABELS) if isinstance(option, ClassCharges) else option.cpu()


@pytest.mark.parametrize("name", objectives())
def test_losses_are_those_of_the_cpu(name: str) -> None:
    objective, channels, options = objectives()[name]
    network = make_tiny_unet(1, channels, num_class_embeds=4 if "classes" in name else None)
    cpu_options = {key: on_cpu(option) for key, option in options.items()}
    expected = objective(network, CHARGES[:8], generator=position_generators(0, 0, 8), **cpu_options)
    found = objective(network.to(DEVICE), CHARGES[:8].to(DEVICE), generator=position_generators(0, 0, 8), **options)
    torch.testing.assert_close(found.per_sample.cpu(), expected.per_sample, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(found.sigma.cpu(), expected.sigma, rtol=1e-5, atol=1e-6)
    found.loss.backward()


@needs_cuda
def test_a_read_is_counted_as_a_wait() -> None:
    with count_waits() as waits:
        torch.ones(1, device=DEVICE).item()
    assert len(waits) == 1


@needs_cuda
@pytest.mark.parametrize("name", ["field", "perturbation", "perturbation, D = inf"])
def test_a_loss_waits_for_the_device_only_in_its_checks(name: str) -> None:
    objective, channels, options = objectives()[name]
    network = make_tiny_unet(1, channels).to(DEVICE)
    clean = CHARGES[:8].to(DEVICE)
    objective(network, clean, generator=position_generators(0, 0, 8), **options).loss.backward()
    with count_waits() as waits:
        objective(network, clean, generator=position_generators(0, 0, 8), **options).loss.backward()
    checks = 2 if name == "field" else 1  # that the images are finite, and the field
    assert len(waits) <= checks, waits


@pytest.mark.parametrize("distillation", [True, False])
def test_consistency_objective(distillation: bool) -> None:
    parameterization = Parameterization("epsilon", sigma_data=0.5, boundary=0.05)
    network = make_tiny_unet(1, 1).to(DEVICE)

    def loss(network: torch.nn.Module, clean: torch.Tensor) -> LossOutput:
        denoiser = Denoiser(network, Parameterization("epsilon", sigma_data=0.5))

        def teacher(x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
            return denoiser(x, sigma)

        objective = ConsistencyObjective(
            parameterization, 80.0, 0.5, 1.0, teacher=teacher if distillation else None, distillation=distillation
        )
        return objective(network, clean, position_generators(0, 0, 8))

    expected = loss(network.cpu(), CHARGES[:8])
    found = loss(network.to(DEVICE), CHARGES[:8].to(DEVICE))
    torch.testing.assert_close(found.per_sample.cpu(), expected.per_sample, rtol=1e-2, atol=1e-3)
    found.loss.backward()


def test_distribution_matching_objective() -> None:
    edm = Parameterization("epsilon", sigma_data=0.5)
    networks = [make_tiny_unet(1, 1), make_tiny_unet(1, 1, num_class_embeds=2), make_tiny_unet(1, 1)]

    def loss(device: torch.device | str) -> LossOutput:
        generator, critic, teacher = (network.to(device) for network in networks)
        denoiser = Denoiser(teacher, edm)
        objective = DistributionMatchingObjective(
            Parameterization("epsilon", sigma_data=0.5, boundary=0.05),
            edm,
            lambda x, sigma, labels: denoiser(x, sigma),
            [80.0, 0.8],
            0.5,
        )
        return objective(generator, CHARGES[:8].to(device), position_generators(0, 0, 8), critic=critic)

    expected = loss("cpu")
    found = loss(DEVICE)
    torch.testing.assert_close(found.per_sample.cpu(), expected.per_sample, rtol=1e-2, atol=1e-3)
    found.loss.backward()


def test_points_and_hemispheres() -> None:
    x, z = perturb(CHARGES.to(DEVICE), HYPERPARAMETERS, generator=own_generator())
    assert x.device.type == z.device.type == DEVICE.type and (z > 0).all()
    latents = HemisphereLatents.from_latents(40 * torch.randn(3, 1, 4, 4, generator=seeded()).to(DEVICE))
    assert latents.direction.device.type == DEVICE.type
