"""Float32 as float32: Ampere and newer GPUs otherwise take convolutions in TF32, of 10 bits, by cuDNN's default."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_lock = threading.Lock()
_users = 0
_restore: list[Callable[[], None]] = []


@contextmanager
def without_tf32() -> Iterator[None]:
    """Switch TF32 off inside, and afterwards back to what it was.

    PyTorch has one switch for all threads of a process. Where several are inside at once, the last one to leave
    switches it back; what other threads compute meanwhile is more precise and slower.
    """
    global _users
    with _lock:
        if not _users:
            _restore[:] = _switched_off()
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                for undo in _restore:
                    undo()


def _switched_off() -> list[Callable[[], None]]:
    """Switches TF32 off, and returns what undoes it."""
    backends: Any = torch.backends
    try:
        matmul, _ = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    except RuntimeError:  # from torch 2.9: the caller has used the newer switches, which do not mix with these
        switches = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul)
        return [_set(switch, "fp32_precision", "ieee") for switch in switches]
    torch.set_float32_matmul_precision("highest")
    undo = _set(backends.cudnn, "allow_tf32", False)
    return [undo, lambda: torch.set_float32_matmul_precision(matmul)]


def _set(owner: object, name: str, value: object) -> Callable[[], None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    return lambda: setattr(owner, name, before)
