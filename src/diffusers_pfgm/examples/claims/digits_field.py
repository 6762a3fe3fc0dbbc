"""Runs in the exact field of scikit-learn's digits, compared with a fine reference run from the same starting point.

Each run ends near one of the digits. A run with few steps agrees with the reference run if both end at the same digit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...physics import ChargeField
from ...pipelines import PFGMPipeline
from ...schedulers import PoissonFlowScheduler
from ..digits import split_digits

AGREEMENT = "agreement with the reference run"
REFERENCE_STEPS = 200  # the number of steps of the reference run, which determines the digit of a starting point
IMAGE_SHAPE = (1, 8, 8)


def digit_reached(pipe: PFGMPipeline, digits: torch.Tensor, latents: torch.Tensor, **options: Any) -> torch.Tensor:
    """Return the index of the digit (B,) that is nearest to the end of each run from latents (B, 1, 8, 8)."""
    images = pipe(latents=latents, output_type="pt", **options).images * 2 - 1
    return torch.cdist(images.flatten(1), digits.flatten(1)).argmin(1)


def agreement_with_reference(
    aug_dim: float | None,
    prior: str | None,
    runs: Mapping[str, Mapping[str, Any]],
    steps: Sequence[tuple[str, int]],
    seeds: Sequence[int],
    starts: int,
) -> list[list[float]]:
    """Return the share of starting points whose run ends at the same digit as their reference run of 200 steps.

    Args:
        aug_dim: D; None for ∞.
        prior: the scheduler's `prior`. With None, the default of pipelines, runs of these 64 pixels start from the
            shell if D is finite, and from the Gaussian at D = ∞.
        runs: options of the scheduler by the name of a run.
        steps: pairs of a name in `runs` and a number of steps.
        seeds: seeds of the starting points.
        starts: the number of starting points of each seed.

    Returns:
        A list for each pair in `steps`, with the share of each seed.
    """
    digits = split_digits()[0].double()
    fine = PoissonFlowScheduler(aug_dim, prior=prior)
    pipe = PFGMPipeline(ChargeField(digits, aug_dim), fine)
    pipe.set_progress_bar_config(disable=True)
    agreements: list[list[float]] = [[] for _ in steps]
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        latents = fine.sample_prior((starts, *IMAGE_SHAPE), generator, dtype=torch.float64)
        pipe.scheduler = fine
        expected = digit_reached(pipe, digits, latents, num_inference_steps=REFERENCE_STEPS)
        for values, (name, count) in zip(agreements, steps, strict=True):
            pipe.scheduler = PoissonFlowScheduler(aug_dim, prior=prior, **runs[name])
            reached = digit_reached(pipe, digits, latents, num_inference_steps=count)
            values.append((reached == expected).double().mean().item())
    return agreements
