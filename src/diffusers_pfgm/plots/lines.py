r"""Field lines of charges, and the equipotentials that they cross at right angles.

Charges y_i of strength 1/K on the plane z = 0 of R^(N+1) have, at p = (x, z), the potential

    φ(p) = 1/K Σ_i ‖p − y_i‖^(1−N) / (N − 1),        N = 1:   φ(p) = −1/K Σ_i log ‖p − y_i‖,

so that −∇φ = 1/K Σ_i (p − y_i) / ‖p − y_i‖^(N+1) is the Poisson field (PFGM, arXiv 2209.11178, section 3.1), which the
flow follows: away from the charges along (x − x̂, z).
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

REACH = 1e-4  # the last height before the plane, as a share of a line's first


def field_lines(starts: torch.Tensor, charges: torch.Tensor, num_steps: int = 200) -> torch.Tensor:
    """Follow field lines from points above the plane down to the charges, each from its own height.

    Args:
        starts: (B, N + 1), z > 0 last, in data units.
        charges: (K, N).
        num_steps: steps of the solver.

    Returns:
        (num_steps + 1, B, N + 1), the lines from `starts` to z = 0. Heights fall in equal ratios to 1e-4 of the first.

    Raises:
        ValueError: if a point does not lie above the plane, or shapes do not fit.

    Reference:
        PFGM, arXiv 2209.11178, section 3.3. In λ = −log z a step depends on the ratio of its heights only, so lines
        from many heights share one plan.
    """
    x, heights = starts[:, :-1], starts[:, -1]
    if not (heights > 0).all():
        raise ValueError(
            f"`starts` must have z > 0 in their last column, but the least is {heights.min().item():g}. Start above "
            "the plane of the charges."
        )
    ratios = torch.logspace(0, math.log10(REACH), num_steps, dtype=torch.float64).tolist()
    prepared, points = Charges(charges), [starts]
    steps = integration_steps(lambda x, ratio: posterior_mean(x, heights * ratio, prepared), x, [*ratios, 0.0])
    for (_, x), ratio in zip(steps, [*ratios[1:], 0.0], strict=True):
        points.append(torch.cat([x, heights.unsqueeze(1) * ratio], dim=1))
    return torch.stack(points)


def potential(points: torch.Tensor, charges: torch.Tensor) -> torch.Tensor:
    """φ of charges of strength 1/K, whose field is −∇φ.

    Args:
        points: (*, N + 1), z last, in data units.
        charges: (K, N), on z = 0.

    Returns:
        (*), differentiable, in the points' dtype; infinite on a charge.

    Raises:
        ValueError: if the sizes do not fit.
    """
    dim = charges.shape[-1]
    if charges.ndim != 2 or points.shape[-1] != dim + 1:
        raise ValueError(
            f"`points` must have one coordinate more than `charges` (K, N), but have the shapes {tuple(points.shape)} "
            f"and {tuple(charges.shape)}. Add z as the last coordinate."
        )
    places = torch.nn.functional.pad(charges.to(points), (0, 1))
    distances = torch.linalg.vector_norm(points.unsqueeze(-2) - places, dim=-1)
    return -distances.log().mean(-1) if dim == 1 else distances.pow(1 - dim).mean(-1) / (dim - 1)


def normal_angles(lines: torch.Tensor, charges: torch.Tensor) -> torch.Tensor:
    """Angles between field lines and the normals of the equipotentials that they cross; 0 for exact lines.

    The tangents are differences of fourth order in λ = −log z, the normals come from the potential by autograd.

    Args:
        lines: (S + 1, B, N + 1), from `field_lines`, S ≥ 5.
        charges: (K, N).

    Returns:
        (S − 4, B), radians, at the points of the lines but for two at each end and the one on the plane.

    Raises:
        ValueError: if the lines are too short.
    """
    if lines.ndim != 3 or len(lines) < 6:
        raise ValueError(
            f"`lines` must have the shape (S + 1, B, N + 1) with S >= 5, but has {tuple(lines.shape)}. Take more "
            "`num_steps` in `field_lines`."
        )
    steps = lines[:-1]  # the last step, to z = 0, is endless in λ
    tangents = 8 * (steps[3:-1] - steps[1:-3]) - (steps[4:] - steps[:-4])
    with torch.enable_grad():
        points = steps[2:-2].detach().requires_grad_()
        normals = torch.autograd.grad(potential(points, charges).sum(), points)[0]
    first, second = (torch.nn.functional.normalize(vectors, dim=-1) for vectors in (tangents, normals))
    norm = torch.linalg.vector_norm
    return 2 * torch.atan2(norm(first - second, dim=-1), norm(first + second, dim=-1))


def plot_field_lines(line_charges: torch.Tensor, plane_charges: torch.Tensor) -> Figure:
    """The paper's idea in one picture: lines that start uniformly on a hemisphere end where the charges are.

    Black lines are equipotentials: in the half plane in equal steps of potential, in space their traces on the plane
    and the far halves of two of them.

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
    # Lines π/60 of the flux apart and potentials π/20 apart: cells three times as long as wide.
    levels = -math.log(1.08 * radius) + math.pi / 20 * torch.arange(1, 40)
    axes.contour(x, z, values, levels=levels, colors="black", linewidths=0.5, alpha=0.55, linestyles="solid")
    axes.scatter(charges[:, 0], torch.zeros(len(charges)), color="black", zorder=3, clip_on=False)
    axes.set(xlabel="x", ylabel="z", aspect="equal", title="N = 1: charges on a line", ylim=(0, None))


