"""The current position of a scheduler within a run: the index of the next step, and the start at a later step."""

from __future__ import annotations

import math

import torch
from diffusers.utils import logging

from ..solvers.multistep import Step, plan_steps, variance_preserving
from .attributes import SchedulerAttributes
from .consistency import plan_consistency_steps

logger = logging.get_logger(__name__)


class StepIndexMixin(SchedulerAttributes):
    """The plan of a run, and the index of its next step, with diffusers' names for them."""

    @property
    def order(self) -> int:
        """Network calls per step, as diffusers counts them."""
        return 2 if self.config.solver == "heun" and not self.is_consistency_model else 1

    @property
    def step_index(self) -> int | None:
        """Index of the next step; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the first step, as set by `set_begin_index`, or None."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at `timesteps[begin_index]`, as image-to-image pipelines do.

        Raises:
            ValueError: if there is no such timestep.
        """
        if begin_index not in range(len(self.timesteps)):
            raise ValueError(
                f"`begin_index` must be from 0 to {len(self.timesteps) - 1}, but is {begin_index}. In an image-to-image"
                f" pipeline {len(self.timesteps)} means that `strength` * `num_inference_steps` is less than 1, so that"
                " no step is left: raise one of them."
            )
        self._begin_index = int(begin_index)

    def index_for_timestep(self, timestep: float | torch.Tensor, schedule_timesteps: torch.Tensor | None = None) -> int:
        """Return the index of a timestep in `timesteps`, or 0 with a warning if it is not there.

        The index of an element of `timesteps` itself is known without reading its value from the device.

        Args:
            timestep: the timestep.
            schedule_timesteps: (T,), the timesteps to search in place of `timesteps`, as in diffusers.
        """
        if schedule_timesteps is None:
            indices = self._indices_of(timestep)
        else:
            indices = [i for i, value in enumerate(schedule_timesteps.tolist()) if value == float(timestep)]
        if not indices:
            logger.warning(f"The timestep {timestep} is none of `scheduler.timesteps`; starting at the first.")
        # Heun's method calls the network twice at a noise level; the second call begins a step, as in diffusers.
        return indices[-1] if indices else 0

    def _indices_of(self, timestep: float | torch.Tensor) -> list[int]:
        if isinstance(timestep, torch.Tensor):
            if timestep._base is self.timesteps:
                return [int(timestep.storage_offset())]
            timestep = timestep.item()
        return [i for i, value in enumerate(self._timestep_values) if value == timestep]

    def _current_index(self, timestep: float | torch.Tensor) -> int:
        """The index of the current step. `timestep` is read only at the first step of a run and after its last."""
        ended = self._step_index == len(self._plan)
        if ended and self._indices_of(timestep):
            raise ValueError(
                f"`step` was called after the last of {len(self._plan)} timesteps. Call `set_timesteps` to start again."
            )
        # After the end, a timestep that is not in `timesteps` starts the run again, with a warning.
        if self._step_index is None or ended:
            self._step_index = self._begin_run(timestep)
        return self._step_index

    def _begin_run(self, timestep: float | torch.Tensor) -> int:
        """Return the index of the first step. A run that begins later is planned again from there."""
        begin = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index
        if begin:  # the steps there must not extrapolate from earlier network calls
            steps = self._make_plan([*self._run.sigmas, self._run.final][math.ceil(begin / self.order) :])
            if begin % self.order:
                # The second call of a Heun step whose first call is left out: keep x, and begin at the next call.
                steps.insert(0, Step(self._plan[begin].sigma, 1.0, (0.0,)))
            self._plan[begin:] = steps
        return begin

    def _make_plan(self, sigmas: list[float]) -> list[Step]:
        if self.is_consistency_model:
            return plan_consistency_steps(sigmas)
        steps = plan_steps(sigmas, self.config.solver, self.config.solver_order, self.config.use_corrector)
        return steps if self.parameterization.train_sigmas is None else variance_preserving(steps, sigmas[-1])
