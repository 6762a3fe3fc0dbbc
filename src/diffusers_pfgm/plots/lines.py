r"""Field lines of charges, and the equipotentials that they cross at right angles.

K charges y_i of strength 1/K on the plane z = 0 of R^(N+1) have at the point p = (x, z) the potential

    φ(p) = 1/K Σ_i ‖p − y_i‖^(1−N) / (N − 1),        N = 1:   φ(p) = −1/K Σ_i log ‖p − y_i‖.

The Poisson field is −∇φ = 1/K Σ_i (p − y_i) / ‖p − y_i‖^(N+1) (PFGM, arXiv 2209.11178, section 3.1). It points away
from the charges, in the direction (x − x̂, z), and the backward flow follows it in the opposite direction.
"""

from __future__ import annotations

import math

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import Axes3D

from ..physics import Charges, posterior_mean
from ..solvers import integration_steps
from ..utils.checks import check_whole_number

LAST_Z_RATIO = 1e-4  # z of the last point before the plane over z of the first


def field_lines(starts: torch.Tensor, charges: torch.Tensor, num_steps: int = 200) -> torch.Tensor:
    """Follow field lines from points above the plane to the charges. Each line starts at its own z.

    Args:
        starts: (B, N + 1), the starting points in data units, whose last coordinate is z > 0.
        charges: (K, N), the charges on z = 0.
        num_steps: the number of steps of the solver.

    Returns:
        (num_steps + 1, B, N + 1), the lines from `starts` to z = 0. On each line z decreases in equal ratios to 1e-4 of
        its first value, and then to 0.

    Raises:
        ValueError: if a starting point has z ≤ 0, the shapes do not fit, or `num_steps` is not a whole number ≥ 1.

    Reference:
        PFGM, arXiv 2209.11178, section 3.3. In λ = −log z a step depends only on the ratio of its two values of z, so
        lines with different z can take the same steps.
    """
    x = starts[:, :-1]
    start_z = starts[:, -1]
    if not (start_z > 0).all():
        raise ValueError(
            f"`starts` must have z > 0 in their last column, but the least is {start_z.min().item():g}. Start above "
            "the plane of the charges."
        )
    num_steps = check_whole_number("num_steps", num_steps, 1)
    ratios = torch.logspace(0, math.log10(LAST_Z_RATIO), num_steps, dtype=torch.float64).tolist()
    prepared = Charges(charges)
    points = [starts]
    steps = integration_steps(lambda x, ratio: posterior_mean(x, start_z * ratio, prepared), x, [*ratios, 0.0])
    for (_, x), ratio in zip(steps, [*ratios[1:], 0.0], strict=True):
        points.append(torch.cat([x, start_z.unsqueeze(1) * ratio], dim=1))
    return torch.stack(points)


def potential(points: torch.Tensor, charges: torch.Tensor) -> torch.Tensor:
    """Return the potential φ of charges of strength 1/K, whose field is −∇φ.

    Args:
        points: (*, N + 1), points in data units, whose last coordinate is z.
        charges: (K, N), the charges on z = 0.

    Returns:
        (*), differentiable, in the dtype of `points`; infinite at a charge.

    Raises:
        ValueError: if the points do not have one coordinate more than the charges.
    """
    value = _log_potential(points, charges)
    return value if charges.shape[1] == 1 else value.exp()


def normal_angles(lines: torch.Tensor, charges: torch.Tensor) -> torch.Tensor:
    """Return the angles between field lines and the normals of the equipotentials; 0 for exact field lines.

    The tangents of the lines are finite differences of fourth order in λ = −log z. The normals are gradients by
    autograd, at N > 1 of log φ, which has the same direction and does not underflow at large N.

    Args:
        lines: (S + 1, B, N + 1), from `field_lines`, S ≥ 5.
        charges: (K, N), the charges on z = 0.

    Returns:
        (S − 4, B), in radians, at all points of the lines except the one on the plane and two more at each end.

    Raises:
        ValueError: if a line has fewer than 6 points.
    """
    if lines.ndim != 3 or len(lines) < 6:
        raise ValueError(
            f"`lines` must have the shape (S + 1, B, N + 1) with S >= 5, but has {tuple(lines.shape)}. Take more "
            "`num_steps` in `field_lines`."
        )
    above_plane = lines[:-1]  # λ is infinite on the plane
    tangents = 8 * (above_plane[3:-1] - above_plane[1:-3]) - (above_plane[4:] - above_plane[:-4])
    with torch.enable_grad():
        points = above_plane[2:-2].detach().requires_grad_()
        normals = torch.autograd.grad(_log_potential(points, charges).sum(), points)[0]
    first, second = (torch.nn.functional.normalize(vectors, dim=-1) for vectors in (tangents, normals))
    norm = torch.linalg.vector_norm
    return 2 * torch.atan2(norm(first - second, dim=-1), norm(first + second, dim=-1))


