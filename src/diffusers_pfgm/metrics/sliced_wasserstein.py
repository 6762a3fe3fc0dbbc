"""How close samples are to data, and how they look."""

from __future__ import annotations

import torch

from ..utils.extras import require_extra


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
