"""From the hemisphere to the data as a film: frames as PIL images, and a GIF of them without ffmpeg."""

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

from .denoised import check_images, visible
from .trajectories import Trajectory


def even_moments(lines: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Points along lines at equal shares of the way that they go on average, from the first to the last.

    Steps in equal ratios of z would spend most of a film next to the plane.

    Args:
        lines: (S + 1, B, M).
        num_frames: F ≥ 2.

    Returns:
        (F, B, M), interpolated linearly.
    """
    lines = lines.cpu()
    way = torch.linalg.vector_norm(lines.diff(dim=0), dim=2).mean(1).cumsum(0)
    way = torch.nn.functional.pad(way, (1, 0))
    at = torch.linspace(0, 1, num_frames, dtype=way.dtype) * way[-1]
    right = torch.searchsorted(way, at).clamp(1, len(way) - 1)
    share = ((at - way[right - 1]) / (way[right] - way[right - 1]).clamp(min=1e-30)).clamp(0, 1)
    return torch.lerp(lines[right - 1], lines[right], share.view(-1, 1, 1).to(lines.dtype))


def plot_moment(points: torch.Tensor, lines: torch.Tensor, charges: torch.Tensor) -> Figure:
    """One frame: points on their way along field lines, in the color of the charge at which each ends.

    Args:
        points: (B, 3), one on each line.
        lines: (S + 1, B, 3), from `field_lines`.
        charges: (K, 2).
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
    """Points that leave the hemisphere and arrive at charges in the plane.

    Args:
        lines: (S + 1, B, 3), from `field_lines`, started on a hemisphere.
        charges: (K, 2).
        num_frames: at equal shares of the points' way; the first shows their starts, the last the charges.

    Raises:
        ValueError: if the lines are not in space, or there are less than 2 frames.
    """
    if lines.ndim != 3 or lines.shape[2] != 3 or charges.shape[1:] != (2,):
        raise ValueError(
            f"`lines` (S + 1, B, 3) and `charges` (K, 2) must be of data in a plane, but have the shapes "
            f"{tuple(lines.shape)} and {tuple(charges.shape)}. Use `animate_images` for images."
        )
    if num_frames < 2:
        raise ValueError(f"`num_frames` must be at least 2, the start and the end, but is {num_frames}.")
    return [_rendered(plot_moment(points, lines, charges)) for points in even_moments(lines, num_frames)]


def animate_images(trajectory: Trajectory, scale: int = 4, columns: int | None = None) -> list[Image.Image]:
    """A grid of states for each step of a run, from noise to images.

    Args:
        trajectory: from `record_trajectory`, of images (B, C, H, W) in [-1, 1], C 1 or 3.
        scale: pixels of a frame per pixel of an image.
        columns: images per row; as square as can be by default.

    Raises:
        ValueError: if the states are no such images.
    """
    from .image_grid import image_grid  # here, as POT takes seconds to import

    check_images(trajectory)
    return [image_grid(visible(states.float()), scale, columns) for states in trajectory.states]


def save_gif(
    frames: Sequence[Image.Image], path: str | os.PathLike[str], frames_per_second: float = 12.0, hold: float = 1.5
) -> None:
    """Write frames as a GIF that repeats for ever.

    Args:
        frames: of one size. Pillow joins equal neighbours into one that lasts longer.
        path: of the file.
        frames_per_second: of all frames but the last.
        hold: seconds for which the last one stays.

    Raises:
        ValueError: if there are no frames, or the rate is not positive.
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
