"""Precision and recall of a set of samples: the share of good samples, and the share of the data that they cover."""

from __future__ import annotations

import torch

from ..utils.checks import check_whole_number
from .point_sets import checked_points

BATCH_SIZE = 1000  # the number of rows of a matrix of distances
NEIGHBORS = 3  # k of the paper


def precision_recall(samples: torch.Tensor, data: torch.Tensor, neighbors: int = NEIGHBORS) -> tuple[float, float]:
    """Return the improved precision and recall of samples.

    The support of each set is estimated by the union of balls around its points, each as large as the distance to the
    point's k-th nearest neighbour in the set. Precision is the share of samples in the support of the data, recall the
    share of the data in the support of the samples.

    Args:
        samples: features (K, F).
        data: features (L, F) of the same network. Both depend on K and L, so compare sets of equal sizes.
        neighbors: k ≥ 1, at most K − 1 and L − 1.

    Raises:
        ValueError: if k is not a whole number ≥ 1, one of the sets has at most k points or contains NaN or infinity, or
            their numbers of features differ.

    Reference:
        Kynkäänniemi et al., Improved precision and recall metric for assessing generative models, 2019
        (arXiv 1904.06991).

    Examples:
        >>> data = torch.arange(10.0)[:, None]
        >>> precision_recall(data[:5], data, neighbors=1)
        (1.0, 0.6)
    """
    neighbors = check_whole_number("neighbors", neighbors, 1)
    if min(len(samples), len(data)) <= neighbors:
        raise ValueError(
            f"Precision and recall with {neighbors} neighbours need more than {neighbors} samples and images of the "
            f"data, but there are {len(samples)} and {len(data)}. Pass more."
        )
    samples, data = checked_points(samples=samples, data=data)
    mean = data.mean(0)  # far from 0 the matrix product of `cdist` would cancel
    samples, data = samples - mean, data - mean
    return _covered(samples, data, neighbors), _covered(data, samples, neighbors)


def _covered(points: torch.Tensor, others: torch.Tensor, neighbors: int) -> float:
    """The share of points that are in a ball around one of the others."""
    radii = [torch.cdist(part, others).kthvalue(neighbors + 1).values for part in others.split(BATCH_SIZE)]
    limits = torch.cat(radii)
    covered = [(torch.cdist(part, others) <= limits).any(1) for part in points.split(BATCH_SIZE)]
    return torch.cat(covered).double().mean().item()
