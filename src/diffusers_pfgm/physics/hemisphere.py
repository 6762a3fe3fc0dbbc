r"""Latents as points on the hemisphere: a direction and a radius, each with a way between two and a spread of its own.

A latent x in R^N at height r = σ_max √D is u ‖x‖ with u on the sphere of R^N. At D = 1 it lies, seen from the middle of
the data, in the direction

    (x, r) / ‖(x, r)‖ = (u sin θ, cos θ),        tan θ = ‖x‖ / r,

and as r → ∞ these are uniform on the hemisphere of R^(N+1) (PFGM, arXiv 2209.11178, Theorem 1; the prior is so at any
r, section 3.3). The radius is heavy-tailed, so the way between two radii is geometric. Between two directions it is the
great circle: with w the part of v that is across u, at unit length, and a the angle between u and v,

    u(s) = u cos(s a) + w sin(s a),        0 ≤ s ≤ 1.

A straight line between two latents passes through the middle of the ball instead, where no prior draw lies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .charges import check_finite
from .tensors import rescale_for_squaring, working_dtype

PARALLEL = 1e-6  # of the part of v across u: less of it is rounding, and says nothing of the great circle to take


@dataclass(frozen=True)
class HemisphereLatents:
    """Latents as directions and radii.

    Attributes:
        direction: (B, *), of norm 1; (S, B, *) along S shares of a way.
        radius: (B,), ‖x‖ in data units; (S, B).

    Raises:
        ValueError: if `direction` does not have the shape of `radius` followed by that of one latent.

    Example:
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
                "`direction` must have the shape of `radius` followed by that of one latent, such as (B, C, H, W) for "
                f"(B,), but they have the shapes {tuple(self.direction.shape)} and {tuple(self.radius.shape)}."
            )

    @classmethod
    def from_latents(cls, x: torch.Tensor) -> HemisphereLatents:
        """Directions and radii of latents.

        Args:
            x: (B, *), in data units. Only the first dimension counts latents: flatten (S, B, *) to (S B, *) first.

        Returns:
            Directions in x's dtype; radii too, but in no narrower one than float32.

        Raises:
            ValueError: if `x` holds NaN or infinity, or a latent is 0, which has no direction.
        """
        check_finite("x", x)
        near, factor = rescale_for_squaring(x.flatten(1).to(working_dtype(x.device)))
        norm = torch.linalg.vector_norm(near, dim=1, keepdim=True)
        if not (norm > 0).all():
            index = int((norm == 0).nonzero()[0, 0])
            raise ValueError(f"`x` must have a direction, but index {index} is 0. Leave it out.")
        radius = (norm * factor).squeeze(1).to(torch.promote_types(x.dtype, torch.float32))
        return cls((near / norm).view_as(x).to(x.dtype), radius)

    def to_latents(self) -> torch.Tensor:
        """x of the direction's shape, in data units."""
        return self.direction * self.radius.view(*self.radius.shape, *[1] * len(self.sample_shape))

    @property
    def sample_shape(self) -> torch.Size:
        """(*), the shape of one latent."""
        return self.direction.shape[self.radius.ndim :]

    @property
    def flat(self) -> torch.Tensor:
        """Directions (B, N) or (S, B, N)."""
        return self.direction.flatten(self.radius.ndim)


def hemisphere_points(latents: HemisphereLatents, z: float) -> torch.Tensor:
    """Where latents at height z lie on the unit hemisphere: uniform for prior draws at D = 1.

    Args:
        latents: of a batch B, or (S, B).
        z: their height, σ_max at D = 1, in data units.

    Returns:
        (B, N + 1) or (S, B, N + 1), of norm 1, the last column along z.

    Raises:
        ValueError: if `z` is not positive.

    Reference:
        PFGM, arXiv 2209.11178, section 3.3 and Theorem 1.
    """
    if not 0 < z < math.inf:
        raise ValueError(f"`z` must be a finite number > 0, but is {z}. Pass the height of the latents, sigma_max.")
    angle = torch.atan2(latents.radius, torch.full_like(latents.radius, z)).unsqueeze(-1)
    return torch.cat([latents.flat * angle.sin(), angle.cos()], dim=-1)