def plot_field_lines(line_charges: torch.Tensor, plane_charges: torch.Tensor) -> Figure:
    """Draw field lines that start uniformly on a hemisphere and end at the charges.

    Black lines are equipotentials. In the half plane on the left they are drawn at equal steps of the potential. On the
    right their intersections with the plane z = 0 are drawn, and of two of them the half behind the field lines.

    Args:
        line_charges: (K, 1), data on a line, drawn in the half plane (x, z).
        plane_charges: (K, 2), data in a plane, drawn in space.

    Raises:
        ValueError: if the charges have other shapes.
    """
    for name, charges, dim in (("line_charges", line_charges, 1), ("plane_charges", plane_charges, 2)):
        if charges.ndim != 2 or charges.shape[1] != dim or len(charges) == 0:
            raise ValueError(f"`{name}` must have the shape (K, {dim}) with K >= 1, but has {tuple(charges.shape)}.")
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    flat = figure.add_subplot(1, 2, 1)
    solid = figure.add_subplot(1, 2, 2, projection="3d", computed_zorder=False)
    _draw_half_plane(flat, line_charges.cpu().double())
    _draw_space(solid, plane_charges.cpu().double())
    return figure


def _log_potential(points: torch.Tensor, charges: torch.Tensor) -> torch.Tensor:
    """Return log φ, or φ itself at N = 1, where φ may be negative. Arguments and errors are those of `potential`."""
    dim = charges.shape[-1]
    if charges.ndim != 2 or points.shape[-1] != dim + 1:
        raise ValueError(
            f"`points` must have one coordinate more than `charges` (K, N), but have the shapes {tuple(points.shape)} "
            f"and {tuple(charges.shape)}. Add z as the last coordinate."
        )
    charge_points = torch.nn.functional.pad(charges.to(points), (0, 1))
    log_distances = torch.linalg.vector_norm(points.unsqueeze(-2) - charge_points, dim=-1).log()
    if dim == 1:
        return -log_distances.mean(-1)
    return ((1 - dim) * log_distances).logsumexp(-1) - math.log(len(charges) * (dim - 1))


def _draw_half_plane(axes: Axes, charges: torch.Tensor) -> None:
    radius = 3 * charges.abs().max().item() or 3.0
    angles = (torch.arange(60, dtype=torch.float64) + 0.5) * math.pi / 60
    arc = radius * torch.stack([angles.cos(), angles.sin()], dim=1)
    for line, angle in zip(field_lines(arc, charges).unbind(1), angles, strict=True):
        axes.plot(line[:, 0], line[:, 1], color=colormaps["hsv"](angle.item() / math.pi), linewidth=0.8)
    axes.plot(arc[:, 0], arc[:, 1], color="gray", linestyle=":")

    x = torch.linspace(-1.08 * radius, 1.08 * radius, 500, dtype=torch.float64)
    z = torch.linspace(0, 1.08 * radius, 250, dtype=torch.float64)
    values = potential(torch.cartesian_prod(x, z), charges).view(len(x), len(z)).T
    # Neighbouring lines enclose a flux of π/60 and potentials differ by π/20, so cells are three times as long as wide.
    potentials = -math.log(1.08 * radius) + math.pi / 20 * torch.arange(1, 40)
    axes.contour(x, z, values, levels=potentials, colors="black", linewidths=0.5, alpha=0.55, linestyles="solid")
    axes.scatter(charges[:, 0], torch.zeros(len(charges)), color="black", zorder=3, clip_on=False)
    axes.set(xlabel="x", ylabel="z", aspect="equal", title="N = 1: charges on a line", ylim=(0, None))


