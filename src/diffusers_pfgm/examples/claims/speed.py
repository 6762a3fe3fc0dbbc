"""Claim h: the time of the field target and of the scheduler's step, as ratios of runs side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler

from ...physics import normalized_field
from ...schedulers import PoissonFlowScheduler
from .claim import Check, Claim

LEAST_SPEEDUP = 10.0  # bound of the time of the naive formulation over the time of the field target
LARGEST_STEP = {"epsilon": 1.0, "field": 2.0}  # bounds of the time of a step over a step of DPM-Solver
STEPS = 50  # the number of steps of a timed run


def seconds(function: Callable[[], object]) -> float:
    """Return the time that a function takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def naive_target(x: torch.Tensor, z: torch.Tensor, charges: torch.Tensor) -> torch.Tensor:
    """Return the field target (B, N + 1) at γ = 5 from all differences (B, L, N + 1)."""
    samples = torch.cat([x, z.unsqueeze(1)], dim=1)
    points = torch.cat([charges, charges.new_zeros(len(charges), 1)], dim=1)
    differences = samples.unsqueeze(1) - points.unsqueeze(0)
    distances = differences.square().sum(-1).sqrt()
    ratios = distances.amin(1, keepdim=True) / (distances + 1e-7)
    weights = ratios ** samples.shape[1]
    weights = weights / weights.sum(1, keepdim=True)
    field = -(weights.unsqueeze(-1) * differences).sum(1)
    return field * x.shape[1] ** 0.5 / (field.norm(dim=1, keepdim=True) + 5.0)


def time_of_a_step(scheduler: Any, output: torch.Tensor, x: torch.Tensor, steps: int = STEPS) -> float:
    """Return the mean time of a scheduler's step in a run, without the network."""
    scheduler.set_timesteps(steps)
    timesteps = list(scheduler.timesteps)
    state = scheduler.init_noise_sigma * x

    def run() -> None:
        for t in timesteps:
            scheduler.step(output, t, state, return_dict=False)

    return seconds(run) / len(timesteps)


def speed(rounds: int = 8, shape: Sequence[int] = (1, 3, 32, 32), sizes: Sequence[int] = (32, 512, 3072)) -> Claim:
    """Measure claim h.

    Args:
        rounds: the number of pairs of runs, besides a first one that is not counted.
        shape: (B, C, H, W), the shape of the scheduler's states.
        sizes: (B, L, N), the numbers of points, charges and dimensions of the field target.
    """
    points, charges, dim = sizes
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(points, dim, generator=generator)
    y = torch.randn(charges, dim, generator=generator)
    z = 10 * torch.rand(points, generator=generator)
    speedups = [
        seconds(lambda: naive_target(x, z, y)) / seconds(lambda: normalized_field(x, z, y)) for _ in range(rounds + 1)
    ][1:]
    state = torch.randn(*shape, generator=generator)
    ratios: dict[str, list[float]] = {}
    for prediction_type in LARGEST_STEP:
        scheduler = PoissonFlowScheduler(prediction_type=prediction_type)
        channels = shape[1] + (prediction_type == "field")
        output = torch.randn(shape[0], channels, *shape[2:], generator=generator)
        ratios[prediction_type] = [
            time_of_a_step(scheduler, output, state) / time_of_a_step(DPMSolverMultistepScheduler(), state, state)
            for _ in range(rounds + 1)
        ][1:]
    return Claim(
        title="Speed of the target and of the step",
        statement="The field of a large batch and the steps of its ODE cost little time beside a network",
        source="PFGM, section 3.2, and this package",
        method=f"Field target of {points} points and {charges:,} charges in {dim:,} dimensions against the "
        f"formulation with all differences. A multistep step on states {tuple(shape)} against "
        "`DPMSolverMultistepScheduler` of diffusers. Both sides of a ratio are timed one after the other. The "
        "interval is over rounds, not over seeds.",
        checks=[
            Check("time of the naive formulation / time of the field target", "above", LEAST_SPEEDUP, speedups),
            *(
                Check(f"step with prediction type `{name}` / step of DPM-Solver", "below", bound, ratios[name])
                for name, bound in LARGEST_STEP.items()
            ),
        ],
        header=["ratio", "mean", "smallest", "largest"],
        rows=[
            [name, values, min(values), max(values)]
            for name, values in (
                ("naive formulation / field target", speedups),
                *((f"step with `{name}` / step of DPM-Solver", values) for name, values in ratios.items()),
            )
        ],
        sizes={"rounds": rounds, "steps of a run": STEPS},
    )