def interpolate(
    first: HemisphereLatents, second: HemisphereLatents, share: float | torch.Tensor = 0.5
) -> HemisphereLatents:
    """The way from one batch of latents to another: along great circles, with geometric radii.

    Between opposite directions every great circle is as short, and one of them is taken, the same every time.

    Args:
        first: of a batch B, or itself (S', B).
        second: of as many, of the same shape.
        share: of the way, from 0 to 1: a number, or (S,).

    Returns:
        Latents of the same shape, or with S before all other dimensions.

    Raises:
        ValueError: if shapes differ, N = 1, where there is no circle, or `share` is beyond its range.
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
    angle, across = _great_circle(u, v)
    shares = shares.view(*shares.shape, *[1] * angle.ndim)  # (1, ...) or (S, 1, ...)
    log_radius = torch.lerp(first.radius.to(dtype).log(), second.radius.to(dtype).log(), shares)
    radius = log_radius.exp().to(first.radius.dtype)
    direction = _turned(u, across, shares * angle).to(first.direction.dtype)
    return HemisphereLatents(direction.view(*radius.shape, *first.sample_shape), radius)


def with_temperature(
    latents: HemisphereLatents, temperature: float, centre: torch.Tensor | None = None
) -> HemisphereLatents:
    """Latents nearer to what is typical, below 1, or farther from it, above.

    Args:
        latents: of a batch B, or (S, B).
        temperature: ≥ 0, and > 0 without `centre`. The factor of the radius, as in the paper; with `centre` that of
            each direction's angle to it (at most opposite to it), and radii stay.
        centre: (*), (B, *) or (S, B, *), a direction of any length, such as `latents.direction.mean(0)`.

    Raises:
        ValueError: if `temperature` is beyond its range, or `centre` has another shape or is 0.

    Reference:
        PFGM, arXiv 2209.11178, section 4.3: temperature by the norm of the latents.
    """
    low = "> 0" if centre is None else ">= 0"
    if not 0 <= temperature < math.inf or (centre is None and temperature == 0):
        raise ValueError(f"`temperature` must be a finite number {low}, but is {temperature}. Use 1 for no change.")
    if centre is None:
        return HemisphereLatents(latents.direction, latents.radius * temperature)
    shape, leading = latents.direction.shape, latents.radius.ndim
    if centre.shape not in [shape[first:] for first in range(leading + 1)]:
        allowed = " or ".join(str(tuple(shape[first:])) for first in range(leading, -1, -1))
        raise ValueError(f"`centre` must have the shape {allowed}, but has {tuple(centre.shape)}.")
    rows = centre.reshape(-1, *latents.sample_shape)  # one for all latents, or one for each of the last dimensions
    u = HemisphereLatents.from_latents(rows).flat.view(*centre.shape[: centre.ndim - len(latents.sample_shape)], -1)
    dtype = working_dtype(latents.direction.device)
    v = latents.flat.to(dtype)
    u = u.to(dtype).expand_as(v)
    angle, across = _great_circle(u, v)
    direction = _turned(u, across, (temperature * angle).clamp(max=math.pi)).to(latents.direction.dtype)
    return HemisphereLatents(direction.view(shape), latents.radius)


def _great_circle(u: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The angle (...) from u to v (..., N), and the unit vector (..., N) across u that leads there."""
    if u.shape[-1] < 2:
        raise ValueError("Latents of one dimension have no great circle between them: their directions are 1 and -1.")
    # Half the angle by its tangent: right to the last digits for parallel and opposite directions, too.
    lengths = (torch.linalg.vector_norm(w, dim=-1) for w in (u - v, u + v))
    angle = 2 * torch.atan2(*lengths)
    axis = torch.zeros_like(u).scatter(-1, u.abs().argmin(-1, keepdim=True), 1.0)
    across, aside = (toward - (toward * u).sum(-1, keepdim=True) * u for toward in (v, axis))
    across = torch.where(torch.linalg.vector_norm(across, dim=-1, keepdim=True) > PARALLEL, across, aside)
    return angle, torch.nn.functional.normalize(across, dim=-1)


def _turned(u: torch.Tensor, across: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Unit vectors (..., N) turned by angles (...)."""
    turn = turn.unsqueeze(-1)
    turned = u * turn.cos() + across * turn.sin()
    return torch.nn.functional.normalize(turned, dim=-1)  # since the directions were rounded
