"""The inception score of a set of images, from the classes that a network assigns to them."""

from __future__ import annotations

import warnings

import torch

from ..utils.extras import require_extra
from .point_sets import checked_points

SPLITS = 10
LEAST_LOG_PROB = -80.0  # limit of the logarithms of probabilities; smaller ones do not change a sum in float32


def inception_score(logits: torch.Tensor, seed: int = 0) -> tuple[float, float]:
    """Return the inception score exp E[KL(p(y | x) ‖ p(y))], and its standard deviation over 10 parts of the images.

    It is between 1 and the number of classes, and large if each image clearly has one class and all classes occur.

    Args:
        logits: (K, number of classes), K ≥ 10.
        seed: the seed for shuffling the images before they are divided.

    Raises:
        ModuleNotFoundError: if torchmetrics is not installed. The extra `evaluation` installs it.
        ValueError: if there are fewer than 10 images, or `logits` contains NaN or infinity.

    Reference:
        Salimans et al., Improved techniques for training GANs, 2016 (arXiv 1606.03498); computed by torchmetrics.
    """
    require_extra("evaluation", "torchmetrics")
    from torchmetrics.image.inception import InceptionScore

    if len(logits) < SPLITS:
        raise ValueError(f"The inception score needs at least {SPLITS} images, but there are {len(logits)}. Pass more.")
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # torchmetrics warns that it keeps all logits in memory
        # One process computes the metric, so it must not wait for features of others.
        metric = InceptionScore(torch.nn.Identity(), splits=SPLITS, sync_on_compute=False)
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would also seed the GPUs
        # A probability that underflows to 0 for all images of a part would give 0 · log 0.
        metric.update(checked_points(logits=logits)[0].log_softmax(1).clamp(min=LEAST_LOG_PROB).cpu())
        mean, deviation = metric.compute()
    return mean.item(), deviation.item()
