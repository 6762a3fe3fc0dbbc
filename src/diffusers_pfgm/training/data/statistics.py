"""Statistics of training images, from which the hyperparameters of the objectives follow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class DataStatistics:
    """Statistics of images with N numbers each, in data units.

    Attributes:
        mean_norm: mean of the Euclidean norms ‖y‖.
        mean: μ, mean of all numbers.
        std: σ_d, root mean square deviation of all numbers from μ.
        mean_square_std: √V, standard deviation of ‖y − μ‖²/N over the images.

    Examples:
        >>> DataStatistics.of_images([torch.tensor([[4.0, -3.0]]), torch.tensor([[0.0, 3.0]])])
        DataStatistics(mean_norm=4.0, mean=1.0, std=2.7386127875258306, mean_square_std=5.0)
    """

    mean_norm: float
    mean: float
    std: float
    mean_square_std: float

    @classmethod
    def of_images(cls, batches: Iterable[torch.Tensor]) -> DataStatistics:
        """Compute the statistics from batches (B, *) of images.

        Args:
            batches: at least one batch. They are read once, so that few images need be in memory.
        """
        rows = []
        size = 0
        for batch in batches:
            flat = batch.flatten(1).double()
            size = flat.shape[1]
            rows.append((flat.mean(1), flat.square().mean(1)))
        means, squares = (torch.cat(column) for column in zip(*rows, strict=True))
        mean = means.mean()
        deviations = squares - 2 * mean * means + mean.square()  # ‖y − μ‖²/N of each image
        return cls(
            mean_norm=(size * squares).sqrt().mean().item(),
            mean=mean.item(),
            std=deviations.mean().sqrt().item(),
            mean_square_std=deviations.std(correction=0).item(),
        )
