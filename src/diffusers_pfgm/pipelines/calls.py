"""What belongs to one call of a pipeline: its scheduler, its guidance scale, and whether it was interrupted.

A pipeline may be called while it is running, by another thread or by a callback that draws a preview. So each call
steps a scheduler of its own, and what diffusers keeps on the pipeline (`num_timesteps`, `_guidance_scale`,
`_interrupt`) is kept for each call. A callback reads and sets these on the pipeline as in diffusers, and meets those of
its own call. Elsewhere, in the thread of a stop button for instance, they are those of the call that began last.
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
    """One call.

    Attributes:
        pipeline: what was called.
        scheduler: what the call steps. `pipeline.scheduler` is a copy of it with the same timesteps.
        guidance_scale: as `pipeline.guidance_scale` has it.
        num_timesteps: network calls at the most.
        guidance_off: whether a callback has set `pipeline._guidance_scale` to 0, diffusers' word for no guidance.
        interrupt: whether the remaining steps are to be left out.
        outer: the call whose callback made this one.
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
        """The scale of the next network call: 1, so no guidance, after a callback has set 0."""
        return 1.0 if self.guidance_off else self.guidance_scale


_current: ContextVar[PipelineCall | None] = ContextVar("diffusers_pfgm_call", default=None)


def copy_scheduler(scheduler: Any) -> Any:
    """A scheduler of the same configuration whose timesteps and steps are its own.

    A deep copy would copy a thousand betas as well. What the copies share is never changed in place: schedulers replace
    their tensors, and change nothing but lists, our `StateConvention`, and the schedulers that they hold, such as
    `solver_p`.
    """
    own = copy.copy(scheduler)
    for name, value in vars(scheduler).items():
        if isinstance(value, list | StateConvention):
            setattr(own, name, copy.copy(value))
        elif isinstance(value, SchedulerMixin):
            setattr(own, name, copy_scheduler(value))
    return own


class PipelineCalls:
    """The part of a pipeline that keeps its calls apart."""

    scheduler: Any
    _latest_call: PipelineCall | None = None

    @property
    def num_timesteps(self) -> int:
        """Timesteps of the call, with a network call each; 0 before the first call and for an adaptive solver."""
        return self._call.num_timesteps

    @property
    def guidance_scale(self) -> float:
        """The guidance scale of the call, which a callback may change by `pipe._guidance_scale = ...`."""
        return self._call.guidance_scale

    @property
    def interrupt(self) -> bool:
        """Whether the call leaves out its remaining steps, after `pipe._interrupt = True`."""
        return self._call.interrupt

    @property
    def _guidance_scale(self) -> float:
        return self._call.guidance_scale

    @_guidance_scale.setter
    def _guidance_scale(self, scale: float) -> None:
        self._call.guidance_scale, self._call.guidance_off = scale, scale == 0

    @property
    def _interrupt(self) -> bool:
        return self._call.interrupt

    @_interrupt.setter
    def _interrupt(self, interrupt: bool) -> None:
        self._call.interrupt = interrupt

    @property
    def _num_timesteps(self) -> int:
        return self._call.num_timesteps

    @property
    def _call(self) -> PipelineCall:
        call = _current.get()
        while call is not None and call.pipeline is not self:
            call = call.outer
        return call or self._latest_call or PipelineCall()

    @contextlib.contextmanager
    def _calling(self, scheduler: Any, guidance_scale: float = 1.0) -> Iterator[PipelineCall]:
        """A call that steps `scheduler`, a copy with its timesteps set that nobody else has.

        `self.scheduler` becomes another copy, so that the timesteps of a call can be read from it, and reset by a
        callback, without harm. The object that the user has given is left as it is, for a loop of their own.
        """
        before = self.scheduler
        # Ours may take the place of one of diffusers for a call, but not in the pipeline.
        shown = copy_scheduler(scheduler) if type(scheduler) is type(before) else before
        call = PipelineCall(self, scheduler, guidance_scale, len(scheduler.timesteps), outer=_current.get())
        token = _current.set(call)
        self.scheduler, self._latest_call = shown, call
        try:
            yield call
        finally:
            _current.reset(token)
            self._latest_call = call
            if call.outer is not None and self.scheduler is shown:
                self.scheduler = before  # what the callback that made this call goes on to read


def check_callback_inputs(callback: Callback | None, names: str | Sequence[str], allowed: Sequence[str]) -> list[str]:
    """Names of the tensors that a callback is given; one of diffusers' own classes names them itself.

    Raises:
        ValueError: if one is not in `allowed`.
    """
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
        names = callback.tensor_inputs
    names = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in names if name not in allowed]
    if unknown:
        raise ValueError(f"`callback_on_step_end_tensor_inputs` must be among {list(allowed)}, but has {unknown}.")
    return names
