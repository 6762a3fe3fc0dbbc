r"""Uniformity of points on the hemisphere, tested by the closed-form distributions of two angles.

A state x at noise level σ has the direction (x, r) in the half space, with the augmented radius r = σ√D. For a single
charge at 0 this direction is uniform on the sphere of R^(N+D), of whose last D coordinates only the norm r matters
(Student-t kernel, `physics/kernel.py`); at D = 1 this is the uniform hemisphere of PFGM (arXiv 2209.11178, section
3.1). Two angles are tested,

    polar      θ from the z axis, tan θ = ‖x‖ / r              density ∝ sin^(N−1) θ · cos^(D−1) θ on [0, π/2]
    elevation  ψ above the plane normal to a unit vector e of R^N,
               sin ψ = e · x / √(‖x‖² + r²)                    density ∝ cos^(N+D−2) ψ on [−π/2, π/2]

with e = (1, ..., 1)/√N, the brightness of an image, in which data differ most from noise. The densities are normalized
by ∫₀^(π/2) sin^a cos^b = ½ B((a+1)/2, (b+1)/2), and the squared sine of such an angle has the beta distribution with
these two parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import Axes3D
from scipy.special import betainc


@dataclass(frozen=True)
class AngleLaw:
    """The distribution of an angle with a density ∝ sin^sine · cos^cosine between `low` and π/2.

    Args:
        low: the lower end of the range, in radians: 0, or −π/2 with `sine` = 0.
        sine: the power of the sine, ≥ 0.
        cosine: the power of the cosine, ≥ 0.

    Examples:
        >>> round(AngleLaw(0.0, sine=1.0, cosine=0.0).distribution(torch.tensor([math.pi / 3])).item(), 6)
        0.5
    """

    low: float
    sine: float
    cosine: float

    def density(self, angle: torch.Tensor) -> torch.Tensor:
        """Return the probability density per radian at angles of any shape, in float64; 0 outside the range."""
        angle = angle.cpu().double()
        a, b = (self.sine + 1) / 2, (self.cosine + 1) / 2
        log_integral = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b) - (math.log(2) if self.low == 0 else 0)
        inside = (angle >= self.low) & (angle <= math.pi / 2)
        logs = torch.xlogy(self.sine, angle.sin().clamp(min=0)) + torch.xlogy(self.cosine, angle.cos().clamp(min=0))
        return (logs - log_integral).exp().where(inside, 0.0)

    def distribution(self, angle: torch.Tensor) -> torch.Tensor:
        """Return the cumulative distribution function at angles of any shape, in float64."""
        inside = angle.cpu().double().clamp(self.low, math.pi / 2)
        share = torch.as_tensor(betainc((self.sine + 1) / 2, (self.cosine + 1) / 2, inside.sin().square().numpy()))
        return share if self.low == 0 else (1 + share.copysign(inside)) / 2


@dataclass(frozen=True)
class Agreement:
    """The result of a Kolmogorov-Smirnov test.

    Attributes:
        deviation: the largest difference between the empirical and the expected distribution function.
        p_value: the probability of a deviation at least as large under the expected distribution.
    """

    deviation: float
    p_value: float


def hemisphere_laws(dim: int, aug_dim: float = 1.0) -> dict[str, AngleLaw]:
    """Return the distributions of the "polar" angle and the "elevation" of uniform points on the hemisphere.

    Args:
        dim: N, the data dimension.
        aug_dim: D, the augmented dimension, finite and ≥ 1.

    Raises:
        ValueError: if `aug_dim` is None, infinite or below 1.
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
    """Return the "polar" angle and the "elevation" of each point, (B,) in radians and float64.

    Args:
        x: (B, *), states in data units, such as samples of the prior or latents of data.
        sigma: σ, the noise level of the states, > 0.
        aug_dim: D, the augmented dimension, finite and ≥ 1.

    Raises:
        ValueError: if `sigma` or `aug_dim` is out of its range, or `x` is empty or has no batch dimension.
    """
    flat, r = _check_points(x, sigma, aug_dim)
    norm = torch.linalg.vector_norm(flat, dim=1)
    along = flat.sum(1) / math.sqrt(flat.shape[1])
    return {"polar": norm.atan2(r.expand_as(norm)), "elevation": (along / torch.hypot(norm, r)).asin()}


