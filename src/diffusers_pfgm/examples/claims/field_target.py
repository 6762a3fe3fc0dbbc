"""Claim e: the variance of the field target decreases with the size of the batch of charges.

The mean squared error of the target is measured, which is its variance plus the square of its bias.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from ...physics import Charges, normalized_field, perturb, recommend_hyperparameters
from ..digits import split_digits
from .claim import Cell, Check, Claim

SIZES = (1, 4, 16, 64, 256)  # numbers of charges of a batch; the first check compares the last with the first
LARGEST_RATIO = 0.5  # bound of the ratio of the errors with the most charges and with the sample's own charge alone


def variance_of_the_target(
    seeds: Sequence[int] = (0, 1, 2), points: int = 200, charges: Sequence[int] = SIZES
) -> Claim:
    """Measure claim e.

    Args:
        seeds: seeds of the points and of the batches.
        points: the number of points of a seed, each with its own batches.
        charges: numbers of charges of a batch, increasing, from 1.
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
        "sample's own and K − 1 others, is compared with the exact field of all 1,437 charges by the mean squared "
        "error over the N + 1 components. This error is the variance of the target plus the square of its bias. With "
        "K = 1 the target is that of denoising.",
        checks=[
            Check(
                f"mean squared error with {charges[-1]} charges / with one charge",
                "below",
                LARGEST_RATIO,
                [few / one for few, one in zip(columns[-1], columns[0], strict=True)],
            ),
            Check("largest ratio of the errors of two successive K, of more charges / of fewer", "below", 1.0, steps),
        ],
        header=["", *(f"K = {count}" for count in charges)],
        rows=[["mean squared error of the target", *columns], ["ratio to the error of K = 1", *ratios]],
        sizes={"seeds": list(seeds), "points per seed": points},
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
