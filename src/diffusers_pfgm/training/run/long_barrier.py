"""Waiting for a process that works alone, however long its work takes.

A collective of the default group fails after the group's time-out, 10 minutes with NCCL, and so finds a process that
hangs. The main process alone draws samples, measures and publishes, and one process prepares a data set, any of which
may take longer. The other processes wait for it in a group of their own with a time-out of a day, while the time-out
of the training's collectives stays short. A process that has died does not make the others wait: its launcher ends
them.
"""

from __future__ import annotations

from datetime import timedelta
from types import TracebackType

import torch
from accelerate import Accelerator

LONGEST_WAIT = timedelta(days=1)


class LongBarrier:
    """A block at whose end each process waits until all of them have arrived, for up to a day.

    A process that raises an error inside waits as well, so that the others learn of its end from the next collective
    of the training, within the short time-out. Every process must construct one and enter it equally often.

    Args:
        accelerator: of the run.

    Example:
        >>> barrier = LongBarrier(Accelerator(cpu=True))
        >>> with barrier:
        ...     print("the work of one process")
        the work of one process
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        shared = accelerator.num_processes > 1 and torch.distributed.is_initialized()
        # Gloo waits without a tensor on any device, and its group ends with the process.
        self._group = torch.distributed.new_group(timeout=LONGEST_WAIT, backend="gloo") if shared else None

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wait()

    def wait(self) -> None:
        """Wait until all processes have arrived, for up to a day."""
        if self._group is None:
            self.accelerator.wait_for_everyone()
            return
        torch.distributed.barrier(group=self._group)
