"""Runs of a scheduler with the exact field of a few charges, and schedulers of networks for ε."""

from typing import Any

import torch

from diffusers_pfgm import PoissonFlowScheduler
from tests.networks import seeded

CHARGES = torch.randn(5, 1, 4, 4, generator=seeded(0), dtype=torch.float64)


def run(scheduler: PoissonFlowScheduler, model: Any, x: torch.Tensor) -> torch.Tensor:
    for t in scheduler.timesteps:
        x = scheduler.step(model(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    return x


def epsilon(**options: Any) -> PoissonFlowScheduler:
    """A scheduler of a network that predicts the noise ε."""
    return PoissonFlowScheduler(None, prediction_type="epsilon", **options)
