"""The Fréchet distance between two sets of images, in the features of a network."""

from __future__ import annotations

import torch

from .feature_statistics import FeatureStatistics

BATCH_SIZE = 500  # images whose features are computed at a time


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """Return the squared Fréchet distance ‖m − m'‖² + tr(C + C' − 2 (C C')^½) of two normal distributions.

    With the features of Inception this is the FID. The trace of the root is computed from the eigenvalues of the
    symmetric matrix C^½ C' C^½, which are those of C C'.

    Raises:
        ValueError: if the statistics are of different networks.

    Reference:
        Heusel et al., GANs trained by a two time-scale update rule converge to a local Nash equilibrium, 2017
        (arXiv 1706.08500).

    Examples:
        >>> first, second = (FeatureStatistics(torch.full((2,), m), torch.eye(2)) for m in (0.0, 3.0))
        >>> frechet_distance(first, second)
        18.0
    """
    names = {each.network for each in (first, second)} - {None}
    if len(names) > 1 or first.mean.shape != second.mean.shape:
        described = [f"{len(each.mean)} features of {each.network or 'an unknown network'}" for each in (first, second)]
        raise ValueError(f"Only features of one network can be compared, but these are {' and '.join(described)}.")
    values, vectors = torch.linalg.eigh(first.covariance.double())
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    common = torch.linalg.eigvalsh(root @ second.covariance.double() @ root).clamp_min(0).sqrt().sum()
    traces = first.covariance.trace() + second.covariance.trace()
    return float((first.mean - second.mean).double().square().sum() + traces - 2 * common)


class FrechetDistance:
    """The Fréchet distance of samples to data: that of two normal distributions with their features' moments.

    Args:
        features: a network in evaluation mode from images (B, C, H, W) to features (B, F), or to a tuple that begins
            with them, such as one of `load_feature_network`. It stays on its device.
        data: real images (K, C, H, W), K ≥ 2, in the range and on the device that the network expects.

    Raises:
        ValueError: if there are fewer than two images, or they contain NaN or infinity.

    Reference:
        Heusel et al., GANs trained by a two time-scale update rule converge to a local Nash equilibrium, 2017
        (arXiv 1706.08500), with another network in the place of Inception.

    Examples:
        >>> points = torch.randn(1000, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        >>> round(FrechetDistance(torch.nn.Flatten(), points)(points + 0.5), 3)
        1.0
    """

    def __init__(self, features: torch.nn.Module, data: torch.Tensor) -> None:
        self.features = features
        self._data = self._statistics("data", data)

    def __call__(self, samples: torch.Tensor) -> float:
        """Return the distance of samples (L, C, H, W), L ≥ 2, to the data.

        Raises:
            ValueError: if there are fewer than two samples, or they contain NaN or infinity.
        """
        return frechet_distance(self._data, self._statistics("samples", samples))

    @torch.no_grad()
    def _statistics(self, name: str, images: torch.Tensor) -> FeatureStatistics:
        if len(images) < 2:
            raise ValueError(f"`{name}` must be at least 2 images, whose covariance is needed, but are {len(images)}.")
        if not images.isfinite().all():
            raise ValueError(f"`{name}` must be finite, but contains NaN or infinity. Leave such images out.")
        outputs = [self.features(batch) for batch in images.split(BATCH_SIZE)]
        features = [output[0] if isinstance(output, tuple) else output for output in outputs]
        return FeatureStatistics.of_features(torch.cat(features).cpu())
