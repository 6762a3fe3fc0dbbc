"""The squared Fréchet distance between two sets of images, in the features of a network.

As usual for the FID, "Fréchet distance" means the squared distance.
"""

from __future__ import annotations

import torch

from .feature_statistics import FeatureStatistics

BATCH_SIZE = 500  # the number of images whose features are computed at a time


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """Return the squared Fréchet distance ‖m − m'‖² + tr(C + C' − 2 (C C')^½) of two normal distributions.

    These are the normal distributions with the means m, m' and the covariances C, C' of two sets of features. With the
    features of Inception the distance is the FID. The symmetric matrix C^½ C' C^½ has the eigenvalues of C C', from
    which the trace of the root is computed.

    Args:
        first: the statistics of one set of images.
        second: the statistics of the other set, by the same network. The order of the two does not matter.

    Raises:
        ValueError: if the statistics have different networks or different numbers of features.

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
    """The squared Fréchet distance of samples to data, in the features of a network.

    The features of the samples and those of the data are each described by the normal distribution with their mean and
    covariance. The distance between these two distributions is returned, see `frechet_distance`.

    Args:
        features: a network in evaluation mode from images (B, C, H, W) to features (B, F), or to a tuple that begins
            with the features, such as a network from `load_feature_network`. It stays on its device.
        data: real images (K, C, H, W), K ≥ 2, in the range and on the device that the network expects.

    Raises:
        ValueError: if there are fewer than two images, or they contain NaN or infinity.

    Examples:
        >>> points = torch.randn(1000, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        >>> round(FrechetDistance(torch.nn.Flatten(), points)(points + 0.5), 3)
        1.0
    """

    def __init__(self, features: torch.nn.Module, data: torch.Tensor) -> None:
        self.features = features
        self._data = self._statistics("data", data)

    def __call__(self, samples: torch.Tensor) -> float:
        """Return the squared Fréchet distance of samples to the data.

        Args:
            samples: (L, C, H, W), L ≥ 2, in the range and on the device that the network expects.

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
