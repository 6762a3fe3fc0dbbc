"""The posterior mean x̂ (denoised sample) of a few samples at several noise levels of a run."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ..physics.tensors import append_dims
from ..utils.checks import check_whole_number
from .trajectories import Trajectory


def visible(x: torch.Tensor) -> torch.Tensor:
    """Map images (B, C, *) to [0, 1]. An image with values outside [−1, 1] is first divided by its largest |value|."""
    largest = append_dims(x.abs().flatten(1).amax(1).clamp(min=1), x.ndim)
    return (x / largest / 2 + 0.5).clamp(0, 1)


def check_images(trajectory: Trajectory) -> None:
    """Raise a ValueError unless the states are images (B, C, H, W) of 1 or 3 channels."""
    shape = tuple(trajectory.states.shape[1:])
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise ValueError(
            f"`trajectory` must be of images (B, C, H, W) with C 1 or 3, but its states have the shape {shape}. "
            "Use `plot_trajectories` for other data."
        )


def plot_denoised(trajectory: Trajectory, num_rows: int = 4, num_columns: int = 10, show_states: bool = True) -> Figure:
    """Draw x̂ along trajectories: a row for each sample and a column for each noise level, from the prior to the data.

    Args:
        trajectory: a trajectory of images (B, C, H, W) in [-1, 1], C 1 or 3, from `record_trajectory`.
        num_rows: the number of samples, at most B.
        num_columns: the number of noise levels, evenly spaced among the network calls, at most all of them.
        show_states: whether to show the state x below each x̂. A state with values outside [−1, 1] is divided by its
            largest |value|.

    Raises:
        ValueError: if the states are not images of 1 or 3 channels, or `num_rows` or `num_columns` is not a
            whole number ≥ 1.
    """
    check_images(trajectory)
    num_rows = check_whole_number("num_rows", num_rows, 1)
    num_columns = check_whole_number("num_columns", num_columns, 1)
    calls = len(trajectory.denoised)
    samples = min(num_rows, trajectory.states.shape[1])
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
