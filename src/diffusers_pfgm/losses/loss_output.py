"""The output of the training objectives, and random dropping of class labels for classifier-free guidance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ..physics.tensors import Generators, draw

BAND_EDGES = (0.01, 0.1, 1.0, 10.0)  # edges of the bands of σ, in data units


@dataclass
class LossOutput:
    """The loss of a batch and of each of its samples.

    Attributes:
        loss: mean loss of the batch, (), with its graph for `backward`.
        per_sample: loss of each sample, (B,), detached.
        sigma: noise level σ of each sample, (B,), in data units.
        parts: the terms of `per_sample` by name, each (B,), detached; empty if it has only one.
    """

    loss: torch.Tensor
    per_sample: torch.Tensor
    sigma: torch.Tensor
    parts: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def bands(self) -> dict[str, float]:
        """Return the mean loss in each band of σ that has samples, such as {"loss/sigma_0.1_1.0": 0.02}.

        This synchronizes with the device, so call it only for logging.
        """
        index = torch.bucketize(self.sigma.float().cpu(), torch.tensor(BAND_EDGES, device="cpu"))
        losses = self.per_sample.float().cpu()
        edges = ("0", *map(str, BAND_EDGES), "inf")
        return {
            f"loss/sigma_{edges[band]}_{edges[band + 1]}": losses[index == band].mean().item()
            for band in index.unique().tolist()
        }


def drop_labels(
    class_labels: torch.Tensor, probability: float, null_label: int, generator: Generators = None
) -> torch.Tensor:
    """Replace labels by the null class at random.

    Args:
        class_labels: (B,).
        probability: probability that a label is replaced.
        null_label: label of the null class.
        generator: one generator, or a list of B of them.

    Returns:
        A copy of the labels (B,).

    Raises:
        ValueError: if `probability` is not from 0 to 1.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"`probability` must be a number from 0 to 1, but is {probability}.")
    drops = draw(torch.rand, tuple(class_labels.shape), generator, class_labels.device) < probability
    return class_labels.masked_fill(drops, null_label)


def mean_squares(error: torch.Tensor, sigma: torch.Tensor) -> LossOutput:
    """Return the mean squares of an error (B, *) at noise levels σ (B,) as a loss."""
    per_sample = error.flatten(1).square().mean(1)
    return LossOutput(per_sample.mean(), per_sample.detach(), sigma)
