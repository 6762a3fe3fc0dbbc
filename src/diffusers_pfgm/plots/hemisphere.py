r"""How uniform points lie on the hemisphere, against the closed-form laws of their angles.

A state x at σ lies, seen from the middle of the data, in the direction (x, r) of the half space, r = σ√D. From a charge
at 0 its law is uniform on the sphere of R^(N+D), whose last D coordinates count by their length only (Student-t kernel,
`physics/kernel.py`): at D = 1 the paper's uniform hemisphere (PFGM, arXiv 2209.11178, section 3.1). Two angles tell it,

    polar      θ from the z axis, tan θ = ‖x‖ / r              density ∝ sin^(N−1) θ · cos^(D−1) θ on [0, π/2]
    elevation  ψ over the plane across a unit vector e of R^N,
               sin ψ = e · x / √(‖x‖² + r²)                    density ∝ cos^(N+D−2) ψ on [−π/2, π/2]

with e = (1, ..., 1)/√N, along which data differ most from noise: the brightness of an image. The powers' integral is
∫₀^(π/2) sin^a cos^b = ½ B((a+1)/2, (b+1)/2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import Axes3D

GRID = 40001  # points of the distribution function: of 1e-7 accuracy where an angle spreads over 1/√N = 0.01 rad


@dataclass(frozen=True)
class AngleLaw:
    """The density of an angle, ∝ sin^sine · cos^cosine from `low` to π/2.

    Args:
        low: 0, or −π/2 with `sine` = 0.
        sine, cosine: the powers, ≥ 0.

    Example:
        >>> round(AngleLaw(0.0, sine=1.0, cosine=0.0).distribution(torch.tensor([math.pi / 3])).item(), 6)
        0.5
    """

    low: float
    sine: float
    cosine: float

    def density(self, angle: torch.Tensor) -> torch.Tensor:
        """Per radian, of angle's shape, in float64; 0 outside."""
        angle = angle.cpu().double()
        a, b = (self.sine + 1) / 2, (self.cosine + 1) / 2
        log_integral = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b) - (math.log(2) if self.low == 0 else 0)
        inside = (angle >= self.low) & (angle <= math.pi / 2)
        logs = torch.xlogy(self.sine, angle.sin().clamp(min=0)) + torch.xlogy(self.cosine, angle.cos().clamp(min=0))
        return (logs - log_integral).exp().where(inside, 0.0)

    def distribution(self, angle: torch.Tensor) -> torch.Tensor:
        """The share below each angle, of its shape, in float64, by the trapezoid rule."""
        grid = torch.linspace(self.low, math.pi / 2, GRID, dtype=torch.float64)
        below = torch.nn.functional.pad(torch.cumulative_trapezoid(self.density(grid), grid), (1, 0))
        place = (angle.cpu().double() - self.low) / (grid[-1] - self.low) * (GRID - 1)
        left = place.floor().long().clamp(0, GRID - 2)
        return torch.lerp(below[left], below[left + 1], (place - left).clamp(0, 1))


@dataclass(frozen=True)
class Agreement:
    """A Kolmogorov-Smirnov test: the largest deviation between distribution functions, and its p-value."""

    deviation: float
    p_value: float


def hemisphere_laws(dim: int, aug_dim: float = 1.0) -> dict[str, AngleLaw]:
    """The laws of the "polar" angle and the "elevation" of points that are uniform on the hemisphere.

    Args:
        dim: N.
        aug_dim: D, finite and ≥ 1.

    Raises:
        ValueError: for another D.
    """
    if aug_dim is None or not 1 <= aug_dim < math.inf:
        raise ValueError(
            f"`aug_dim` must be a finite number >= 1, but is {aug_dim}. At D = infinity there is no hemisphere."
        )
    return {
        "polar": AngleLaw(0.0, dim - 1, aug_dim - 1),
        "elevation": AngleLaw(-math.pi / 2, 0.0, dim + aug_dim - 2),
    }


def hemisphere_angles(x: torch.Tensor, sigma: float, aug_dim: float = 1.0) -> dict[str, torch.Tensor]:
    """The "polar" angle and the "elevation" of each point, (B,) in radians and float64.

    Args:
        x: (B, *), states in data units.
        sigma: their height, > 0.
        aug_dim: D, finite and ≥ 1.

    Raises:
        ValueError: if a number is out of its range.
    """
    flat, r = _checked(x, sigma, aug_dim)
    norm = torch.linalg.vector_norm(flat, dim=1)
    along = flat.sum(1) / math.sqrt(flat.shape[1])
    return {"polar": norm.atan2(r.expand_as(norm)), "elevation": (along / torch.hypot(norm, r)).asin()}


def uniformity(x: torch.Tensor, sigma: float, aug_dim: float = 1.0) -> dict[str, Agreement]:
    """Kolmogorov-Smirnov tests of both angles against the uniform hemisphere.

    Args:
        x: (B, *), states in data units: draws of a prior, or latents of data.
        sigma: their height, > 0.
        aug_dim: D, finite and ≥ 1.

    Raises:
        ValueError: if a number is out of its range.

    Example:
        >>> from diffusers_pfgm import PoissonFlowScheduler
        >>> prior = PoissonFlowScheduler().sample_prior((2000, 1, 8, 8), torch.Generator().manual_seed(0))
        >>> uniformity(prior, 40.0)["polar"].p_value > 0.01, uniformity(prior + 30, 40.0)["polar"].p_value > 0.01
        (True, False)
    """
    angles = hemisphere_angles(x, sigma, aug_dim)
    laws = hemisphere_laws(x[0].numel(), aug_dim)
    return {name: _agreement(angle, laws[name]) for name, angle in angles.items()}


