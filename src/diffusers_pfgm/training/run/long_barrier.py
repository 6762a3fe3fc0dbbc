"""A barrier with a long time-out, for work that only one process does.

A collective of the default process group fails after the group's time-out, 10 minutes with NCCL, which detects a
process that hangs. But the main process alone draws samples, validates and publishes, and one process prepares a data
set, which may take longer. The other processes wait for it in a separate group with a time-out of a day, while the
time-out of the training's collectives stays short. If a process dies, the others do not wait: their launcher ends them.
"""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator

LONGEST_WAIT = timedelta(days=1)


class LongBarrier(contextlib.AbstractContextManager[Any]):
    """A context at whose end every process waits for all others, for up to a day.

    A process that raises an error inside waits too. The others then notice its end at the next collective of the
    training, within the short time-out. Every process must construct one barrier and enter it equally often.

    Args:
        accelerator: accelerate's `Accelerator` of the run.

    Examples:
        >>> barrier = LongBarrier(Accelerator(cpu=True))
        >>> with barrier:
        ...     print("work of the main process")
        work of the main process
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        shared = accelerator.num_processes > 1 and torch.distributed.is_initialized()
        # Gloo needs no tensor on a device to wait, and its group ends with the process.
        self._group = torch.distributed.new_group(timeout=LONGEST_WAIT, backend="gloo") if shared else None

    def __exit__(self, *_: object) -> None:
        self.wait()

    def wait(self) -> None:
        """Wait until all processes have arrived, for up to a day."""
        if self._group is None:
            self.accelerator.wait_for_everyone()
            return
        torch.distributed.barrier(group=self._group)
