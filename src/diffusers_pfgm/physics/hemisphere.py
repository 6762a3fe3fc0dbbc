r"""Latents as points on the hemisphere: a direction and a radius, with interpolation and temperature for each.

A latent x in R^N at σ_max can be written as u ‖x‖ with a unit vector u. With the augmented radius r = σ_max √D, the
direction of (x, r) from the centre of the data is

    (x, r) / ‖(x, r)‖ = (u sin θ, cos θ),        tan θ = ‖x‖ / r.

At D = 1, directions of encoded data become uniform on the hemisphere of R^(N+1) as r → ∞ (PFGM, arXiv 2209.11178,
Theorem 1), and directions of prior draws are uniform at any r (section 3.3). The radius ‖x‖ is heavy-tailed, so radii
are interpolated geometrically. Directions u and v are interpolated along their great circle. With a the angle between
them and w the unit vector along the component of v that is orthogonal to u,

    u(s) = u cos(s a) + w sin(s a),        0 ≤ s ≤ 1.

A straight line between two latents would pass close to the centre of the ball, where the prior has almost no mass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .charges import check_finite
from .tensors import check_samples, rescale_for_squaring, working_dtype

PARALLEL = 1e-6  # a component of v orthogonal to u below this norm is rounding and does not define a great circle


@dataclass(frozen=True)
class HemisphereLatents:
    """Latents as directions and radii.

    Attributes:
        direction: unit vectors, (B, *), or (S, B, *) for S points of an interpolation.
        radius: ‖x‖ in data units, (B,) or (S, B).

    Raises:
        ValueError: if the shape of `direction` is not that of `radius` followed by the shape of one latent.

    Examples:
        >>> latents = HemisphereLatents.from_latents(torch.tensor([[3.0, 4.0]]))
        >>> latents.direction, latents.radius
        (tensor([[0.6000, 0.8000]]), tensor([5.]))
        >>> latents.to_latents()
        tensor([[3., 4.]])
    """

    direction: torch.Tensor
    radius: torch.Tensor

    def __post_init__(self) -> None:
        leading = self.radius.ndim
        if not leading or self.direction.ndim <= leading or self.direction.shape[:leading] != self.radius.shape:
            raise ValueError(
                "`direction` must have the shape of `radius` followed by the shape of one latent, such as (B, C, H, W) "
                f"for (B,), but they have the shapes {tuple(self.direction.shape)} and {tuple(self.radius.shape)}."
            )

    @classmethod
    def from_latents(cls, x: torch.Tensor) -> HemisphereLatents:
        """Decompose latents into directions and radii.

        Args:
            x: (B, *), in data units, with one batch dimension: reshape (S, B, *) to (S B, *) first.

        Returns:
            Latents with directions in the dtype of x, and radii in the same dtype but at least float32.

        Raises:
            ValueError: if `x` is not floating-point, holds NaN or infinity, or a latent is 0 and so has no direction.
        """
        check_samples("x", x)
        check_finite("x", x)
        scaled, factor = rescale_for_squaring(x.flatten(1).to(working_dtype(x.device)))
        norm = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
        if not (norm > 0).all():
            index = int((norm == 0).nonzero()[0, 0])
            raise ValueError(f"`x` must have a direction, but index {index} is 0. Leave it out.")
        radius = (norm * factor).squeeze(1).to(torch.promote_types(x.dtype, torch.float32))
        return cls((scaled / norm).view_as(x).to(x.dtype), radius)

    def to_latents(self) -> torch.Tensor:
        """Return x = direction · radius, with the shape of `direction`, in data units."""
        return self.direction * self.radius.view(*self.radius.shape, *[1] * len(self.sample_shape))

    @property
    def sample_shape(self) -> torch.Size:
        """The shape (*) of one latent."""
        return self.direction.shape[self.radius.ndim :]

    @property
    def flat(self) -> torch.Tensor:
        """Directions flattened to (B, N) or (S, B, N)."""
        return self.direction.flatten(self.radius.ndim)


def hemisphere_points(latents: HemisphereLatents, z: float) -> torch.Tensor:
    """Project latents at z onto the unit hemisphere. Prior draws at D = 1 are distributed uniformly on it.

    Args:
        latents: latents with B or (S, B) entries.
        z: their coordinate z, which is σ_max at D = 1, in data units.

    Returns:
        Unit vectors (B, N + 1) or (S, B, N + 1), with the z component in the last column.

    Raises:
        ValueError: if `z` is not positive.

    Reference:
        PFGM, arXiv 2209.11178, section 3.3 and Theorem 1.
    """
    if not 0 < z < math.inf:
        raise ValueError(f"`z` must be a finite number > 0, but is {z}. Pass sigma_max, at which latents are drawn.")
    angle = torch.atan2(latents.radius, torch.full_like(latents.radius, z)).unsqueeze(-1)
    return torch.cat([latents.flat * angle.sin(), angle.cos()], dim=-1)


def interpolate(
    first: HemisphereLatents, second: HemisphereLatents, share: float | torch.Tensor = 0.5
) -> HemisphereLatents:
    """Interpolate between two batches of latents: directions along great circles, radii geometrically.

    Opposite directions are connected by many great circles of the same length. The choice is deterministic.

    Args:
        first: latents with B or (S', B) entries.
        second: latents of the same shape.
        share: position between `first` (0) and `second` (1), a number or (S,). Defaults to 0.5.

    Returns:
        Latents of the same shape for a number, or with S as an additional first dimension.

    Raises:
        ValueError: if the shapes of `first` and `second` differ, N = 1, where there is no great circle, or `share` is
            outside of [0, 1].
    """
    if first.direction.shape != second.direction.shape or first.radius.shape != second.radius.shape:
        raise ValueError(
            f"`first` and `second` must have the same shape, but have {tuple(first.direction.shape)} and "
            f"{tuple(second.direction.shape)} with radii {tuple(first.radius.shape)} and {tuple(second.radius.shape)}."
        )
    dtype = working_dtype(first.radius.device)
    shares = torch.as_tensor(share, dtype=dtype, device=first.radius.device)
    if shares.ndim > 1 or not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError(f"`share` must be a number from 0 to 1, or (S,) of them, but is {share}.")
    u, v = (latents.flat.to(dtype) for latents in (first, second))
    angle, orthogonal = _great_circle(u, v)
    shares = shares.view(*shares.shape, *[1] * angle.ndim)  # (1, ...) or (S, 1, ...)
    log_radius = torch.lerp(first.radius.to(dtype).log(), second.radius.to(dtype).log(), shares)
    radius = log_radius.exp().to(first.radius.dtype)
    direction = _rotate(u, orthogonal, shares * angle).to(first.direction.dtype)
    return HemisphereLatents(direction.view(*radius.shape, *first.sample_shape), radius)


def check_temperature(temperature: float, has_centre: bool = False) -> None:
    """Raise a ValueError unless `with_temperature` allows the temperature, without or with a centre."""
    low = ">= 0" if has_centre else "> 0"
    if not 0 <= temperature < math.inf or (temperature == 0 and not has_centre):
        raise ValueError(f"`temperature` must be a finite number {low}, but is {temperature}. Use 1 for no change.")


def with_temperature(
    latents: HemisphereLatents, temperature: float, centre: torch.Tensor | None = None
) -> HemisphereLatents:
    """Latents with less (temperature < 1) or more (temperature > 1) variation.

    Args:
        latents: latents with B or (S, B) entries.
        temperature: without `centre`, a factor > 0 that multiplies the radii, as in the paper. With `centre`, a factor
            ≥ 0 that multiplies the angle between each direction and the centre (limited to π); radii are unchanged.
        centre: direction of any length, (*), (B, *) or (S, B, *), such as `latents.direction.mean(0)`. None by default.

    Returns:
        Latents of the same shape.

    Raises:
        ValueError: if `temperature` is negative, or 0 without `centre`, or not finite; if `centre` has another shape,
            is 0 or is not finite; or if N = 1 with `centre`.

    Reference:
        PFGM, arXiv 2209.11178, section 4.3: temperature by the norm of the latents.
    """
    check_temperature(temperature, centre is not None)
    if centre is None:
        return HemisphereLatents(latents.direction, latents.radius * temperature)
    shape, leading = latents.direction.shape, latents.radius.ndim
    if centre.shape not in [shape[first:] for first in range(leading + 1)]:
        allowed = " or ".join(str(tuple(shape[first:])) for first in range(leading, -1, -1))
        raise ValueError(f"`centre` must have the shape {allowed}, but has {tuple(centre.shape)}.")
    rows = centre.reshape(-1, *latents.sample_shape)  # a single centre, or one for each latent of a batch
    check_finite("centre", rows)
    if not rows.flatten(1).any(1).all():
        raise ValueError("`centre` must have a direction, but is 0. Pass a direction, or None for the factor of radii.")
    u = HemisphereLatents.from_latents(rows).flat.view(*centre.shape[: centre.ndim - len(latents.sample_shape)], -1)
    dtype = working_dtype(latents.direction.device)
    v = latents.flat.to(dtype)
    u = u.to(dtype).expand_as(v)
    angle, orthogonal = _great_circle(u, v)
    direction = _rotate(u, orthogonal, (temperature * angle).clamp(max=math.pi)).to(latents.direction.dtype)
    return HemisphereLatents(direction.view(shape), latents.radius)


def _great_circle(u: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The angle (...) between unit vectors u and v (..., N), and the unit vector (..., N) w of the great circle."""
    if u.shape[-1] < 2:
        raise ValueError(
            "Latents must have two dimensions or more, but have one: there is no great circle between the directions 1 "
            "and -1."
        )
    # The tangent of half the angle is precise to the last digits even for parallel and opposite directions.
    lengths = (torch.linalg.vector_norm(vector, dim=-1) for vector in (u - v, u + v))
    angle = 2 * torch.atan2(*lengths)
    axis = torch.zeros_like(u).scatter(-1, u.abs().argmin(-1, keepdim=True), 1.0)
    orthogonal, fallback = (vector - (vector * u).sum(-1, keepdim=True) * u for vector in (v, axis))
    norm = torch.linalg.vector_norm(orthogonal, dim=-1, keepdim=True)
    return angle, torch.nn.functional.normalize(torch.where(norm > PARALLEL, orthogonal, fallback), dim=-1)


def _rotate(u: torch.Tensor, orthogonal: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Rotate unit vectors u (..., N) towards orthogonal ones by angles (...)."""
    angle = angle.unsqueeze(-1)
    rotated = u * angle.cos() + orthogonal * angle.sin()
    return torch.nn.functional.normalize(rotated, dim=-1)  # removes the rounding of u
