"""Runs in the exact field of scikit-learn's digits, of which it is known at which digit a fine solution ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...physics import ChargeField
from ...pipelines import PFGMPipeline
from ...schedulers import PoissonFlowScheduler
from ..digits import split_digits

REFERENCE_STEPS = 200  # of the run that defines the digit of a start
IMAGE_SHAPE = (1, 8, 8)


def digit_reached(pipe: PFGMPipeline, digits: torch.Tensor, latents: torch.Tensor, **options: Any) -> torch.Tensor:
    """Return the index of the digit (B,) that is nearest to the end of each run from latents (B, 1, 8, 8)."""
    images = pipe(latents=latents, output_type="pt", **options).images * 2 - 1
    return torch.cdist(images.flatten(1), digits.flatten(1)).argmin(1)


def shares_of_same_digit(
    aug_dim: float | None,
    prior: str | None,
    runs: Mapping[str, Mapping[str, Any]],
    steps: Sequence[tuple[str, int]],
    seeds: Sequence[int],
    starts: int,
) -> list[list[float]]:
    """Return the share of starts that end at the digit of their own run of 200 steps, for each step number and seed.

    Args:
        aug_dim: D; None for ∞.
        prior: the scheduler's `prior`.
        runs: options of the scheduler by the name of a run.
        steps: pairs of a name in `runs` and a number of steps.
        seeds: seeds of the starts.
        starts: the number of starts of a seed.
    """
    digits = split_digits()[0].double()
    fine = PoissonFlowScheduler(aug_dim, prior=prior)
    pipe = PFGMPipeline(ChargeField(digits, aug_dim), fine)
    pipe.set_progress_bar_config(disable=True)
    shares: list[list[float]] = [[] for _ in steps]
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        latents = fine.sample_prior((starts, *IMAGE_SHAPE), generator, dtype=torch.float64)
        pipe.scheduler = fine
        expected = digit_reached(pipe, digits, latents, num_inference_steps=REFERENCE_STEPS)
        for values, (name, count) in zip(shares, steps, strict=True):
            pipe.scheduler = PoissonFlowScheduler(aug_dim, prior=prior, **runs[name])
            reached = digit_reached(pipe, digits, latents, num_inference_steps=count)
            values.append((reached == expected).double().mean().item())
    return shares
