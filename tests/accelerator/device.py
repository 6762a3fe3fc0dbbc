"""The accelerator of this machine, and the number of times that the host waits for it."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

DEVICE = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
needs_accelerator = pytest.mark.skipif(DEVICE.type == "cpu", reason="This machine has no accelerator.")
needs_cuda = pytest.mark.skipif(DEVICE.type != "cuda", reason="Only CUDA reports when the host waits for it.")


@contextmanager
def count_waits() -> Iterator[list[str]]:
    """Collect the place of each operation inside at which the host waits for a CUDA device."""
    waits: list[str] = []

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "synchronizing" in str(message):
            frames = [each for each in traceback.extract_stack() if "diffusers_pfgm" in each.filename]
            frame = frames[-1] if frames else traceback.extract_stack()[-3]
            waits.append(f"{frame.filename}:{frame.lineno} {frame.line}")

    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note
            yield waits
    finally:
        torch.cuda.set_sync_debug_mode(before)
