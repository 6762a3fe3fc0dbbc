r"""The density transported by the flow: its slope in x, and its change beyond σ_max.

**Slope.** An error e of x at some noise level σ changes the log-density computed at the end of the path by
∇ log p_σ(x)·e to first order and by a curvature term to second order, since the rest of the path is the exact path of
another point. At D = ∞ the slope is (x̂ − x)/σ². At finite D each charge y contributes with its own factor
(N + D)/(‖x − y‖² + Dσ²). With y replaced by x̂ in all of these factors,

    ∇ log p_σ(x) ≈ g (x̂ − x),        g = (N + D)/(‖x − x̂‖² + Dσ²),

which has the right magnitude, all that a solver needs to choose its steps. The curvature is at most g in magnitude.

**Beyond σ_max.** In the limit of infinite σ the density is exactly the kernel centred at 0. From σ_max to infinity a
path is almost a ray. With ȳ the mean of the data, x̂ − ȳ decreases along it as 1/σ, so that x/σ changes by −c/σ_max in
total, where c = (ȳ + x̂)/2. This maps x to x − c, with log det ∂(x − c)/∂x = −tr ∂c/∂x to first order in ∂c/∂x:

    log p(x) = log k(x − c) − tr ∂c/∂x,        k the kernel at σ_max.

This agrees with the expansion of log E_y k(x − y) in y to second order, at any D; the next order is smaller by a factor
of about ‖y‖/σ_max. The mean is ȳ = x̂ − (x̂' − x̂)/(κ − 1), where x̂' is evaluated at σ_max/κ on the same field line.
"""

from __future__ import annotations

import math

import torch

from .denoiser import Denoise


def density_slope(
    x: torch.Tensor, denoised: torch.Tensor, sigma: float | torch.Tensor, aug_dim: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The slope of log p_σ at x and the magnitude of its curvature, both approximate.

    Args:
        x: (B, N), in data units.
        denoised: x̂ at x and σ, (B, N).
        sigma: noise level σ, a number or ().
        aug_dim: D, `math.inf` for a diffusion model.

    Returns:
        g (x̂ − x) (B, N) and g (B, 1).
    """
    offset = denoised - x
    if math.isinf(aug_dim):
        factor = torch.ones_like(offset[:, :1]) / sigma**2
    else:
        factor = (x.shape[1] + aug_dim) / (offset.square().sum(1, keepdim=True) + aug_dim * sigma**2)
    return factor * offset, factor


def shift_beyond(denoise: Denoise, x: torch.Tensor, sigma: float, ratio: float) -> torch.Tensor:
    """The shift c by which the path of x from σ to infinity deviates from a ray.

    Args:
        denoise: x̂ as a function of x and σ.
        x: (B, *), points at σ, in data units.
        sigma: noise level σ, large compared with the data.
        ratio: κ > 1, the ratio of σ to the second noise level at which x̂ is evaluated.

    Returns:
        c (B, *), in data units.
    """
    denoised = denoise(x, sigma)
    denoised_below = denoise((x + (ratio - 1) * denoised) / ratio, sigma / ratio)
    return denoised - (denoised_below - denoised) / (2 * (ratio - 1))