def plot_hemisphere(x: torch.Tensor, sigma: float, aug_dim: float = 1.0) -> Figure:
    """Points on the hemisphere and their angles as histograms, against the uniform laws.

    The first panel shows the points themselves at N = 2, otherwise the elevations over all axes of R^N at once.

    Args:
        x: (B, *), states in data units: draws of a prior, or latents of data.
        sigma: their height, > 0.
        aug_dim: D, finite and ≥ 1.

    Raises:
        ValueError: if a number is out of its range.
    """
    flat, r = _checked(x, sigma, aug_dim)
    dim = flat.shape[1]
    laws, angles = hemisphere_laws(dim, aug_dim), hemisphere_angles(x, sigma, aug_dim)
    tests = {name: _agreement(angle, laws[name]) for name, angle in angles.items()}
    directions = torch.cat([flat, r.expand(len(flat), 1)], dim=1)
    directions = torch.nn.functional.normalize(directions, dim=1)
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    figure.suptitle(f"{len(flat):,} points at σ = {sigma:g} against the uniform hemisphere, N = {dim}, D = {aug_dim:g}")
    if dim == 2:
        _draw_dome(figure.add_subplot(1, 3, 1, projection="3d"), directions)
    else:
        axes = figure.add_subplot(1, 3, 1)
        _draw_angles(axes, directions[:, :-1].asin().flatten(), laws["elevation"])
        axes.set(title=f"over each of {dim} axes", xlabel="angle over an axis (°)", ylabel="density (1/°)")
    for place, name, label in ((2, "polar", "from the z axis"), (3, "elevation", "over the diagonal")):
        axes = figure.add_subplot(1, 3, place)
        _draw_angles(axes, angles[name], laws[name])
        axes.set(xlabel=f"angle {label} (°)", ylabel="density (1/°)")
        axes.set_title(f"{name}: KS {tests[name].deviation:.3f}, p = {tests[name].p_value:.2g}")
    axes.legend(frameon=False, fontsize="small")
    return figure


def _checked(x: torch.Tensor, sigma: float, aug_dim: float) -> tuple[torch.Tensor, torch.Tensor]:
    """x as (B, N), and r = σ√D as (), in float64."""
    hemisphere_laws(1, aug_dim)
    if not 0 < sigma < math.inf:
        raise ValueError(f"`sigma` must be a finite number > 0, but is {sigma}. Pass the height of the points.")
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(f"`x` must have the shape (B, *) with B >= 1, but has {tuple(x.shape)}.")
    return x.detach().cpu().flatten(1).double(), torch.tensor(sigma * math.sqrt(aug_dim), dtype=torch.float64)


def _agreement(values: torch.Tensor, law: AngleLaw) -> Agreement:
    below, count = law.distribution(values.sort().values), len(values)
    ranks = torch.arange(count + 1, dtype=torch.float64) / count
    deviation = torch.maximum((ranks[1:] - below).max(), (below - ranks[:-1]).max()).item()
    # Kolmogorov's series with Stephens' correction for finite samples (J. R. Stat. Soc. B 32, 115, 1970).
    scaled = (math.sqrt(count) + 0.12 + 0.11 / math.sqrt(count)) * deviation
    k = torch.arange(1, 101, dtype=torch.float64)
    series = 2 * ((-1) ** (k - 1) * (-2 * (k * scaled).square()).exp()).sum().item()
    return Agreement(deviation, 1.0 if scaled < 0.2 else min(max(series, 0.0), 1.0))  # 1 − 1e-12 at 0.2


def _draw_angles(axes: Axes, angles: torch.Tensor, law: AngleLaw) -> None:
    axes.hist(angles.rad2deg().numpy(), bins=40, density=True, alpha=0.45, label="points")
    grid = torch.linspace(angles.min().item(), angles.max().item(), 400, dtype=torch.float64)
    axes.plot(grid.rad2deg(), law.density(grid) * math.pi / 180, color="black", linewidth=1.5, label="uniform law")


def _draw_dome(axes: Axes3D, directions: torch.Tensor) -> None:
    turn, height = torch.meshgrid(torch.linspace(0, 2 * math.pi, 37), torch.linspace(0, math.pi / 2, 10), indexing="ij")
    axes.plot_wireframe(
        height.cos() * turn.cos(), height.cos() * turn.sin(), height.sin(), color="gray", linewidth=0.4, alpha=0.6
    )
    axes.scatter(*directions[:3000].T, s=3, c=directions[:3000, 2], cmap="viridis", depthshade=False)
    axes.set_box_aspect((1, 1, 0.5), zoom=1.2)
    axes.view_init(elev=35)
    axes.set(xlabel="$x_1$", ylabel="$x_2$")
    axes.tick_params(labelsize=7)