def dome(radius: float, count: int) -> torch.Tensor:
    """(count, 3), a Fibonacci lattice: as even on the hemisphere z > 0 as points can be."""
    index = torch.arange(count, dtype=torch.float64)
    z, turn = (index + 0.5) / count, index * math.pi * (3 - math.sqrt(5))
    ring = (1 - z.square()).sqrt()
    return radius * torch.stack([ring * turn.cos(), ring * turn.sin(), z], dim=1)


def _draw_space(axes: Axes3D, charges: torch.Tensor) -> None:
    radius = 2 * torch.linalg.vector_norm(charges, dim=1).max().item() or 2.0
    starts = dome(radius, 200)
    grid = torch.linspace(-radius, radius, 240, dtype=torch.float64)
    x, y = torch.meshgrid(grid, grid, indexing="ij")
    values = potential(torch.stack([x, y, torch.zeros_like(x)], dim=-1), charges)
    outermost = _sphere_minimum(charges, radius)
    levels = outermost * torch.arange(1, 16)
    axes.contour(x, y, values, levels=levels, zdir="z", offset=0, colors="black", linewidths=0.6, alpha=0.5, zorder=0)
    for share in (0.6, 0.9):
        shell = _shell(charges, _sphere_minimum(charges, share * radius), share * radius)
        axes.plot_surface(*shell, color="gray", alpha=0.13, shade=False, zorder=0)
        axes.plot_wireframe(*shell, color="black", linewidth=0.4, alpha=0.45, rcount=9, ccount=7, zorder=0)
    for line, start in zip(field_lines(starts, charges).unbind(1), starts, strict=True):
        color = colormaps["hsv"](math.atan2(start[1], start[0]) / (2 * math.pi) % 1)
        axes.plot(line[:, 0], line[:, 1], line[:, 2], color=color, linewidth=0.7, alpha=0.8)
    axes.scatter(starts[:, 0], starts[:, 1], starts[:, 2], color="gray", s=3)
    axes.scatter(charges[:, 0], charges[:, 1], 0, color="black", s=12, zorder=3)
    axes.set_box_aspect((1, 1, 0.5), zoom=1.25)
    axes.view_init(elev=28, azim=-70)
    axes.set(xlabel="$x_1$", ylabel="$x_2$", title="N = 2: charges in a plane, a hemisphere above")
    axes.set(xlim=(-radius, radius), ylim=(-radius, radius), zlim=(0, radius))
    axes.tick_params(labelsize=7)


def _sphere_minimum(charges: torch.Tensor, radius: float) -> float:
    """The least potential on a sphere around 0: that equipotential lies outside the sphere."""
    return potential(dome(radius, 500), charges).min().item()


def _shell(charges: torch.Tensor, level: float, inside: float) -> tuple[torch.Tensor, ...]:
    """The half x₂ ≥ 0 of the equipotential φ = level, which lies outside the sphere of radius `inside` around charges.

    There φ falls along each ray from 0, so that bisection finds its one crossing.
    """
    turns = torch.linspace(0, math.pi, 49, dtype=torch.float64)
    heights = torch.linspace(0, math.pi / 2, 13, dtype=torch.float64)
    turn, height = torch.meshgrid(turns, heights, indexing="ij")
    rays = torch.stack([height.cos() * turn.cos(), height.cos() * turn.sin(), height.sin()], dim=-1)
    low, high = torch.full_like(turn, inside), torch.full_like(turn, 3 * inside)  # φ ≤ 1 / (3 inside − R) < level there
    for _ in range(50):
        middle = (low + high) / 2
        within = potential(middle.unsqueeze(-1) * rays, charges) > level
        low, high = torch.where(within, middle, low), torch.where(within, high, middle)
    return (low.unsqueeze(-1) * rays).unbind(-1)
