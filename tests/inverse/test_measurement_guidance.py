"""Guidance, compared with exact posteriors of Gaussian data and of charges."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diffusers_pfgm import (
    ChargeField,
    CompressedSensing,
    Inpainting,
    Parameterization,
    PoissonFlow,
    PoissonFlowScheduler,
    SuperResolution,
)
from diffusers_pfgm.inverse import GUIDANCE_METHODS, GuidedByMeasurement
from diffusers_pfgm.inverse.measurement_guidance import MAX_CHANGE, MAX_MOVE
from diffusers_pfgm.physics.denoiser import Denoiser
from tests.networks import seeded

STD = 0.7


class GaussianNetwork:
    """x̂ of data N(0, STD² I) at D = ∞."""

    dtype = torch.float64

    def __init__(self, parameterization: Parameterization) -> None:
        self.parameterization = parameterization

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor, **options: Any) -> SimpleNamespace:
        sigma = self.parameterization.sigma(timestep)
        x = sample / self.parameterization.c_in(sigma)
        return SimpleNamespace(sample=self.parameterization.target(x * STD**2 / (STD**2 + sigma**2), x, sigma))


def guided_mean(
    model: Any, parameterization: Parameterization, operator: Any, x: torch.Tensor, sigma: float, **options: Any
) -> Any:
    """x̂ of the guided model, and the model."""
    guided = GuidedByMeasurement(model, parameterization, operator, **options)
    return Denoiser(guided, parameterization)(x, torch.tensor(sigma, dtype=x.dtype)), guided


@pytest.mark.parametrize("prediction_type", ["field", "sample", "epsilon"])
@pytest.mark.parametrize("sigma", [0.05, 0.3])  # so small that the move is not limited
def test_the_posterior_mean_of_gaussian_data_is_exact(prediction_type: str, sigma: float) -> None:
    parameterization, noise_std = Parameterization(prediction_type), 0.3
    operator = CompressedSensing((6,), 3, seeded(1))
    truth = STD * torch.randn(8, 6, generator=seeded(), dtype=torch.float64)
    x = truth + sigma * torch.randn(8, 6, generator=seeded(2), dtype=torch.float64)
    y = operator(truth) + noise_std * torch.randn(8, 3, generator=seeded(3), dtype=torch.float64)
    mean, guided = guided_mean(
        GaussianNetwork(parameterization),
        parameterization,
        operator,
        x,
        sigma,
        measurement=y,
        noise_std=noise_std,
        aug_dim=None,
        data_std=STD,
    )
    matrix = operator.directions.double().T
    precision = torch.eye(6) * (1 / STD**2 + 1 / sigma**2) + matrix.T @ matrix / noise_std**2
    expected = torch.linalg.solve(precision, (x / sigma**2 + y @ matrix / noise_std**2).T).T
    assert torch.allclose(mean, expected, rtol=1e-6, atol=1e-6) and guided.denoiser.nfe == 2


@pytest.mark.parametrize("aug_dim", [1.0, 64.0, None])
def test_a_measurement_decides_between_two_charges(aug_dim: float | None) -> None:
    # At the midpoint the field alone gives both charges the weight 1/2.
    parameterization = Parameterization()
    charges = torch.tensor([[1.0, 1.0, 1.0, 1.0], [-1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    x = torch.tensor([[0.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    first = Inpainting(torch.tensor([True, False, False, False]))
    for value in (1.0, -1.0):
        y = torch.tensor([[value, 0, 0, 0]], dtype=torch.float64)
        options = {"measurement": y, "noise_std": 0.1, "aug_dim": aug_dim}
        mean, _ = guided_mean(ChargeField(charges, aug_dim), parameterization, first, x, 0.5, **options)
        assert mean[0, 0] * value > 0.7 and torch.allclose(mean[0, 1:], charges[0, 1:])


def test_the_effect_of_an_inaccurate_network_is_limited() -> None:
    parameterization, size = Parameterization("sample"), 16

    class Inaccurate:
        dtype = torch.float64

        def __init__(self) -> None:
            self.inputs: list[torch.Tensor] = []

        def __call__(self, sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
            self.inputs.append(sample)
            return (1e4 * sample,)

    network = Inaccurate()
    x = torch.randn(4, size, generator=seeded(), dtype=torch.float64)
    y = torch.randn(4, size, generator=seeded(1), dtype=torch.float64)
    mean, _ = guided_mean(
        network, parameterization, Inpainting(torch.ones(size)), x, 2.0, measurement=y, aug_dim=None, data_std=0.5
    )
    assert ((mean - 1e4 * x).norm(dim=1) <= MAX_CHANGE * math.sqrt(size) * 0.5 * 1.001).all()
    assert ((network.inputs[1] - x).norm(dim=1) <= MAX_MOVE * math.sqrt(size) * 2.0 * 1.001).all()


def test_replacement_overwrites_the_measured_part() -> None:
    parameterization, charges = Parameterization(), torch.rand(5, 1, 4, 4, generator=seeded(), dtype=torch.float64)
    operator = SuperResolution(2)
    y = torch.rand(3, 1, 2, 2, generator=seeded(1), dtype=torch.float64)
    x = torch.randn(3, 1, 4, 4, generator=seeded(2), dtype=torch.float64)
    mean, guided = guided_mean(
        ChargeField(charges), parameterization, operator, x, 0.5, measurement=y, method="replacement"
    )
    unguided = Denoiser(ChargeField(charges), parameterization)(x, 0.5)
    assert torch.allclose(operator(mean), y, atol=1e-4) and guided.denoiser.nfe == 1
    change = mean - unguided
    assert torch.allclose(operator.pseudo_inverse(operator(change)), change, atol=1e-4)


def test_guidance_by_a_nonlinear_measurement() -> None:
    charges, scheduler = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, 0.0]]), PoissonFlowScheduler()
    y = torch.tensor([[1.0]])  # the value of both charges on the left; two of three unguided samples have it
    model = GuidedByMeasurement(
        ChargeField(charges), scheduler.parameterization, lambda x: (x[:, :1] - 1).square() / 4, y, noise_std=0.05
    )
    samples = PoissonFlow(model, scheduler).sample((64, 2), generator=seeded()).sample
    assert ((samples[:, 0] + 1).abs() < 0.1).double().mean() > 0.8


def test_invalid_arguments_raise() -> None:
    def make(**options: Any) -> GuidedByMeasurement:
        options = {"operator": Inpainting(torch.ones(2)), "measurement": torch.zeros(1, 2)} | options
        return GuidedByMeasurement(ChargeField(torch.zeros(1, 2)), Parameterization(), **options)

    with pytest.raises(ValueError, match=r"`method` must be one of \('guidance', 'replacement'\), but is 'magic'"):
        make(method="magic")
    assert GUIDANCE_METHODS == ("guidance", "replacement")
    for noise_std in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"`noise_std` must be a finite number >= 0, but is {noise_std}"):
            make(noise_std=noise_std)
    for data_std in (0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"`data_std` must be a finite number > 0, but is {data_std}"):
            make(data_std=data_std)
    with pytest.raises(ValueError, match=r"`operator` is not a LinearOperator.*Use `method='guidance'`"):
        make(operator=torch.tanh, method="replacement")
    with pytest.raises(ValueError, match="`aug_dim` must be a number > 0"):
        make(aug_dim=-1.0)
    with pytest.raises(ValueError, match=r"`measurement` must have the shape \(4, 2\) .*, but has \(3, 2\)"):
        make(measurement=torch.zeros(3, 2))(torch.zeros(4, 2), 1.0)
