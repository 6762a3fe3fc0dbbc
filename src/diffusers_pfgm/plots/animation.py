"""Animations of the flow from the prior to the data: frames as PIL images, and GIF files without ffmpeg."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ..utils.checks import check_whole_number
from .denoised import check_images, visible
from .trajectories import Trajectory


def even_moments(lines: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Return points along lines at equal distances of their mean arc length, from the first to the last.

    With steps in equal ratios of z instead, most frames of an animation would show points close to the plane.

    Args:
        lines: (S + 1, B, M), B lines of S + 1 points.
        num_frames: F, at least 2.

    Returns:
        (F, B, M), interpolated linearly between the points of the lines.
    """
    lines = lines.cpu()
    arc_length = torch.linalg.vector_norm(lines.diff(dim=0), dim=2).mean(1).cumsum(0)
    arc_length = torch.nn.functional.pad(arc_length, (1, 0))
    frame_length = torch.linspace(0, 1, num_frames, dtype=arc_length.dtype) * arc_length[-1]
    right = torch.searchsorted(arc_length, frame_length).clamp(1, len(arc_length) - 1)
    step_length = (arc_length[right] - arc_length[right - 1]).clamp(min=1e-30)
    weight = ((frame_length - arc_length[right - 1]) / step_length).clamp(0, 1)
    return torch.lerp(lines[right - 1], lines[right], weight.view(-1, 1, 1).to(lines.dtype))


def plot_moment(points: torch.Tensor, lines: torch.Tensor, charges: torch.Tensor) -> Figure:
    """Draw one frame: points on field lines, in the colour of the charge at which the line ends.

    Args:
        points: (B, 3), a point of each line.
        lines: (S + 1, B, 3), from `field_lines`.
        charges: (K, 2), the charges in the plane.
    """
    figure = Figure(figsize=(5, 4), dpi=100)
    axes: Any = figure.add_axes((0, 0, 1, 1), projection="3d", computed_zorder=False)
    points, lines, charges = (each.cpu() for each in (points, lines, charges))
    ends = torch.cdist(lines[-1, :, :2].double(), charges.double()).argmin(1)
    for charge, color in enumerate(colormaps["hsv"](np.linspace(0, 1, len(charges), endpoint=False))):
        owned = ends == charge
        for line in lines[:, owned].unbind(1)[:8]:
            axes.plot(*line.T, color=color, linewidth=0.4, alpha=0.25)
        axes.plot(*points[owned].T, ".", color=color, markersize=4)
    axes.scatter(charges[:, 0], charges[:, 1], 0, color="black", marker="x", s=16, depthshade=False, zorder=0)
    radius = torch.linalg.vector_norm(lines[0], dim=1).max().item()
    axes.set(xlim=(-radius, radius), ylim=(-radius, radius), zlim=(0, radius), xlabel="$x_1$", ylabel="$x_2$")
    axes.set_box_aspect((1, 1, 0.5), zoom=1.1)
    axes.view_init(elev=28, azim=-70)
    axes.tick_params(labelsize=7)
    return figure


def animate_points(lines: torch.Tensor, charges: torch.Tensor, num_frames: int = 40) -> list[Image.Image]:
    """Draw points that move along field lines from the hemisphere to charges in the plane.

    Args:
        lines: (S + 1, B, 3), from `field_lines`, starting on a hemisphere.
        charges: (K, 2), the charges in the plane.
        num_frames: the number of frames, at least 2. The first shows the starts of the lines, the last their ends, and
            between frames the points move by equal distances on average.

    Raises:
        ValueError: if `lines` or `charges` have another shape, or `num_frames` is not a whole number ≥ 2.
    """
    if lines.ndim != 3 or lines.shape[2] != 3 or charges.shape[1:] != (2,):
        raise ValueError(
            f"`lines` (S + 1, B, 3) and `charges` (K, 2) must be of data in a plane, but have the shapes "
            f"{tuple(lines.shape)} and {tuple(charges.shape)}. Use `animate_images` for images."
        )
    num_frames = check_whole_number("num_frames", num_frames, 2, ", the start and the end")
    return [_rendered(plot_moment(points, lines, charges)) for points in even_moments(lines, num_frames)]


def animate_images(trajectory: Trajectory, scale: int = 4, columns: int | None = None) -> list[Image.Image]:
    """Draw a grid of the states for each step of a run, from noise to images.

    Args:
        trajectory: a trajectory of images (B, C, H, W) in [-1, 1], C 1 or 3, from `record_trajectory`.
        scale: the number of pixels of a frame, in each direction, for a pixel of an image.
        columns: the number of images in a row; by default the grid is as square as possible.

    Raises:
        ValueError: if the states are not images of 1 or 3 channels.
    """
    from .image_grid import image_grid  # imports the pipelines, which other plots do not need

    check_images(trajectory)
    return [image_grid(visible(states.float()), scale, columns) for states in trajectory.states]


def save_gif(
    frames: Sequence[Image.Image], path: str | os.PathLike[str], frames_per_second: float = 12.0, hold: float = 1.5
) -> None:
    """Write frames to a GIF file that repeats without end.

    Args:
        frames: images of one size. Pillow merges equal consecutive frames into one that is shown longer.
        path: the path of the file.
        frames_per_second: the frame rate, which applies to all frames except the last.
        hold: the time in seconds for which the last frame is shown.

    Raises:
        ValueError: if `frames` is empty, or `frames_per_second` is not positive.
    """
    if not frames:
        raise ValueError("`frames` must hold at least one image, but is empty.")
    if not frames_per_second > 0:
        raise ValueError(f"`frames_per_second` must be a number > 0, but is {frames_per_second}.")
    durations = [round(1000 / frames_per_second)] * (len(frames) - 1) + [round(1000 * hold)]
    frames[0].save(path, "GIF", save_all=True, append_images=list(frames[1:]), duration=durations, loop=0)


def _rendered(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
