r"""The Poisson kernel: the density of one charge on the plane at the augmented radius r.

With D augmented dimensions, a charge at y in R^N has at r = σ√D the density (PFGM++, arXiv 2302.04265, section 3)

    p_σ(x | y) ∝ (‖x − y‖² + D σ²)^(−(N+D)/2),

which is the multivariate Student t-distribution with D degrees of freedom and scale σ, hence a Gaussian scale mixture,

    x = y + σ g √(D / χ²_D),        g ~ N(0, I_N),

exact for any real D > 0 and Gaussian at D = ∞. At D = 1 it is σ g / |ξ| with ξ ~ N(0, 1): the direction of (g, |ξ|) is
uniform on the hemisphere of R^(N+1), and dividing by |ξ| projects it along its ray onto the plane z = σ. That is the
prior of PFGM (arXiv 2209.11178, section 3.3).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch

from .tensors import (
    Generators,
    cast_clamped,
    check_noise_level,
    check_samples,
    chi_squared,
    column_shape,
    draw,
    rescale_for_squaring,
    to_tensor,
    working_dtype,
)

MAX_REDRAWS = 1000  # the number of draws of a row after which an error says that `max_norm` is out of reach
# The largest number of a draw, relative to the largest number of its dtype, so that later computations do not overflow.
MAX_FRACTION = 1e-3


def check_aug_dim(aug_dim: float | None) -> float:
    """Return D as a float, ∞ for None (strict JSON configs have no infinity). Raise a ValueError unless D > 0."""
    value = math.inf if aug_dim is None else float(aug_dim)
    if not value > 0:
        raise ValueError(
            f"`aug_dim` must be a number > 0, or None for infinity, but is {aug_dim}. Use 1.0 for PFGM, "
            "a larger number for PFGM++ and None for a diffusion model."
        )
    return value


def _check_shape(sigma: torch.Tensor, shape: Sequence[int]) -> None:
    """Raise a ValueError unless σ is () or (B,) for samples of the shape (B, *)."""
    if sigma.shape not in ((), tuple(shape[:1])):
        raise ValueError(
            f"`sigma` must be a number or have the shape {tuple(shape[:1])}, but has {tuple(sigma.shape)}."
        )


class PoissonKernel:
    """The Student-t kernel of a charge in D augmented dimensions.

    Args:
        aug_dim: D, any real number > 0; None or `math.inf` for the Gaussian limit. Defaults to 1.

    Raises:
        ValueError: if D is not positive.

    Reference:
        Xu et al., PFGM++: Unlocking the Potential of Physics-Inspired Generative Models, arXiv 2302.04265, section 3.

    Examples:
        >>> kernel = PoissonKernel(aug_dim=1.0)
        >>> noise = kernel.sample((4, 3, 8, 8), sigma=40.0, generator=torch.Generator().manual_seed(0))
        >>> noise.shape, kernel.log_prob(noise, 40.0).shape
        (torch.Size([4, 3, 8, 8]), torch.Size([4]))
    """

    def __init__(self, aug_dim: float | None = 1.0) -> None:
        self.aug_dim = check_aug_dim(aug_dim)

    def __repr__(self) -> str:
        return f"PoissonKernel(aug_dim={self.aug_dim})"

    def sample(
        self,
        shape: Sequence[int],
        sigma: float | torch.Tensor = 1.0,
        generator: Generators = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        max_norm: float | None = None,
    ) -> torch.Tensor:
        """Draw x − y, in data units.

        Args:
            shape: (B, *), with an independent radius for each of the B rows.
            sigma: noise level σ = r/√D, a number or (B,); only a number together with `max_norm`. Defaults to 1.
            generator: one generator, or a list of B of them.
            device: device of the result, the CPU by default.
            dtype: dtype of the result, torch's default dtype by default. The Gaussian is drawn in float32 or wider, the
                radius in float64.
            max_norm: largest norm of a row, in data units; rows with a larger norm are drawn again. None, the default,
                for the complete, heavy-tailed kernel.

        Returns:
            Tensor of `shape`. Where the radius exceeds the range of `dtype`, as happens for small D, the row is scaled
            down in its direction, so that no element exceeds a thousandth of the dtype's largest number (for float16,
            the largest number itself).

        Raises:
            ValueError: if a list of generators or `sigma` does not have B entries, `sigma` is a negative or infinite
                number, or a tensor together with `max_norm`, or `max_norm` is not positive or so small that no row
                within it is drawn.
        """
        check_noise_level("sigma", sigma)
        if max_norm is not None:
            if not max_norm > 0:
                raise ValueError(f"`max_norm` must be a number > 0 or None, but is {max_norm}.")
            if isinstance(sigma, torch.Tensor):
                raise ValueError("`sigma` must be a number together with `max_norm`, but is a tensor. Pass one number.")
            return self._sample_within(max_norm, shape, sigma, generator, device, dtype)
        shape = tuple(shape)
        device = torch.device("cpu" if device is None else device)
        dtype = dtype or torch.get_default_dtype()
        column = column_shape(shape)
        wide = torch.promote_types(dtype, torch.float32)
        if isinstance(sigma, torch.Tensor):
            _check_shape(sigma, shape)
            sigma = sigma.to(device, wide).view(column if sigma.ndim else ())
        gaussian = draw(functools.partial(torch.randn, dtype=wide), shape, generator, device)
        scale = sigma * self._radius(column, generator, device, wide)
        # The scale of each row is limited, not its elements, so that no direction changes.
        largest = gaussian.view(shape[0], math.prod(shape[1:])).abs().amax(1).clamp(min=1).view(column)
        limit = torch.finfo(dtype).max * (1 if dtype == torch.float16 else MAX_FRACTION)
        return cast_clamped(gaussian * torch.minimum(scale, limit / largest), dtype)

    def _radius(
        self, column: tuple[int, ...], generator: Generators, device: torch.device, dtype: torch.dtype
    ) -> torch.Tensor:
        """Draw √(D / χ²_D) for each row, (B, 1, ...)."""
        if math.isinf(self.aug_dim):
            return torch.ones(column, dtype=dtype, device=device)

        def sampler(shape: tuple[int, ...], *, generator: torch.Generator | None, device: torch.device) -> torch.Tensor:
            chi2 = chi_squared(shape, self.aug_dim, generator, device)
            return (self.aug_dim / chi2).sqrt().clamp(max=torch.finfo(dtype).max).to(dtype)

        return draw(sampler, column, generator, device)

    def _sample_within(
        self,
        max_norm: float,
        shape: Sequence[int],
        sigma: float,
        generator: Generators,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> torch.Tensor:
        def redrawn(shape: tuple[int, ...], *, generator: torch.Generator | None, device: torch.device) -> torch.Tensor:
            noise = self.sample(shape, sigma, generator, device, dtype)
            for _ in range(MAX_REDRAWS):
                beyond = (noise.flatten(1).float().norm(dim=1) > max_norm).nonzero().flatten()
                if not len(beyond):
                    return noise
                noise[beyond] = self.sample((len(beyond), *shape[1:]), sigma, generator, device, dtype)
            raise ValueError(
                f"`max_norm` = {max_norm} is out of reach: after {MAX_REDRAWS} draws at sigma = {sigma} some norms are "
                "still larger. Set it to the `upper_norm` of training, or to None."
            )

        return draw(redrawn, tuple(shape), generator, torch.device("cpu" if device is None else device))

    def log_prob(self, x: torch.Tensor, sigma: float | torch.Tensor = 1.0) -> torch.Tensor:
        """The log-density of x − y, in nats, normalized over R^N.

        Args:
            x: displacement from the charge, (B, *), in data units.
            sigma: noise level σ, a number or (B,). Defaults to 1.

        Returns:
            (B,), in the dtype of x but at least float32; computed in float64 (float32 on MPS).

        Raises:
            ValueError: if `x` is not floating-point, or `sigma` is not positive and finite or has another shape.
        """
        check_samples("x", x)
        flat = x.flatten(1).to(working_dtype(x.device))
        scale = to_tensor(sigma, flat.dtype, flat.device)
        _check_shape(scale, x.shape)
        if not ((scale > 0) & scale.isfinite()).all():
            raise ValueError(f"`sigma` must be a finite number > 0 for every sample, but is {sigma}.")
        dim = flat.shape[1]
        if math.isinf(self.aug_dim):
            log_density = -(flat.square().sum(1) / scale.square()) / 2 - dim / 2 * math.log(2 * math.pi)
        else:
            scaled, factor = rescale_for_squaring(flat)
            squares = scaled.square().sum(1) / scale.square()
            # Where the factor is not 1, the 1 of log(1 + ‖x‖²/(Dσ²)) is negligible.
            log_sum = torch.log1p(squares / self.aug_dim) + 2 * factor.squeeze(1).log()
            log_density = self._log_constant(dim) - (dim + self.aug_dim) / 2 * log_sum
        return (log_density - dim * scale.log()).to(torch.promote_types(x.dtype, torch.float32))

    def _log_constant(self, dim: int) -> float:
        """log Γ((N+D)/2) − log Γ(D/2) − (N/2) log(Dπ)."""
        a, h = self.aug_dim / 2, dim / 2
        if a < 1e4:
            return math.lgamma(a + h) - math.lgamma(a) - h * math.log(2 * a * math.pi)
        # Stirling's series for the difference: two values of log Γ of this size would cancel completely as D → ∞.
        ratio = (a + h - 0.5) * math.log1p(h / a) - h + (1 / (a + h) - 1 / a) / 12
        return ratio - h * math.log(2 * math.pi)
