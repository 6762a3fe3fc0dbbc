r"""The density that a flow carries: how it changes with x, and what is left of its change beyond σ_max.

**Slope.** An error e of x at some height changes the log-density that is found at the end by ∇ log p_σ(x)·e and, to
second order, by a curvature, whatever follows: what follows is the exact way of another point. At D = ∞ the slope is
(x̂ − x)/σ². At finite D each charge pulls by (N + D)/(‖x − y‖² + Dσ²) of its own; taken at x̂ for all of them,

    ∇ log p_σ(x) ≈ g (x̂ − x),        g = (N + D)/(‖x − x̂‖² + Dσ²),

whose size is right, which is all that a solver needs to choose its steps. The curvature is −g at most.

**Beyond σ_max.** At infinite σ the density is the kernel around 0 exactly. The rest of the way is all but a ray: with ȳ
the mean of the data, x̂ − ȳ falls along it as 1/σ, so that x/σ still changes by −c/σ_max with c = (ȳ + x̂)/2. It maps
x to x − c, and log det ∂(x − c)/∂x is −tr ∂c/∂x but for squares of it:

    log p(x) = log k(x − c) − tr ∂c/∂x,        k the kernel at σ_max.

This agrees with the series of log E_y k(x − y) in y to second order, at any D; the next is smaller by about ‖y‖/σ_max.
ȳ = x̂ − (x̂' − x̂)/(ρ − 1) with x̂' from the height σ_max/ρ on the same line.
"""

from __future__ import annotations

import math

import torch

from .denoiser import Denoise


def density_slope(
    x: torch.Tensor, denoised: torch.Tensor, sigma: float | torch.Tensor, aug_dim: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The slope of log p_σ at x and its curvature's size.

    Args:
        x: (B, N).
        denoised: x̂ (B, N).
        sigma: σ, a number or ().
        aug_dim: D.

    Returns:
        g (x̂ − x) (B, N) and g (B, 1).
    """
    offset = denoised - x
    if math.isinf(aug_dim):
        pull = torch.ones_like(offset[:, :1]) / sigma**2
    else:
        pull = (x.shape[1] + aug_dim) / (offset.square().sum(1, keepdim=True) + aug_dim * sigma**2)
    return pull * offset, pull


def shift_beyond(denoise: Denoise, x: torch.Tensor, sigma: float, ratio: float) -> torch.Tensor:
    """c (B, *), by which the way of x (B, *) from a height far above the data to infinity differs from a ray.

    Args:
        denoise: x̂ from x and σ.
        x: (B, *), at height σ.
        sigma: σ.
        ratio: ρ > 1.
    """
    denoised = denoise(x, sigma)
    earlier = denoise((x + (ratio - 1) * denoised) / ratio, sigma / ratio)
    return denoised - (earlier - denoised) / (2 * (ratio - 1))
