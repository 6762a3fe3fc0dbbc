"""The state of one call of a pipeline: its scheduler, its guidance scale, and whether it was interrupted.

A pipeline may be called again while a call is running, from another thread or from a callback that draws a preview.
Therefore each call steps its own copy of the scheduler, and the attributes that diffusers keeps on the pipeline
(`num_timesteps`, `_guidance_scale`, `_interrupt`) are kept for each call. A callback reads and sets them on the
pipeline as in diffusers, and reaches those of its own call. Outside a call, for instance in the thread of a stop
button, they are those of the call that began last.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from diffusers import SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from ..schedulers.state_convention import StateConvention

Callback = Callable[..., dict[str, Any] | None]


@dataclass(eq=False)
class PipelineCall:
    """The state of one call of a pipeline.

    Attributes:
        pipeline: the pipeline that was called.
        scheduler: the scheduler that the call steps. `pipeline.scheduler` is a copy of it with the same timesteps.
        guidance_scale: the value of `pipeline.guidance_scale`.
        num_timesteps: the number of timesteps, which is the largest possible number of network calls.
        guidance_off: whether a callback has set `pipeline._guidance_scale` to 0, which means no guidance in diffusers.
        interrupt: whether the remaining steps are skipped.
        outer: the call whose callback made this call, or None.
    """

    pipeline: Any = None
    scheduler: Any = None
    guidance_scale: float = 1.0
    num_timesteps: int = 0
    guidance_off: bool = False
    interrupt: bool = False
    outer: PipelineCall | None = None

    @property
    def current_guidance_scale(self) -> float:
        """The guidance scale of the next network call: 1, no guidance, after a callback has set 0."""
        return 1.0 if self.guidance_off else self.guidance_scale


_current: ContextVar[PipelineCall | None] = ContextVar("diffusers_pfgm_call", default=None)


def copy_scheduler(scheduler: Any) -> Any:
    """Return a copy of a scheduler that can be stepped without changing the original.

    A deep copy would also copy tables such as a thousand betas. Schedulers never change their tensors in place but
    replace them, so the copies may share them. What schedulers do change in place is copied: lists, our
    `StateConvention`, and the schedulers that they hold, such as `solver_p`.
    """
    copied = copy.copy(scheduler)
    for name, value in vars(scheduler).items():
        if isinstance(value, list | StateConvention):
            setattr(copied, name, copy.copy(value))
        elif isinstance(value, SchedulerMixin):
            setattr(copied, name, copy_scheduler(value))
    return copied


class PipelineCalls:
    """A mixin for pipelines that keeps a separate state for each call."""

    scheduler: Any
    _latest_call: PipelineCall | None = None

    @property
    def num_timesteps(self) -> int:
        """Number of timesteps of the call; 0 before the first call and for an adaptive solver."""
        return self._call.num_timesteps

    @property
    def guidance_scale(self) -> float:
        """The guidance scale of the call. A callback may change it by `pipe._guidance_scale = ...`."""
        return self._call.guidance_scale

    @property
    def interrupt(self) -> bool:
        """Whether the call skips its remaining steps. A callback requests it by `pipe._interrupt = True`."""
        return self._call.interrupt

    @property
    def _guidance_scale(self) -> float:
        return self._call.guidance_scale

    @_guidance_scale.setter
    def _guidance_scale(self, scale: float) -> None:
        call = self._call
        call.guidance_scale = scale
        call.guidance_off = scale == 0

    @property
    def _interrupt(self) -> bool:
        return self._call.interrupt

    @_interrupt.setter
    def _interrupt(self, interrupt: bool) -> None:
        self._call.interrupt = interrupt

    @property
    def _call(self) -> PipelineCall:
        call = _current.get()
        while call is not None and call.pipeline is not self:
            call = call.outer
        return call or self._latest_call or PipelineCall()

    @contextlib.contextmanager
    def _call_context(self, scheduler: Any, guidance_scale: float = 1.0) -> Iterator[PipelineCall]:
        """Make a `PipelineCall` the current one while the `with` block runs.

        During the call `self.scheduler` is a copy of `scheduler`. A callback can read the timesteps of the call from it
        and may even reset it, without an effect on the call. The user's scheduler object itself is not changed, so a
        denoising loop that the user runs with it is not disturbed.

        Args:
            scheduler: the scheduler that the call steps, with its timesteps set: a copy that only this call uses.
            guidance_scale: the guidance scale at the first step.
        """
        previous_scheduler = self.scheduler
        # With the adaptive solver a call steps our scheduler, which must not replace one of diffusers in the pipeline.
        is_same_type = type(scheduler) is type(previous_scheduler)
        visible_scheduler = copy_scheduler(scheduler) if is_same_type else previous_scheduler
        call = PipelineCall(self, scheduler, guidance_scale, len(scheduler.timesteps), outer=_current.get())
        token = _current.set(call)
        self.scheduler = visible_scheduler
        self._latest_call = call
        try:
            yield call
        finally:
            _current.reset(token)
            self._latest_call = call
            if call.outer is not None and self.scheduler is visible_scheduler:
                self.scheduler = previous_scheduler  # the callback that made this call reads its own timesteps again


def check_callback_inputs(
    callback: Callback | None, names: str | Sequence[str] | None, allowed: Sequence[str]
) -> list[str]:
    """Return the names of the tensors that are passed to a callback.

    Args:
        callback: the user's `callback_on_step_end`. One of diffusers' callback classes has its own `tensor_inputs`,
            which replace `names`.
        names: the user's `callback_on_step_end_tensor_inputs`; None, as in diffusers, for none.
        allowed: the names of the tensors that the pipeline can pass.

    Raises:
        ValueError: if a name is not in `allowed`.
    """
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
        names = callback.tensor_inputs
    names = [names] if isinstance(names, str) else list(names or ())
    unknown = [name for name in names if name not in allowed]
    if unknown:
        raise ValueError(f"`callback_on_step_end_tensor_inputs` must be among {list(allowed)}, but has {unknown}.")
    return names
