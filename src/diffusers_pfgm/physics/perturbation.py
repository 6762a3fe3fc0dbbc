r"""The paper's training perturbation, and the hyper-parameters that it takes from the data.

PFGM (arXiv 2209.11178), Algorithm 2 and Appendix B.1. With ε_x ~ N(0, σ² I_N), ε_z ~ N(0, σ²), m ~ U[0, M] and u
uniform on the unit sphere of R^N, a data point y is lifted to

    x = y + ‖ε_x‖ (1 + τ)^m u,        z = |ε_z| (1 + τ)^m,

so that log-heights between σ and σ(1 + τ)^M are about equally likely. M is chosen such that the largest perturbation,
upper_norm = √N σ (1 + τ)^M, is far away against the mean norm of the data.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch

from .tensors import Generators, cast_clamped, draw


@dataclass(frozen=True)
class PFGMHyperparameters:
    """What PFGM takes from the data.

    Attributes:
        M: the largest exponent of the training perturbation.
        z_max: the height from which sampling starts, in data units.
        upper_norm: the largest radius that training sees, √N σ (1 + τ)^M, in data units.
        sigma: scale of the perturbation at m = 0, in data units.
        tau: growth of the perturbation per unit of m.
    """

    M: int
    z_max: float
    upper_norm: float
    sigma: float = 0.01
    tau: float = 0.03


def recommend_hyperparameters(
    data_norm: float, data_dim: int, sigma: float = 0.01, tau: float = 0.03
) -> PFGMHyperparameters:
    """M, z_max and upper_norm for data of mean norm `data_norm` in `data_dim` dimensions (Appendix B.1).

    Args:
        data_norm: ρ, the mean Euclidean norm of a (flattened) data point.
        data_dim: N, the number of dimensions.
        sigma: scale of the smallest perturbation.
        tau: its growth per unit of m.

    Raises:
        ValueError: if an argument is not positive, or the data are so small that σ already covers them.

    Example:
        >>> recommend_hyperparameters(data_norm=30, data_dim=3072).M
        287
    """
    for name, value in {"data_norm": data_norm, "data_dim": data_dim, "sigma": sigma, "tau": tau}.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"`{name}` must be a finite number > 0, but is {value}.")
    exponent = math.log(data_norm**2 / (2 * math.sqrt(data_dim) * sigma**2)) / math.log1p(tau)
    m_max = math.floor(0.75 * exponent) + 1
    if m_max < 1:
        raise ValueError(
            f"`sigma` = {sigma} already covers data of mean norm {data_norm} in {data_dim} dimensions. "
            "Scale the data up (images lie in [-1, 1]) or choose a smaller `sigma`."
        )
    growth = (1 + tau) ** m_max
    return PFGMHyperparameters(
        M=m_max,
        z_max=math.sqrt(2 / math.pi) * sigma * growth,
        upper_norm=math.sqrt(data_dim) * sigma * growth,
        sigma=sigma,
        tau=tau,
    )


def perturb(
    data: torch.Tensor,
    hyperparameters: PFGMHyperparameters,
    restrict_small_z: bool = True,
    generator: Generators = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lift data off the plane z = 0 as in the paper's Algorithm 2.

    Args:
        data: (B, *), the charges to start from.
        hyperparameters: M, sigma and tau are used.
        restrict_small_z: draw m from [0, ⌊0.7 M⌋] where |ε_z| < σ/2, as the authors do for CIFAR-10: points far out
            but close to the plane are never visited by the backward ODE.
        generator: one generator, or a list of B of them.

    Returns:
        x (B, *) and z (B,), both in data units and in data's dtype.
    """
    sigma, tau, dim = hyperparameters.sigma, hyperparameters.tau, data[0].numel()
    batch, device, dtype = data.shape[0], data.device, torch.promote_types(data.dtype, torch.float32)

    def norm(shape: tuple[int, ...], *, generator: torch.Generator | None, device: torch.device) -> torch.Tensor:
        """‖ε‖ of ε ~ N(0, I_N), which is χ_N, from one number in place of N."""
        half = torch.full(shape, dim / 2, dtype=torch.float64, device=device)
        return (2 * torch._standard_gamma(half, generator=generator)).sqrt().to(dtype)

    normal = draw(functools.partial(torch.randn, dtype=dtype), (batch, dim + 1), generator, device)
    length = draw(norm, (batch,), generator, device)
    m = hyperparameters.M * draw(functools.partial(torch.rand, dtype=dtype), (batch,), generator, device)
    direction, height = normal[:, :dim], normal[:, dim].abs()
    if restrict_small_z:
        m = torch.where(height < 0.5, m * (math.floor(0.7 * hyperparameters.M) / hyperparameters.M), m)
    growth = sigma * (1 + tau) ** m
    offset = direction * (growth * length / direction.norm(dim=1)).unsqueeze(1)
    return cast_clamped(data + offset.view_as(data), data.dtype), cast_clamped(height * growth, data.dtype)
