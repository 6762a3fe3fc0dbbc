"""The metrics of a set of images against reference images and training images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ...metrics.feature_statistics import FeatureStatistics
from ...metrics.frechet_distance import frechet_distance
from ...metrics.inception_score import inception_score
from ...metrics.kernel_distance import kernel_distance
from ...metrics.nearest_neighbors import nearest_distances
from ...metrics.precision_recall import precision_recall
from ...metrics.sliced_wasserstein import sliced_wasserstein
from ..data.order import evenly_spaced
from .model_checksum import weights_checksum

BATCH_SIZE = 100  # the number of images whose features are computed at a time
MAX_COMPARED = 10_000  # the largest number of images whose distances to each other are computed
MAX_BYTES = 2**31  # the largest memory of these images in float64
# A sample is a near copy if its distance to the nearest training image is below this quantile of the distances of the
# reference images.
NEAR = 0.01


def to_float(pixels: torch.Tensor) -> torch.Tensor:
    """Convert images from uint8 to floats in [-1, 1]."""
    return pixels.float() / 127.5 - 1


@torch.no_grad()
def compute_features(
    network: torch.nn.Module, pixels: torch.Tensor, device: torch.device, description: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the features (K, F) and, if the network is a classifier, the logits of images (K, C, H, W) in uint8."""
    network.to(device)
    batches = tqdm(pixels.split(BATCH_SIZE), desc=description, leave=False)
    features, logits = zip(*(network(to_float(batch.to(device))) for batch in batches), strict=True)
    return torch.cat(features).cpu(), None if logits[0] is None else torch.cat(logits).cpu()


def reference_statistics(
    network: torch.nn.Module, name: str, reference: torch.Tensor, device: torch.device, cache: Path
) -> FeatureStatistics:
    """Return the statistics of reference images, read from a file if it has those of the same images and network.

    Args:
        network: the feature network.
        name: the name of the feature network.
        reference: the images (K, C, H, W) in uint8.
        device: the device on which features are computed.
        cache: the file. It is written if it is missing, or has statistics of other images or of a network with another
            name or other weights.
    """
    images = f"{hashlib.sha256(reference.numpy().tobytes()).hexdigest()[:16]}-{weights_checksum(network):08x}"
    if cache.exists():
        statistics = FeatureStatistics.load(cache)
        if (statistics.network, statistics.images) == (name, images):
            return statistics
    features, _ = compute_features(network, reference, device, f"Features {name} of the reference")
    statistics = FeatureStatistics.of_features(features, name, images)
    statistics.save(cache)
    return statistics


def compare_features(
    features: torch.Tensor, logits: torch.Tensor | None, reference: FeatureStatistics, network: str
) -> dict[str, float]:
    """Return the metrics that compare features: Fréchet and kernel distance, precision, recall, inception score.

    Args:
        features: (K, F), the features of the evaluated images.
        logits: (K, number of classes), their logits; None leaves out the inception score.
        reference: the statistics of the reference images. Without their features only the Fréchet distance is computed.
        network: the name of the network.
    """
    metrics = {"frechet_distance": frechet_distance(FeatureStatistics.of_features(features, network), reference)}
    if reference.features is not None:
        mean, deviation = kernel_distance(features, reference.features)
        metrics |= {"kernel_distance": mean, "kernel_distance_std": deviation}
        count = min(len(features), len(reference.features), MAX_COMPARED)
        metrics["precision"], metrics["recall"] = precision_recall(
            features[_evaluated_rows(len(features), count)], _subset(reference.features, count)
        )
    if logits is not None:
        metrics["inception_score"], metrics["inception_score_std"] = inception_score(logits)
    return metrics


def compare_pixels(pixels: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the sliced Wasserstein distance of equally many images of both sets (K, C, H, W) in uint8."""
    count = _count_compared(pixels, reference)
    rows = _evaluated_rows(len(pixels), count)
    return sliced_wasserstein(to_float(pixels[rows]), to_float(_subset(reference, count)))


def find_memorized(pixels: torch.Tensor, reference: torch.Tensor, train: torch.Tensor) -> Mapping[str, Any]:
    """Compare the distances of samples and of reference images to their nearest training image.

    Args:
        pixels: the evaluated images (K, C, H, W) in uint8.
        reference: images (L, C, H, W) that are not in the training data.
        train: the training images (M, C, H, W).

    Returns:
        The mean distances in data units; the share of near copies, which is about 0.01 without memorization: the share
        of samples that are closer to a training image than 99 % of the reference images are; and the ten samples that
        are closest to a training image, each with the index of that image and the distance.
    """
    count = _count_compared(pixels, reference)
    rows = _evaluated_rows(len(pixels), count)
    distances, indices = _nearest(pixels[rows], train, count)
    expected, _ = _nearest(_subset(reference, count), train, count)
    nearest = distances.argsort()[:10]
    return {
        "mean_distance": distances.mean().item(),
        "mean_distance_of_reference": expected.mean().item(),
        "share_of_near_copies": (distances < expected.quantile(NEAR)).double().mean().item(),
        "nearest": [
            {"image": int(rows[row]), "train_image": int(indices[row]), "distance": distances[row].item()}
            for row in nearest.tolist()
        ],
    }


def _count_compared(pixels: torch.Tensor, reference: torch.Tensor) -> int:
    """How many images of both sets are compared: as many as both have, and as fit into the memory for them."""
    fitting = max(1, MAX_BYTES // (8 * pixels[0].numel()))
    return min(len(pixels), len(reference), MAX_COMPARED, fitting)


def _nearest(pixels: torch.Tensor, train: torch.Tensor, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The distance of each image to its nearest training image, and that one's index, for images in uint8."""
    images = to_float(pixels)
    distances, indices = nearest_distances(images, to_float(train[:batch_size]))
    for first in range(batch_size, len(train), batch_size):
        others, rows = nearest_distances(images, to_float(train[first : first + batch_size]))
        indices = torch.where(others < distances, rows + first, indices)
        distances = torch.minimum(distances, others)
    return distances, indices


def _evaluated_rows(length: int, count: int) -> torch.Tensor:
    """Return `count` rows of the evaluated images, drawn from a fixed seed.

    The classes of generated images alternate, so that evenly spaced images would not have all classes equally often.
    """
    return torch.randperm(length, generator=torch.Generator().manual_seed(0))[:count].sort().values


def _subset(values: torch.Tensor, count: int) -> torch.Tensor:
    """Return `count` evenly spaced rows."""
    return values[evenly_spaced(len(values), count)]
