"""What the network sees on the way down: x̂ of a few samples at a few heights."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ..physics.tensors import append_dims
from .trajectories import Trajectory


def visible(x: torch.Tensor) -> torch.Tensor:
    """Images (B, C, *) of any size of values in [0, 1]: one beyond [−1, 1] is divided by its own largest value."""
    largest = append_dims(x.abs().flatten(1).amax(1).clamp(min=1), x.ndim)
    return (x / largest / 2 + 0.5).clamp(0, 1)


def check_images(trajectory: Trajectory) -> None:
    """Raises ValueError unless the states are images (B, C, H, W) of 1 or 3 channels."""
    shape = tuple(trajectory.states.shape[1:])
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise ValueError(
            f"`trajectory` must be of images (B, C, H, W) with C 1 or 3, but its states have the shape {shape}. "
            "Use `plot_trajectories` for other data."
        )


def plot_denoised(trajectory: Trajectory, num_rows: int = 4, num_columns: int = 10, show_states: bool = True) -> Figure:
    """x̂ along trajectories: a row for each sample, a column for each height, from the prior to the data.

    Args:
        trajectory: from `record_trajectory`, of images (B, C, H, W) in [-1, 1], C 1 or 3.
        num_rows: samples; as many as there are at most.
        num_columns: heights, evenly among the calls; as many as there are at most.
        show_states: whether to show the state x beneath each x̂, divided by its largest value where that is above 1.

    Raises:
        ValueError: if the states are no such images, or a number is below 1.
    """
    check_images(trajectory)
    for name, value in (("num_rows", num_rows), ("num_columns", num_columns)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, but is {value}.")
    calls, samples = len(trajectory.denoised), min(num_rows, trajectory.states.shape[1])
    columns = torch.linspace(0, calls - 1, min(num_columns, calls)).round().long().tolist()
    kinds = [("$\\hat{x}$", trajectory.denoised)] + [("$x$", trajectory.states)] * show_states

    width = trajectory.states.shape[4] / trajectory.states.shape[3]
    size = (0.5 + 0.85 * len(columns) * width, 0.4 + 0.85 * samples * len(kinds))
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0))
    grid = figure.subplots(samples * len(kinds), len(columns), squeeze=False)
    for place, column in enumerate(columns):
        for kind, (label, images) in enumerate(kinds):
            for sample, pixels in enumerate(visible(images[column, :samples].float()).permute(0, 2, 3, 1)):
                axes = grid[sample * len(kinds) + kind, place]
                axes.imshow(pixels.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                if place == 0:
                    axes.set_ylabel(label, rotation=0, labelpad=10, va="center")
        grid[0, place].set_title(f"σ = {trajectory.sigmas[column].item():.3g}", fontsize=8)
    return figure
