"""Flows whose log-density is known in closed form, and a network that is the field of no charges."""

import math
from typing import Any

import torch

from diffusers_pfgm import ChargeField, PoissonFlow, PoissonFlowScheduler, PoissonKernel
from tests.networks import seeded


def charges_in(dim: int, count: int = 7) -> torch.Tensor:
    return torch.rand(count, dim, generator=seeded(dim), dtype=torch.float64) * 2 - 1


def flow_of_charges(
    charges: torch.Tensor, aug_dim: float | None = 1.0, prediction_type: str = "field", **options: Any
) -> PoissonFlow:
    scheduler = PoissonFlowScheduler(aug_dim=aug_dim, prediction_type=prediction_type, **options)
    return PoissonFlow(ChargeField(charges, aug_dim, prediction_type), scheduler)


def density(x: torch.Tensor, charges: torch.Tensor, aug_dim: float | None, sigma: float) -> torch.Tensor:
    """The exact log-density of the flow of charges: log of the mean of their kernels."""
    kernels = [PoissonKernel(aug_dim).log_prob(x - charge, sigma) for charge in charges]
    return torch.stack(kernels).logsumexp(0) - math.log(len(charges))


def draw_points(charges: torch.Tensor, aug_dim: float | None, sigma: float, count: int, seed: int = 0) -> torch.Tensor:
    """Random points with the density of charges at σ."""
    noise = PoissonKernel(aug_dim).sample((count, *charges.shape[1:]), sigma, seeded(seed), dtype=torch.float64)
    return charges[torch.arange(count) % len(charges)] + noise


class GaussianMixture(torch.nn.Module):
    """x̂ of a mixture of isotropic Gaussians at D = ∞."""

    def __init__(self, means: torch.Tensor, stds: torch.Tensor) -> None:
        super().__init__()
        self.means, self.stds, self.dtype = means, stds, means.dtype

    def log_parts(self, x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        variances = self.stds.square() + sigma**2
        squares = (x.unsqueeze(1) - self.means).square().sum(2)
        return -squares / (2 * variances) - x.shape[1] / 2 * (2 * math.pi * variances).log() - math.log(len(self.stds))

    def log_prob(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        return self.log_parts(x, sigma).logsumexp(1)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
        shares = self.log_parts(sample, timestep).softmax(1).unsqueeze(2)
        shrunk = (self.stds.square() / (self.stds.square() + timestep**2)).view(1, -1, 1)
        return ((shares * torch.lerp(self.means, sample.unsqueeze(1), shrunk)).sum(1),)


class SmoothNetwork(torch.nn.Module):
    """A random network, which is not the field of charges, and has no attributes `dtype` and `device`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(3, 16), torch.nn.Linear(16, 2)
        for number, weights in enumerate(self.parameters()):
            torch.nn.init.normal_(weights, 0.0, 0.2, generator=seeded(number))

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
        log_sigma = timestep.log().expand(len(sample), 1)
        return (self.last(self.first(torch.cat([sample, log_sigma.to(sample)], dim=1)).tanh()),)
