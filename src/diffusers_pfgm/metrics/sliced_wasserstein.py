"""The sliced Wasserstein distance between samples and data."""

from __future__ import annotations

import torch

from ..utils.extras import require_extra
from .point_sets import checked_points


def sliced_wasserstein(samples: torch.Tensor, data: torch.Tensor, num_projections: int = 500, seed: int = 0) -> float:
    """Return the sliced Wasserstein-2 distance between two sets of points, in data units.

    The distance between two finite sets from the same distribution is not 0. Compare it with the distance between two
    sets of real data of the same sizes.

    Args:
        samples: (K, *), K points.
        data: (L, *), L points with the same number of elements.
        num_projections: the number of random directions. Defaults to 500.
        seed: the seed for drawing the directions. Defaults to 0.

    Raises:
        ModuleNotFoundError: if POT is not installed. The extra `training` installs it.
        ValueError: if one of the sets is empty or contains NaN or infinity, or their numbers of elements differ.

    Reference:
        Bonneel et al., Sliced and Radon Wasserstein barycenters of measures, 2015; computed by POT.
    """
    require_extra("training", "ot")
    import ot

    sets = checked_points(samples=samples, data=data)
    first, second = (points.flatten(1).cpu().double().numpy() for points in sets)
    return float(ot.sliced_wasserstein_distance(first, second, n_projections=num_projections, seed=seed))
