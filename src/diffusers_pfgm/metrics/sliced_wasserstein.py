"""The sliced Wasserstein distance between samples and data."""

from __future__ import annotations

import torch

from ..utils.extras import require_extra


def sliced_wasserstein(samples: torch.Tensor, data: torch.Tensor, num_projections: int = 500, seed: int = 0) -> float:
    """Return the sliced Wasserstein-2 distance between two sets of points, in data units.

    The distance between two finite sets from the same distribution is not 0. Compare it with the distance between two
    sets of real data of the same sizes.

    Args:
        samples: (K, *), K points.
        data: (L, *), L points with the same number of elements.
        num_projections: the number of random directions.
        seed: the seed for drawing the directions.

    Raises:
        ModuleNotFoundError: if POT is not installed. The extra `training` installs it.
        ValueError: if one of the sets is empty, or their points have different numbers of elements.

    Reference:
        Bonneel et al., Sliced and Radon Wasserstein barycenters of measures, 2015; computed by POT.
    """
    require_extra("training", "ot")
    import ot

    for name, points in (("samples", samples), ("data", data)):
        if not len(points):
            raise ValueError(f"`{name}` must be at least one point, but is empty.")
    first, second = (points.detach().flatten(1).cpu().double().numpy() for points in (samples, data))
    return float(ot.sliced_wasserstein_distance(first, second, n_projections=num_projections, seed=seed))
