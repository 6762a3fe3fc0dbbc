"""Pictures of the physics. Needs matplotlib, of the extra `training`."""

from __future__ import annotations

import math

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure

from .physics import Charges, plan, posterior_mean
from .scheduling_poisson_flow import PoissonFlowScheduler


def field_lines(starts: torch.Tensor, charges: torch.Tensor, num_steps: int = 200) -> torch.Tensor:
    """Follow field lines from points above the plane down to the charges, each from its own height.

    Args:
        starts: (B, N + 1), z > 0 last, in data units.
        charges: (K, N).
        num_steps: steps of the solver.

    Returns:
        (num_steps + 1, B, N + 1), the lines from `starts` to z = 0.

    Reference:
        PFGM, arXiv 2209.11178, section 3.3. In λ = −log z a step depends on the ratio of its heights only, so lines
        from many heights share one plan.
    """
    x, heights = starts[:, :-1], starts[:, -1]
    ratios = torch.logspace(0, -4, num_steps, dtype=torch.float64).tolist()
    prepared, points = Charges(charges), [starts]
    seen: list[torch.Tensor] = []
    for step, ratio in zip(plan([*ratios, 0.0]), [*ratios[1:], 0.0], strict=True):
        seen.insert(0, posterior_mean(x, heights * step.sigma, prepared))
        x = step(x, seen)
        points.append(torch.cat([x, heights.unsqueeze(1) * ratio], dim=1))
    return torch.stack(points)


def plot_field_lines(line_charges: torch.Tensor, plane_charges: torch.Tensor) -> Figure:
    """The paper's idea in one picture: lines that start uniformly on a hemisphere end where the charges are.

    Args:
        line_charges: (K, 1), data on a line, drawn in the half plane (x, z).
        plane_charges: (K, 2), data in a plane, drawn in space.
    """
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    flat = figure.add_subplot(1, 2, 1)
    solid = figure.add_subplot(1, 2, 2, projection="3d", computed_zorder=False)
    colors = colormaps["hsv"]

    radius = 3 * line_charges.abs().max().item()
    angles = (torch.arange(60, dtype=torch.float64) + 0.5) * math.pi / 60
    arc = radius * torch.stack([angles.cos(), angles.sin()], dim=1)
    for line, angle in zip(field_lines(arc, line_charges).unbind(1), angles, strict=True):
        flat.plot(line[:, 0], line[:, 1], color=colors(angle.item() / math.pi), linewidth=0.8)
    flat.plot(arc[:, 0], arc[:, 1], color="gray", linestyle=":")
    flat.scatter(line_charges[:, 0], torch.zeros(len(line_charges)), color="black", zorder=3)
    flat.set(xlabel="x", ylabel="z", aspect="equal", title="N = 1: charges on a line")

    # A Fibonacci lattice is as even on the hemisphere as points can be.
    index = torch.arange(200, dtype=torch.float64)
    z, turn = (index + 0.5) / len(index), index * math.pi * (3 - math.sqrt(5))
    ring = (1 - z.square()).sqrt()
    radius = 2 * plane_charges.norm(dim=1).max().item()
    dome = radius * torch.stack([ring * turn.cos(), ring * turn.sin(), z], dim=1)
    for line, angle in zip(field_lines(dome, plane_charges).unbind(1), turn, strict=True):
        color = colors(angle.item() % (2 * math.pi) / (2 * math.pi))
        solid.plot(line[:, 0], line[:, 1], line[:, 2], color=color, linewidth=0.7, alpha=0.8)
    solid.scatter(dome[:, 0], dome[:, 1], dome[:, 2], color="gray", s=3)
    solid.scatter(plane_charges[:, 0], plane_charges[:, 1], 0, color="black", s=12, zorder=3)
    solid.set_box_aspect((1, 1, 0.5), zoom=1.25)
    solid.view_init(elev=28, azim=-70)
    solid.set(xlabel="$x_1$", ylabel="$x_2$", title="N = 2: charges in a plane, a hemisphere above")
    solid.tick_params(labelsize=7)
    return figure


def plot_sigma_density(scheduler: PoissonFlowScheduler, num_inference_steps: int = 20) -> Figure:
    """Where along σ a fitted scheduler spends its steps, against steps in equal ratios.

    Args:
        scheduler: from `fit_sigmas`.
        num_inference_steps: of the run whose heights are marked.

    Raises:
        ValueError: if the scheduler has no `sigma_knots`.
    """
    knots = scheduler.config.sigma_knots
    if knots is None:
        raise ValueError("`scheduler` has no `sigma_knots` to show. Get a scheduler from `fit_sigmas`.")
    heights = torch.tensor(knots, dtype=torch.float64)
    density = 1 / (len(knots) - 1) / -heights.log10().diff()
    scheduler = PoissonFlowScheduler.from_config(scheduler.config)
    scheduler.set_timesteps(num_inference_steps)
    marks = scheduler.sigmas.unique()[1:] if scheduler.sigmas[-1] == 0 else scheduler.sigmas.unique()

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.stairs(density.flip(0), heights.flip(0), fill=True, alpha=0.4, label="fitted")
    axes.axhline(1 / math.log10(knots[0] / knots[-1]), color="gray", linestyle=":", label="equal ratios")
    axes.plot(marks, torch.zeros_like(marks), "|", color="black", markersize=14, label=f"{len(marks)} heights")
    axes.set(xscale="log", xlabel="σ", ylabel="share of the steps per decade", title="Density of steps")
    axes.legend(frameon=False)
    return figure
