r"""From the density of a flow to the likelihood of pictures in whole levels.

A pixel of L levels k = 0, ..., L − 1 stands in [−1, 1] at 2k/(L − 1) − 1, as networks are trained. Its probability is
that of a bin of width w = 2/(L − 1) around it. Uniform dequantisation draws one point of it; by Jensen's inequality

    log P(k) ≥ E_u [log p(x(k + u))] + N log w,        u uniform on [−1/2, 1/2)^N,

and −log₂ of it per dimension is the figure in bits/dim that papers compare (arXiv 1511.01844, section 3.1).
"""

from __future__ import annotations

import math

import torch

from ..physics.tensors import Generators, draw
from ..utils.checks import check_whole_number

OFF_LEVEL = 0.02  # of a level: rounding of pictures that were kept as floats


def check_num_levels(num_levels: int) -> None:
    """Raise a ValueError unless there are two levels or more."""
    check_whole_number("num_levels", num_levels, 2, ", such as 256 for 8 bits")


def dequantize(images: torch.Tensor, num_levels: int = 256, generator: Generators = None) -> torch.Tensor:
    """One point of each pixel's bin.

    Args:
        images: (B, *), in [-1, 1], each pixel at one of the levels.
        levels: L, 256 for pictures of 8 bits.
        generator: one generator, or a list of B of them.

    Raises:
        ValueError: if a pixel lies between two levels, or outside of them.

    Example:
        >>> x = dequantize(torch.tensor([[-1.0, 1.0]]), 3, torch.Generator().manual_seed(0))
        >>> bool(((x - torch.tensor([[-1.0, 1.0]])).abs() <= 0.5).all())
        True
    """
    check_num_levels(num_levels)
    position = (images + 1) * ((num_levels - 1) / 2)
    level = position.round()
    off = (position - level).abs().max()
    if off > OFF_LEVEL or level.min() < 0 or level.max() > num_levels - 1:
        raise ValueError(
            f"`images` must be in [-1, 1] with each pixel at one of `num_levels` = {num_levels} equal levels, but span "
            f"{float(images.min()):.4g} to {float(images.max()):.4g}, and a pixel is {float(off):.2g} of a level away "
            "from the nearest. Pass the number of levels that they have, or `num_levels=None` for densities."
        )
    uniform = draw(torch.rand, tuple(images.shape), generator, images.device).to(images.dtype)
    return (level + uniform - 0.5) * (2 / (num_levels - 1)) - 1


def bits_per_dim(log_prob: torch.Tensor, dim: int, num_levels: int = 256) -> torch.Tensor:
    """Bits per dimension of pictures in [-1, 1] from the log-density of a dequantised point, in nats.

    Args:
        log_prob: (B,), in nats, of points from `dequantize`.
        dim: N.
        levels: L.

    Example:
        >>> bits_per_dim(torch.tensor([-64 * math.log(2.0)]), 64)  # a uniform density on [-1, 1]: 8 bits, and the edges
        tensor([7.9944])
    """
    check_num_levels(num_levels)
    return -(log_prob / dim + math.log(2 / (num_levels - 1))) / math.log(2)
