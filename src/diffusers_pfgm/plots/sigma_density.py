"""The distribution of a fitted scheduler's steps over noise levels."""

from __future__ import annotations

import math

import torch
from matplotlib.figure import Figure

from ..schedulers.scheduling_poisson_flow import PoissonFlowScheduler


def plot_sigma_density(scheduler: PoissonFlowScheduler, num_inference_steps: int = 20) -> Figure:
    """Draw the density of a fitted scheduler's steps over log σ, compared with steps in equal ratios of σ.

    Args:
        scheduler: a scheduler from `fit_sigmas`.
        num_inference_steps: the number of steps of the run whose noise levels are marked.

    Raises:
        ValueError: if the scheduler has no `sigma_knots`.
    """
    knots = scheduler.config.sigma_knots
    if knots is None:
        raise ValueError("`scheduler` has no `sigma_knots` to show. Get a scheduler from `fit_sigmas`.")
    knot_sigmas = torch.tensor(knots, dtype=torch.float64)
    density = 1 / (len(knots) - 1) / -knot_sigmas.log10().diff()
    scheduler = PoissonFlowScheduler.from_config(scheduler.config)
    scheduler.set_timesteps(num_inference_steps)
    run_sigmas = scheduler.sigmas.unique()[1:] if scheduler.sigmas[-1] == 0 else scheduler.sigmas.unique()

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.stairs(density.flip(0), knot_sigmas.flip(0), fill=True, alpha=0.4, label="fitted")
    axes.axhline(1 / math.log10(knots[0] / knots[-1]), color="gray", linestyle=":", label="equal ratios")
    axes.plot(run_sigmas, torch.zeros_like(run_sigmas), "|", color="black", markersize=14, label=f"{len(run_sigmas)} σ")
    axes.set(xscale="log", xlabel="noise level σ", ylabel="share of the steps per decade", title="Density of steps")
    axes.legend(frameon=False)
    return figure