def dome(radius: float, count: int) -> torch.Tensor:
    """Return points (count, 3) that are spread evenly over the hemisphere z > 0: a Fibonacci lattice."""
    index = torch.arange(count, dtype=torch.float64)
    z = (index + 0.5) / count
    azimuth = index * math.pi * (3 - math.sqrt(5))  # multiples of the golden angle
    ring_radius = (1 - z.square()).sqrt()
    return radius * torch.stack([ring_radius * azimuth.cos(), ring_radius * azimuth.sin(), z], dim=1)


def _draw_space(axes: Axes3D, charges: torch.Tensor) -> None:
    radius = 2 * torch.linalg.vector_norm(charges, dim=1).max().item() or 2.0
    starts = dome(radius, 200)
    grid = torch.linspace(-radius, radius, 240, dtype=torch.float64)
    x, y = torch.meshgrid(grid, grid, indexing="ij")
    values = potential(torch.stack([x, y, torch.zeros_like(x)], dim=-1), charges)
    potentials = _minimum_on_sphere(charges, radius) * torch.arange(1, 16)
    axes.contour(
        x, y, values, levels=potentials, zdir="z", offset=0, colors="black", linewidths=0.6, alpha=0.5, zorder=0
    )
    for ratio in (0.6, 0.9):
        surface = _equipotential(charges, _minimum_on_sphere(charges, ratio * radius), ratio * radius)
        axes.plot_surface(*surface, color="gray", alpha=0.13, shade=False, zorder=0)
        axes.plot_wireframe(*surface, color="black", linewidth=0.4, alpha=0.45, rcount=9, ccount=7, zorder=0)
    for line, start in zip(field_lines(starts, charges).unbind(1), starts, strict=True):
        color = colormaps["hsv"](math.atan2(start[1], start[0]) / (2 * math.pi) % 1)
        axes.plot(line[:, 0], line[:, 1], line[:, 2], color=color, linewidth=0.7, alpha=0.8)
    axes.scatter(starts[:, 0], starts[:, 1], starts[:, 2], color="gray", s=3)
    axes.scatter(charges[:, 0], charges[:, 1], 0, color="black", s=12, zorder=3)
    axes.set_box_aspect((1, 1, 0.5), zoom=1.25)
    axes.view_init(elev=28, azim=-70)
    axes.set(xlabel="$x_1$", ylabel="$x_2$", title="N = 2: charges in a plane, starts on a hemisphere")
    axes.set(xlim=(-radius, radius), ylim=(-radius, radius), zlim=(0, radius))
    axes.tick_params(labelsize=7)


def _minimum_on_sphere(charges: torch.Tensor, radius: float) -> float:
    """Return the least potential on a sphere around 0. The equipotential of this value encloses the sphere."""
    return potential(dome(radius, 500), charges).min().item()


def _equipotential(charges: torch.Tensor, value: float, inner_radius: float) -> tuple[torch.Tensor, ...]:
    """Return the half x₂ ≥ 0 of the equipotential φ = value as a surface of points (x₁, x₂, z).

    The equipotential must enclose the sphere of radius `inner_radius` around 0, and the sphere all charges. Outside the
    sphere φ decreases along each ray from 0, so bisection finds its only intersection with the surface.
    """
    azimuths = torch.linspace(0, math.pi, 49, dtype=torch.float64)
    latitudes = torch.linspace(0, math.pi / 2, 13, dtype=torch.float64)
    azimuth, latitude = torch.meshgrid(azimuths, latitudes, indexing="ij")
    rays = torch.stack([latitude.cos() * azimuth.cos(), latitude.cos() * azimuth.sin(), latitude.sin()], dim=-1)
    low = torch.full_like(azimuth, inner_radius)
    high = torch.full_like(azimuth, 3 * inner_radius)  # φ ≤ 1 / (3 inner_radius − R) < value there
    for _ in range(50):
        middle = (low + high) / 2
        is_inside = potential(middle.unsqueeze(-1) * rays, charges) > value
        low = torch.where(is_inside, middle, low)
        high = torch.where(is_inside, high, middle)
    return (low.unsqueeze(-1) * rays).unbind(-1)
