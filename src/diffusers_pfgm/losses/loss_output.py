"""What every objective returns, and the random dropping of class labels for classifier-free guidance."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..physics.tensors import Generators, draw

BAND_EDGES = (0.01, 0.1, 1.0, 10.0)  # of σ, in data units: a factor of ten each


@dataclass
class LossOutput:
    """A loss, and what there is to log about it.

    Attributes:
        loss: (), the batch's mean, to call `backward` on.
        per_sample: (B,), detached.
        sigma: (B,), the height of each sample, in data units.
    """

    loss: torch.Tensor
    per_sample: torch.Tensor
    sigma: torch.Tensor

    def bands(self) -> dict[str, float]:
        """Mean loss by band of σ, such as {"loss/sigma_0.1_1": 0.02}; bands without a sample are left out.

        Reads from the device, so call it only when you log.
        """
        index = torch.bucketize(self.sigma.float().cpu(), torch.tensor(BAND_EDGES))
        losses, edges = self.per_sample.float().cpu(), ("0", *map(str, BAND_EDGES), "inf")
        return {
            f"loss/sigma_{edges[band]}_{edges[band + 1]}": losses[index == band].mean().item()
            for band in index.unique().tolist()
        }


def drop_labels(
    class_labels: torch.Tensor, probability: float, null_label: int, generator: Generators = None
) -> torch.Tensor:
    """Labels (B,) of which each is the null class with this probability."""
    drops = draw(torch.rand, tuple(class_labels.shape), generator, class_labels.device) < probability
    return class_labels.masked_fill(drops, null_label)


def mean_squares(error: torch.Tensor, sigma: torch.Tensor) -> LossOutput:
    per_sample = error.flatten(1).square().mean(1)
    return LossOutput(per_sample.mean(), per_sample.detach(), sigma)
