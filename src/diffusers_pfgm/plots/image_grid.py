"""A grid of many images in one image."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from PIL import Image

from ..pipelines.outputs import numpy_to_pil
from ..utils.checks import check_whole_number


def image_grid(images: torch.Tensor, scale: int = 1, columns: int | None = None) -> Image.Image:
    """Arrange images in a grid, with white lines between them.

    Args:
        images: (B, C, H, W) in [0, 1], C = 1 to 4, as a pipeline returns them for output_type "pt".
        scale: the number of pixels of the grid, in each direction, for a pixel of an image.
        columns: the number of images in a row; by default the grid is as square as possible. Empty cells are black,
            and transparent for C = 2 and 4.

    Raises:
        ValueError: if there are no images, or they have values outside [0, 1], or `scale` or `columns` is not a whole
            number ≥ 1.
    """
    scale = check_whole_number("scale", scale, 1)
    if columns is not None:
        columns = check_whole_number("columns", columns, 1)
    if not len(images) or ((images < 0) | (images > 1)).any():
        values = f"go from {images.min().item():.4g} to {images.max().item():.4g}" if len(images) else "are none"
        raise ValueError(
            f"`images` must be one or more with values in [0, 1], but {values}. Pass images / 2 + 0.5 for data in "
            "[-1, 1], and images / 255 for bytes."
        )
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    blanks = images.new_zeros(rows * columns - len(images), *images.shape[1:])
    pixels = torch.cat([images, blanks]).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    pixels = torch.nn.functional.pad(pixels, (2, 2, 2, 2), value=1.0)
    grid = pixels.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return numpy_to_pil(grid.unsqueeze(0).float().cpu().numpy())[0]


def save_image_grid(path: Path, images: torch.Tensor, scale: int = 1, columns: int | None = None) -> None:
    """Save the grid that `image_grid` returns, without its transparency in a JPEG or BMP file.

    Args:
        path: the file, whose suffix selects the format.
        images, scale, columns: see `image_grid`.
    """
    grid = image_grid(images, scale, columns)
    if path.suffix.lower() in (".jpg", ".jpeg", ".bmp"):
        grid = grid.convert(grid.mode.removesuffix("A"))
    grid.save(path)
