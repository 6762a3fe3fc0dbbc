"""SIGTERM and SIGINT as a wish that the training loop grants between two steps."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Catches SIGTERM and SIGINT while it is entered; a second SIGINT has its usual effect at once.

    `accelerate launch` of one process does not hand a SIGTERM on, it just ends. That its launcher is gone counts as a
    request too.

    Args:
        accelerator: of the run.

    Attributes:
        reason: what asked this process to stop, such as "SIGTERM"; empty if nothing did.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator, self.reason = accelerator, ""
        launched = "ACCELERATE_MIXED_PRECISION" in os.environ  # set by `accelerate launch`
        self._launcher = os.getppid() if launched else None
        self._pending: torch.Tensor | None = None

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
        if number == signal.SIGINT:  # a launcher may hand one Ctrl-C on as a SIGTERM, so that stays caught
            signal.signal(number, self._before[signal.SIGINT])

    def agreed(self) -> bool:
        """Whether all processes stop after this step; to be called by each of them once a step.

        Processes learn of a signal to any of them one step later: their flags are added up while the next step is
        computed, so that no device waits for another's answer.
        """
        if self._launcher not in (None, os.getppid()):
            self.reason = self.reason or "the end of its launcher"
        if self.accelerator.num_processes == 1:
            return bool(self.reason)
        heard = self._pending is not None and bool(self._pending.item() > 0)
        flag = torch.tensor(float(bool(self.reason)), device=self.accelerator.device)
        self._pending = self.accelerator.reduce(flag, reduction="sum")
        return heard
