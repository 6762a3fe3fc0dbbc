"""Claim e: the variance of the field target decreases with the size of the batch of charges."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from ...physics import Charges, normalized_field, perturb, recommend_hyperparameters
from ..digits import split_digits
from .claim import Cell, Check, Claim

SIZES = (1, 4, 16, 64, 256)  # charges of a batch; the first check is that of the last
LARGEST_RATIO = 0.5  # of the error with the most charges to that with the sample's own charge alone


def variance_of_the_target(
    seeds: Sequence[int] = (0, 1, 2), points: int = 200, charges: Sequence[int] = SIZES
) -> Claim:
    """Measure claim e.

    Args:
        seeds: seeds of the points and of the batches.
        points: the number of points of a seed, each with its own batches.
        charges: numbers of charges of a batch, increasing.
    """
    errors = [target_errors(points, charges, seed) for seed in seeds]
    columns = [list(column) for column in zip(*errors, strict=True)]
    ratios: list[Cell] = [[few / one for few, one in zip(column, columns[0], strict=True)] for column in columns]
    steps = [max(more / fewer for fewer, more in itertools.pairwise(each)) for each in errors]
    return Claim(
        title="Variance of the field target",
        statement="The field of a large batch of charges is a target with little variance",
        source="PFGM, section 3.2 and Algorithm 1",
        method="Training digits are perturbed as in Algorithm 2 of PFGM. The target from a batch of K charges, the "
        "sample's own and K − 1 others, is compared with the target from all 1,437 charges: mean squared difference "
        "over the N + 1 components. With K = 1 it is the target of denoising.",
        checks=[
            Check(
                f"error with {charges[-1]} charges / error with one",
                "below",
                LARGEST_RATIO,
                [few / one for few, one in zip(columns[-1], columns[0], strict=True)],
            ),
            Check("largest ratio of the errors of two successive sizes", "below", 1.0, steps),
        ],
        header=["", *(f"K = {count}" for count in charges)],
        rows=[["mean squared error of the target", *columns], ["/ that of K = 1", *ratios]],
        sizes={"seeds": list(seeds), "points of a seed": points},
    )


def target_errors(points: int, charges: Sequence[int], seed: int) -> list[float]:
    """Return the mean squared error of the target of perturbed digits, for each number of charges of a batch."""
    digits = split_digits()[0].flatten(1).double()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(digits), generator=generator)[:points]
    hyperparameters = recommend_hyperparameters(digits.norm(dim=1).mean().item(), digits.shape[1])
    x, z = perturb(digits[order], hyperparameters, generator=generator)
    exact = normalized_field(x, z, Charges(digits))
    sums = [0.0] * len(charges)
    for row, own in enumerate(order.tolist()):
        others = torch.randperm(len(digits), generator=generator)
        others = others[others != own]
        for index, count in enumerate(charges):
            batch = torch.cat([digits[own : own + 1], digits[others[: count - 1]]])
            target = normalized_field(x[row : row + 1], z[row : row + 1], batch)
            sums[index] += (target - exact[row]).square().mean().item()
    return [total / points for total in sums]
