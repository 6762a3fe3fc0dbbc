"""A run of any scheduler with a model: one network call and one step of the scheduler for each timestep."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..physics.denoiser import output_tensor
from ..physics.tensors import Generators, cast_clamped


@dataclass
class SchedulerStep:
    """The result of one step of a run.

    Attributes:
        index: index of the step, from 0.
        timestep: (), the timestep at which the model was called.
        sample: (B, *), the state after the step. A tensor that is assigned to it becomes the state of the next step.
        denoised: (B, *), x̂, if the scheduler returns it, else None.
    """

    index: int
    timestep: torch.Tensor
    sample: torch.Tensor
    denoised: torch.Tensor | None


def scheduler_steps(
    scheduler: Any,
    model: Callable[[torch.Tensor, torch.Tensor], Any],
    sample: torch.Tensor,
    dtype: torch.dtype | None = None,
    generator: Generators = None,
) -> Iterator[SchedulerStep]:
    """Make the steps of a run, one at a time.

    Args:
        scheduler: a `PoissonFlowScheduler` or a diffusers scheduler, after `set_timesteps`.
        model: called as `model(c_in x, timestep)`, with the scheduler's `network_timestep` if it has one; returns an
            object with `.sample`, or a tuple.
        sample: (B, *), the state at the first timestep.
        dtype: dtype of the model's input, by default the dtype of the state.
        generator: generator of the noise, for schedulers that add noise.

    Yields:
        The result of each step.
    """
    noise_options = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for index, timestep in enumerate(scheduler.timesteps):
        model_input = cast_clamped(scheduler.scale_model_input(sample, timestep), dtype or sample.dtype)
        network_timestep = timestep
        if hasattr(scheduler, "network_timestep"):
            network_timestep = scheduler.network_timestep(sample, timestep)
        output = scheduler.step(output_tensor(model(model_input, network_timestep)), timestep, sample, **noise_options)
        step = SchedulerStep(index, timestep, output.prev_sample, output.get("pred_original_sample"))
        yield step
        sample = step.sample
