"""SIGTERM and SIGINT as a stop request that the training loop checks after each step."""

from __future__ import annotations

import os
import signal
from types import FrameType

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def ignore_first_signals(worker: int) -> None:
    """Leave signals that a terminal or a cluster sends to all processes to the main process, which saves a checkpoint.

    A second signal of the same kind ends this process, so that a worker that hangs can still be ended.

    Args:
        worker: The number of this worker of a data loader.
    """

    def ignore(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    for number in SIGNALS:
        signal.signal(number, ignore)


class StopRequest:
    """A context in which SIGTERM and SIGINT request a stop. A second SIGINT interrupts at once, as usual.

    With one process, `accelerate launch` does not forward a SIGTERM but ends. Therefore the end of the launcher counts
    as a stop request too.

    Args:
        accelerator: accelerate's `Accelerator` of the run.

    Attributes:
        reason: What requested the stop of this process, such as "SIGTERM"; empty without a request.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.reason = ""
        launched = "ACCELERATE_MIXED_PRECISION" in os.environ  # set by `accelerate launch`
        self._launcher = os.getppid() if launched else None
        self._pending: torch.Tensor | None = None

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
        if number == signal.SIGINT:  # SIGTERM stays caught, since a launcher may forward the same Ctrl-C as SIGTERM
            signal.signal(number, self._before[signal.SIGINT])

    def agreed(self) -> bool:
        """Whether all processes stop after this step. Every process must call this once a step.

        With several processes the answer is one step late: their flags are summed while the next step is computed, so
        that no process waits for the result.
        """
        if self._launcher not in (None, os.getppid()):
            self.reason = self.reason or "the end of its launcher"
        if self.accelerator.num_processes == 1:
            return bool(self.reason)
        stops = self._pending is not None and bool(self._pending.item() > 0)
        flag = torch.tensor(float(bool(self.reason)), device=self.accelerator.device)
        self._pending = self.accelerator.reduce(flag, reduction="sum")
        return stops
