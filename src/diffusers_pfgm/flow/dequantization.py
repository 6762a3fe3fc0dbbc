r"""From the density of a flow to the likelihood of images with discrete pixel values.

Networks are trained with pixels in [−1, 1]: level k = 0, ..., L − 1 of L levels has the value 2k/(L − 1) − 1. Its
probability P(k) is that of a bin of width w = 2/(L − 1) around this value. Uniform dequantization replaces the value by
a uniformly distributed point of the bin; by Jensen's inequality

    log P(k) ≥ E_u [log p(x(k + u))] + N log w,        u uniform on [−1/2, 1/2)^N,

and −log₂ of this bound, divided by N, is the value in bits/dim that papers compare (arXiv 1511.01844, section 3.1).
"""

from __future__ import annotations

import math

import torch

from ..physics.tensors import Generators, at_least_float32, draw
from ..utils.checks import check_whole_number

# The largest distance of a pixel to its level, relative to the distance between two levels. Images that were rounded to
# floats need such a tolerance.
OFF_LEVEL = 0.02


def check_num_levels(num_levels: int) -> None:
    """Raise a ValueError unless `num_levels` is a whole number ≥ 2."""
    check_whole_number("num_levels", num_levels, 2, ", such as 256 for 8 bits")


def dequantize(images: torch.Tensor, num_levels: int = 256, generator: Generators = None) -> torch.Tensor:
    """Replace each pixel by a random point of its bin.

    Args:
        images: (B, *), in [-1, 1], each pixel at one of the levels.
        num_levels: L, 256 for images of 8 bits.
        generator: one generator, or a list of B of them.

    Returns:
        (B, *), in the dtype of `images`, but at least float32, since a point of half precision would not be uniform.

    Raises:
        ValueError: if `num_levels` is not a whole number ≥ 2, or a pixel is not at one of the levels.

    Examples:
        >>> x = dequantize(torch.tensor([[-1.0, 1.0]]), 3, torch.Generator().manual_seed(0))
        >>> bool(((x - torch.tensor([[-1.0, 1.0]])).abs() <= 0.5).all())
        True
    """
    check_num_levels(num_levels)
    images = at_least_float32(images)
    position = (images + 1) * ((num_levels - 1) / 2)
    levels = position.round()
    distance = (position - levels).abs().max()
    if not (distance <= OFF_LEVEL and levels.min() >= 0 and levels.max() <= num_levels - 1):
        raise ValueError(
            f"`images` must be in [-1, 1] with each pixel at one of `num_levels` = {num_levels} equal levels, but span "
            f"{float(images.min()):.4g} to {float(images.max()):.4g}, and a pixel is {float(distance):.2g} of a "
            "level away from the nearest. Pass their number of levels, or `num_levels=None` for densities."
        )
    uniform = draw(torch.rand, tuple(images.shape), generator, images.device).to(images.dtype)
    return (levels + uniform - 0.5) * (2 / (num_levels - 1)) - 1


def bits_per_dim(log_prob: torch.Tensor, dim: int, num_levels: int = 256) -> torch.Tensor:
    """Return the bits per dimension of images in [-1, 1] from the log-densities of their dequantized points.

    Args:
        log_prob: (B,), log-densities of points from `dequantize`, in nats.
        dim: N, the number of dimensions of an image.
        num_levels: L.

    Returns:
        (B,), in bits/dim.

    Raises:
        ValueError: if `num_levels` is not a whole number ≥ 2.

    Examples:
        >>> bits_per_dim(torch.tensor([-64 * math.log(2.0)]), 64)  # uniform on [-1, 1], 255 widths of a bin
        tensor([7.9944])
    """
    check_num_levels(num_levels)
    return -(log_prob / dim + math.log(2 / (num_levels - 1))) / math.log(2)
