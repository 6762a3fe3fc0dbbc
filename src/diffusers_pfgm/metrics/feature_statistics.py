"""Mean and covariance of a network's features over a set of images, and their files."""

from __future__ import annotations

import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..utils.atomic_file import atomic_file

MNIST_STATISTICS = Path(__file__).with_name("mnist_statistics.npz")


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean and covariance of features, as in the files of EDM, pytorch-fid and clean-fid.

    Attributes:
        mean: (F,), float64.
        covariance: (F, F), float64.
        count: the number of images; None if the file does not say.
        network: the name of the feature network; None if the file does not say.
        images: a fingerprint of the images and of the network's weights; None if the file does not say.
        features: (K, F), the features from which the moments were computed; None if the file has only the moments.
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    count: int | None = None
    network: str | None = None
    images: str | None = None
    features: torch.Tensor | None = None

    @classmethod
    def of_features(
        cls, features: torch.Tensor, network: str | None = None, images: str | None = None
    ) -> FeatureStatistics:
        """Compute the moments of features (K, F).

        If K ≤ F the covariance does not have full rank, and Fréchet distances are biased. A warning then says so.

        Args:
            features: (K, F), the features of K ≥ 2 images.
            network: the name of the feature network; None if it is unknown.
            images: a fingerprint of the images and of the network's weights; None if it is unknown.

        Raises:
            ValueError: if `features` has another shape, there are fewer than two images, or a feature is not finite.
        """
        if features.ndim != 2:
            raise ValueError(f"`features` must have the shape (K, F), but have {tuple(features.shape)}. Flatten them.")
        features = features.detach()
        count, dim = features.shape
        if count < 2:
            raise ValueError(f"A covariance needs at least 2 images, but there are {count}. Pass {dim + 1:,} or more.")
        if not features.isfinite().all():
            raise ValueError("The features of the images contain NaN or infinity. Leave such images out.")
        if count <= dim:
            warnings.warn(
                f"The covariance of {dim:,} features of {count:,} images does not have full rank, so the Fréchet "
                f"distance is biased. Pass at least {dim + 1:,} images.",
                stacklevel=2,
            )
        values = features.cpu().double()
        return cls(values.mean(0), values.T.cov().reshape(dim, dim), count, network, images, features.cpu().float())

    @classmethod
    def load(cls, path: str | Path) -> FeatureStatistics:
        """Load an `.npz` file with `mu` and `sigma`, and with the other attributes if `save` wrote it.

        Raises:
            ValueError: if the file cannot be read, or has no finite moments of matching shapes.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                content = {name: file[name] for name in file.files}
            mean, covariance = (torch.from_numpy(content[name]).double() for name in ("mu", "sigma"))
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f"{path} holds no feature statistics: {error}. It must be an .npz file with `mu` (F,) and `sigma` "
                "(F, F), like the files of EDM, pytorch-fid and clean-fid."
            ) from error
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise ValueError(
                f"{path} has `mu` of shape {tuple(mean.shape)} and `sigma` of shape {tuple(covariance.shape)}, but "
                "they must be (F,) and (F, F)."
            )
        if not (mean.isfinite().all() and covariance.isfinite().all()):
            raise ValueError(f"{path} contains NaN or infinity. Compute the statistics again.")
        count = int(content["count"]) if "count" in content else None
        network, images = (str(content[name]) if name in content else None for name in ("network", "images"))
        features = torch.from_numpy(content["features"]) if "features" in content else None
        return cls(mean, covariance, count, network, images, features)

    def save(self, path: str | Path) -> None:
        """Write an `.npz` file, whose `mu` and `sigma` other evaluation codes read too."""
        arrays = {"mu": self.mean.numpy(), "sigma": self.covariance.numpy()}
        for name in ("count", "network", "images", "features"):
            value = getattr(self, name)
            if value is not None:
                arrays[name] = np.asarray(value)
        with atomic_file(Path(path)) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]


def mnist_statistics() -> FeatureStatistics:
    """Return the statistics of the feature network "mnist" on MNIST's 10,000 test images, in the precision of float32.

    `pipelines_examples/data/train_mnist_classifier.py` computed them. They make a Fréchet distance possible without
    MNIST's images.

    Examples:
        >>> statistics = mnist_statistics()
        >>> statistics.network, statistics.count, statistics.mean.shape
        ('mnist', 10000, torch.Size([128]))
    """
    return FeatureStatistics.load(MNIST_STATISTICS)
