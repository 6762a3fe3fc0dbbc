"""Flows whose log-density is known in closed form, and a network that is the field of no charges."""

import math
from typing import Any

import torch

from diffusers_pfgm import ChargeField, PoissonFlow, PoissonFlowScheduler, PoissonKernel, posterior_mean
from tests.networks import seeded


def charges_in(dim: int, count: int = 7) -> torch.Tensor:
    return torch.rand(count, dim, generator=seeded(dim), dtype=torch.float64) * 2 - 1


def flow_of_charges(
    charges: torch.Tensor, aug_dim: float | None = 1.0, prediction_type: str = "field", **options: Any
) -> PoissonFlow:
    """The exact flow of charges (K, *). For points and "sample" the network is `PosteriorMean`, which is faster."""
    scheduler = PoissonFlowScheduler(aug_dim=aug_dim, prediction_type=prediction_type, **options)
    if prediction_type == "sample" and charges.ndim == 2:
        return PoissonFlow(PosteriorMean(charges, aug_dim), scheduler)
    return PoissonFlow(ChargeField(charges, aug_dim, prediction_type), scheduler)


class PosteriorMean(torch.nn.Module):
    """x̂ of charges (K, N), with its Jacobian in closed form: a product with it takes one operation instead of twenty.

    Args:
        charges: (K, N) charges, in float64.
        aug_dim: D; None for ∞.
    """

    dtype = torch.float64

    def __init__(self, charges: torch.Tensor, aug_dim: float | None) -> None:
        super().__init__()
        self.charges = charges
        self.aug_dim = aug_dim

    def jacobian(self, x: torch.Tensor, denoised: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """∂x̂/∂x (B, N, N) = Σ p_i (y_i − x̂) ∂ log w_i/∂x with the normalized weights p_i.

        The weights are w_i = (‖x − y_i‖² + Dσ²)^(−(N+D)/2), or exp(−‖x − y_i‖²/2σ²) for D = ∞.
        """
        offsets = x.unsqueeze(1) - self.charges
        squares = offsets.square().sum(2)
        if self.aug_dim is None:
            log_weights = -squares / (2 * sigma**2)
            slopes = -offsets / sigma**2
        else:
            power = x.shape[1] + self.aug_dim
            squares = squares + self.aug_dim * sigma**2
            log_weights = -power / 2 * squares.log()
            slopes = -power * offsets / squares.unsqueeze(2)
        deviations = log_weights.softmax(1).unsqueeze(2) * (self.charges - denoised.unsqueeze(1))
        return deviations.mT @ slopes

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
        return (_WithJacobian.apply(sample, timestep, self),)


class _WithJacobian(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, sigma: torch.Tensor, model: PosteriorMean) -> torch.Tensor:
        denoised = posterior_mean(x, sigma, model.charges, model.aug_dim)
        if ctx.needs_input_grad[0]:
            ctx.jacobian = model.jacobian(x, denoised, sigma)
        return denoised

    @staticmethod
    def backward(ctx: Any, vector: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return (vector.unsqueeze(1) @ ctx.jacobian).squeeze(1), None, None


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
