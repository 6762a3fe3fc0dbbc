"""The kernel inception distance between two sets of features."""

from __future__ import annotations

import warnings

import torch

from ..utils.extras import require_extra
from .point_sets import checked_points

MAX_SUBSET_SIZE = 1000


def kernel_distance(samples: torch.Tensor, data: torch.Tensor, seed: int = 0) -> tuple[float, float]:
    """Return the kernel inception distance of samples to data, and its standard deviation over 100 subsets.

    It is the squared maximum mean discrepancy with the kernel (x·y / F + 1)³, without bias at any number of images, and
    the mean over 100 random subsets of at most 1,000 images.

    Args:
        samples: features (K, F).
        data: features (L, F) of the same network.
        seed: the seed for drawing the subsets.

    Raises:
        ModuleNotFoundError: if torchmetrics is not installed. The extra `evaluation` installs it.
        ValueError: if one of the sets has fewer than 3 images or contains NaN or infinity, or their numbers of features
            differ.

    Reference:
        Bińkowski et al., Demystifying MMD GANs, 2018 (arXiv 1801.01401); computed by torchmetrics.
    """
    require_extra("evaluation", "torchmetrics")
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(len(samples), len(data), MAX_SUBSET_SIZE + 1) - 1  # torchmetrics needs more images than a subset has
    if size < 2:
        raise ValueError(
            f"The kernel distance needs at least 3 samples and 3 images of the data, but there are {len(samples)} and "
            f"{len(data)}. Pass more."
        )
    samples, data = checked_points(samples=samples, data=data)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # torchmetrics warns that it keeps all features in memory
        # One process computes the metric, so it must not wait for features of others.
        metric = KernelInceptionDistance(torch.nn.Identity(), subset_size=size, sync_on_compute=False)
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would also seed the GPUs
        metric.update(data.cpu(), real=True)
        metric.update(samples.cpu(), real=False)
        mean, deviation = metric.compute()
    return mean.item(), deviation.item()
