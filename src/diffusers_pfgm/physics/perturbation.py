r"""The training perturbation of PFGM, and its hyperparameters as functions of the data.

PFGM (arXiv 2209.11178), Algorithm 2 and Appendix B.1. With ε_x ~ N(0, σ² I_N), ε_z ~ N(0, σ²), m ~ U[0, M] and u
uniform on the unit sphere of R^N, a data point y on the plane z = 0 is perturbed to

    x = y + ‖ε_x‖ (1 + τ)^m u,        z = |ε_z| (1 + τ)^m,

so that log z is approximately uniform between log σ and log σ(1 + τ)^M. M is chosen such that the largest perturbation,
upper_norm = √N σ (1 + τ)^M, is large compared with the mean norm of the data. Here σ is the paper's symbol for the
scale of the smallest perturbation, not a noise level.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch

from .tensors import Generators, cast_clamped, check_samples, chi_squared, draw


@dataclass(frozen=True)
class PFGMHyperparameters:
    """The hyperparameters of PFGM that depend on the data.

    Attributes:
        M: largest exponent m of the training perturbation.
        z_max: value of z at which sampling starts, in data units. It is the scheduler's `sigma_max`.
        upper_norm: largest norm of the training perturbation, √N σ (1 + τ)^M, in data units. It is the scheduler's
            `max_norm`.
        sigma: scale σ of the perturbation at m = 0, in data units. Defaults to 0.01.
        tau: τ, the relative growth of the perturbation per unit of m. Defaults to 0.03.
    """

    M: int
    z_max: float
    upper_norm: float
    sigma: float = 0.01
    tau: float = 0.03


def recommend_hyperparameters(
    data_norm: float, data_dim: int, sigma: float = 0.01, tau: float = 0.03
) -> PFGMHyperparameters:
    """Return M, z_max and upper_norm for data of mean norm `data_norm` in `data_dim` dimensions (Appendix B.1).

    Args:
        data_norm: ρ, the mean Euclidean norm of a flattened data point, in data units.
        data_dim: N, the number of dimensions of a data point.
        sigma: scale σ of the smallest perturbation, in data units. Defaults to 0.01.
        tau: τ, the relative growth of the perturbation per unit of m. Defaults to 0.03.

    Raises:
        ValueError: if an argument is not a finite number > 0, or the data are smaller than the smallest perturbation.

    Examples:
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
            "Scale the data up (images have the range [-1, 1]) or choose a smaller `sigma`."
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
    """Perturb data off the plane z = 0 as in Algorithm 2 of PFGM.

    Args:
        data: data points, (B, *), in data units.
        hyperparameters: hyperparameters of the perturbation, from `recommend_hyperparameters`; `M`, `sigma` and `tau`
            are used.
        restrict_small_z: draw m from [0, ⌊0.7 M⌋] if |ε_z| < σ/2, as the authors do for CIFAR-10, since the backward
            ODE never visits points that are far from the data but close to the plane. Defaults to True.
        generator: one generator, or a list of B of them.

    Returns:
        x (B, *) and z (B,), both in data units and in the dtype of `data`.

    Raises:
        ValueError: if `data` is not floating-point.
    """
    check_samples("data", data)
    sigma = hyperparameters.sigma
    tau = hyperparameters.tau
    dim = data[0].numel()
    batch_size = data.shape[0]
    device = data.device
    dtype = torch.promote_types(data.dtype, torch.float32)

    def norm(shape: tuple[int, ...], *, generator: torch.Generator | None, device: torch.device) -> torch.Tensor:
        """‖ε‖ for ε ~ N(0, I_N), which is χ_N, from one random number instead of N."""
        return chi_squared(shape, dim, generator, device).sqrt().to(dtype)

    normal = draw(functools.partial(torch.randn, dtype=dtype), (batch_size, dim + 1), generator, device)
    length = draw(norm, (batch_size,), generator, device)
    m = hyperparameters.M * draw(functools.partial(torch.rand, dtype=dtype), (batch_size,), generator, device)
    direction = normal[:, :dim]
    unit_z = normal[:, dim].abs()  # |ε_z| / σ
    if restrict_small_z:
        m = torch.where(unit_z < 0.5, m * (math.floor(0.7 * hyperparameters.M) / hyperparameters.M), m)
    growth = sigma * (1 + tau) ** m
    offset = direction * (growth * length / direction.norm(dim=1)).unsqueeze(1)
    return cast_clamped(data + offset.view_as(data), data.dtype), cast_clamped(unit_z * growth, data.dtype)
