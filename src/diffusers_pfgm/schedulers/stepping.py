"""A run of any scheduler with a model: one call of the model and one step of the scheduler for each timestep."""

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
    """A step that has just been made.

    Attributes:
        index: of the step, from 0.
        timestep: (), what the model saw.
        sample: (B, *), the state after the step. Whatever is assigned to it is the state of the next step.
        denoised: (B, *), x̂, where the scheduler returns it, else None.
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
        scheduler: ours or one of diffusers, after `set_timesteps`.
        model: called as `model(c_in x, timestep)`, with `.sample` or a tuple as its result.
        sample: (B, *), the state at the first timestep.
        dtype: of the model's input; by default that of the state.
        generator: for schedulers that draw noise.
    """
    noise = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for index, timestep in enumerate(scheduler.timesteps):
        model_input = cast_clamped(scheduler.scale_model_input(sample, timestep), dtype or sample.dtype)
        output = scheduler.step(output_tensor(model(model_input, timestep)), timestep, sample, **noise)
        step = SchedulerStep(index, timestep, output.prev_sample, output.get("pred_original_sample"))
        yield step
        sample = step.sample