def uniformity(x: torch.Tensor, sigma: float, aug_dim: float = 1.0) -> dict[str, Agreement]:
    """Test whether points are uniform on the hemisphere, by Kolmogorov-Smirnov tests of the two angles.

    Arguments and errors are those of `hemisphere_angles`, and so are the names "polar" and "elevation" of the results.

    Examples:
        >>> from diffusers_pfgm import PoissonFlowScheduler
        >>> prior = PoissonFlowScheduler().sample_prior((2000, 1, 8, 8), torch.Generator().manual_seed(0))
        >>> uniformity(prior, 40.0)["polar"].p_value > 0.01, uniformity(prior + 30, 40.0)["polar"].p_value > 0.01
        (True, False)
    """
    angles = hemisphere_angles(x, sigma, aug_dim)
    laws = hemisphere_laws(x[0].numel(), aug_dim)
    return {name: _agreement(angle, laws[name]) for name, angle in angles.items()}


def plot_hemisphere(x: torch.Tensor, sigma: float, aug_dim: float = 1.0) -> Figure:
    """Draw points on the hemisphere, and histograms of their angles with the densities of uniform points.

    The first panel shows the points at N = 2, and for other N the histogram of their elevations along all N axes.
    Arguments and errors are those of `hemisphere_angles`.
    """
    flat, r = _check_points(x, sigma, aug_dim)
    dim = flat.shape[1]
    laws = hemisphere_laws(dim, aug_dim)
    angles = hemisphere_angles(x, sigma, aug_dim)
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
        axes.set(title=f"elevation along each of {dim} axes", xlabel="elevation (°)", ylabel="density (1/°)")
    for panel, name, label in ((2, "polar", "from the z axis"), (3, "elevation", "along the diagonal")):
        axes = figure.add_subplot(1, 3, panel)
        _draw_angles(axes, angles[name], laws[name])
        axes.set(xlabel=f"angle {label} (°)", ylabel="density (1/°)")
        axes.set_title(f"{name}: KS {tests[name].deviation:.3f}, p = {tests[name].p_value:.2g}")
    axes.legend(frameon=False, fontsize="small")
    return figure


def _check_points(x: torch.Tensor, sigma: float, aug_dim: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Check the arguments, and return x as (B, N) and r = σ√D as (), in float64."""
    hemisphere_laws(1, aug_dim)  # checks `aug_dim`
    if not 0 < sigma < math.inf:
        raise ValueError(f"`sigma` must be a finite number > 0, but is {sigma}. Pass the noise level of the points.")
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(f"`x` must have the shape (B, *) with B >= 1, but has {tuple(x.shape)}.")
    return x.detach().cpu().flatten(1).double(), torch.tensor(float(sigma) * math.sqrt(aug_dim), dtype=torch.float64)


def _agreement(values: torch.Tensor, law: AngleLaw) -> Agreement:
    """Compare angles (B,) with a distribution by a Kolmogorov-Smirnov test."""
    count = len(values)
    expected = law.distribution(values.sort().values)
    ranks = torch.arange(count + 1, dtype=torch.float64) / count
    deviation = torch.maximum((ranks[1:] - expected).max(), (expected - ranks[:-1]).max()).item()
    # Kolmogorov's series with Stephens' correction for finite samples (J. R. Stat. Soc. B 32, 115, 1970).
    scaled = (math.sqrt(count) + 0.12 + 0.11 / math.sqrt(count)) * deviation
    k = torch.arange(1, 101, dtype=torch.float64)
    series = 2 * ((-1) ** (k - 1) * (-2 * (k * scaled).square()).exp()).sum().item()
    # 100 terms are too few near 0; at 0.2 the exact value is already 1 − 1e-12.
    return Agreement(deviation, 1.0 if scaled < 0.2 else min(max(series, 0.0), 1.0))


def _draw_angles(axes: Axes, angles: torch.Tensor, law: AngleLaw) -> None:
    axes.hist(angles.rad2deg().numpy(), bins=40, density=True, alpha=0.45, label="points")
    grid = torch.linspace(angles.min().item(), angles.max().item(), 400, dtype=torch.float64)
    axes.plot(grid.rad2deg(), law.density(grid) * math.pi / 180, color="black", linewidth=1.5, label="uniform law")


def _draw_dome(axes: Axes3D, directions: torch.Tensor) -> None:
    azimuths = torch.linspace(0, 2 * math.pi, 37)
    latitudes = torch.linspace(0, math.pi / 2, 10)
    azimuth, latitude = torch.meshgrid(azimuths, latitudes, indexing="ij")
    x, y, z = latitude.cos() * azimuth.cos(), latitude.cos() * azimuth.sin(), latitude.sin()
    axes.plot_wireframe(x, y, z, color="gray", linewidth=0.4, alpha=0.6)
    axes.scatter(*directions[:3000].T, s=3, c=directions[:3000, 2], cmap="viridis", depthshade=False)
    axes.set_box_aspect((1, 1, 0.5), zoom=1.2)
    axes.view_init(elev=35)
    axes.set(xlabel="$x_1$", ylabel="$x_2$")
    axes.tick_params(labelsize=7)
