"""The Fréchet distance between generated and real images, in the features of a network."""

from __future__ import annotations

import torch

from ..utils.extras import require_extra

BATCH_SIZE = 500  # images whose features are computed at a time


class FrechetDistance:
    """The Fréchet distance of samples to data: that of two normal distributions with their features' moments.

    Args:
        features: a network from images (B, C, H, W) to features (B, F).
        data: real images (K, C, H, W), in the range that the network expects.

    Raises:
        ModuleNotFoundError: if torchmetrics is not installed. The extra `examples` installs it.

    Reference:
        Heusel et al., GANs trained by a two time-scale update rule converge to a local Nash equilibrium, 2017
        (arXiv 1706.08500), with another network in the place of Inception; computed by torchmetrics.

    Examples:
        >>> points = torch.randn(1000, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        >>> round(FrechetDistance(torch.nn.Flatten(), points)(points + 0.5), 3)
        1.0
    """

    def __init__(self, features: torch.nn.Module, data: torch.Tensor) -> None:
        require_extra("examples", "torchmetrics")
        from torchmetrics.image.fid import FrechetInceptionDistance

        _, channels, height, width = data.shape
        self._metric = FrechetInceptionDistance(
            features, reset_real_features=False, normalize=True, input_img_size=(channels, height, width)
        ).to(data.device)
        self._update(data, real=True)

    def __call__(self, samples: torch.Tensor) -> float:
        """Return the distance of samples (L, C, H, W) to the data."""
        self._metric.reset()
        self._update(samples, real=False)
        return float(self._metric.compute())

    @torch.no_grad()
    def _update(self, images: torch.Tensor, real: bool) -> None:
        for batch in images.split(BATCH_SIZE):
            self._metric.update(batch, real=real)
