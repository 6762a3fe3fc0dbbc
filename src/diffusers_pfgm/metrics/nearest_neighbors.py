"""Distances to the nearest training image, which detect memorized samples."""

from __future__ import annotations

import torch

from .point_sets import checked_points

BATCH_SIZE = 200  # the number of rows of a matrix of distances


def nearest_distances(images: torch.Tensor, train_images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the Euclidean distance of each image to its nearest training image, in data units, and the index of it.

    Compare the distances of samples with those of held-out images: samples of a model that memorizes are closer.

    Args:
        images: (K, *).
        train_images: (L, *) with the same number of elements.

    Returns:
        Distances (K,) and indices (K,).

    Raises:
        ValueError: if one of the sets is empty or contains NaN or infinity, or their numbers of elements differ.

    Examples:
        >>> nearest_distances(torch.tensor([[0.0], [9.0]]), torch.tensor([[1.0], [7.0]]))
        (tensor([1., 2.]), tensor([0, 1]))
    """
    images, train_images = (points.flatten(1) for points in checked_points(images=images, train_images=train_images))
    mean = train_images.mean(0)  # far from 0 the matrix product of `cdist` would cancel
    centred = train_images - mean
    parts = [torch.cdist(part - mean, centred).argmin(1) for part in images.split(BATCH_SIZE)]
    indices = torch.cat(parts)
    return (images - train_images[indices]).norm(dim=1), indices
