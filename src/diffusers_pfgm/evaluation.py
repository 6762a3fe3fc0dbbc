"""How close samples are to data, and how they look."""

from __future__ import annotations

import math

import torch
from diffusers.utils import make_image_grid
from PIL import Image

from .extras import require_extra
from .pipeline_outputs import numpy_to_pil


def sliced_wasserstein(samples: torch.Tensor, data: torch.Tensor, num_projections: int = 500, seed: int = 0) -> float:
    """Sliced Wasserstein-2 distance between two sets of points, in data units.

    Two finite sets of one distribution are not at distance 0: compare with two sets of real data of the same sizes.

    Args:
        samples: (K, *).
        data: (L, *), with as many elements each.
        num_projections: number of random directions.
        seed: of the directions.

    Raises:
        ModuleNotFoundError: without POT, which the extra `training` brings.

    Reference:
        Bonneel et al., Sliced and Radon Wasserstein barycenters of measures, 2015; computed by POT.
    """
    require_extra("training", "ot")
    import ot

    first, second = (points.flatten(1).cpu().double().numpy() for points in (samples, data))
    return float(ot.sliced_wasserstein_distance(first, second, n_projections=num_projections, seed=seed))


def image_grid(images: torch.Tensor, scale: int = 1, columns: int | None = None) -> Image.Image:
    """One picture of many, with white lines between them.

    Args:
        images: (B, C, H, W) in [0, 1], C = 1, 3 or 4, as a pipeline returns for output_type "pt".
        scale: pixels of the picture per pixel of an image.
        columns: images per row, as square as can be by default; empty places stay black.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    blanks = images.new_zeros(rows * columns - len(images), *images.shape[1:])
    pixels = torch.cat([images, blanks]).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    pixels = torch.nn.functional.pad(pixels, (2, 2, 2, 2), value=1.0)
    pictures = numpy_to_pil(pixels.permute(0, 2, 3, 1).float().cpu().numpy())
    return make_image_grid(pictures, rows, columns).convert(pictures[0].mode)
