"""Full float32 precision, without TF32 and autocast.

By default, cuDNN computes convolutions on Ampere and newer GPUs in TF32, with 10 bits. Under autocast a network
computes in half precision, although its weights are float32.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")

_lock = threading.Lock()
_users = 0
_restore: list[Callable[[], None]] = []


@contextmanager
def full_precision() -> Iterator[None]:
    """Context in which TF32 and autocast are disabled. On exit the previous settings are restored.

    PyTorch has one setting of TF32 for all threads of a process. If several threads are in the context at once, the
    last one to leave restores the setting. What other threads compute in the meantime is more precise and slower.
    """
    global _users
    with _lock:
        if not _users:
            _restore[:] = _disable_tf32()
        _users += 1
    try:
        with ExitStack() as stack:
            for device_type in filter(torch.is_autocast_enabled, AUTOCAST_DEVICES):
                stack.enter_context(torch.autocast(device_type, enabled=False))
            yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                for undo in _restore:
                    undo()


def _disable_tf32() -> list[Callable[[], None]]:
    """Disable TF32, and return functions that restore the previous settings."""
    backends: Any = torch.backends
    try:
        matmul_precision, _ = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    except RuntimeError:  # from torch 2.9: the caller has used the newer settings, which exclude these
        owners = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul)
        return [_set(owner, "fp32_precision", "ieee") for owner in owners]
    torch.set_float32_matmul_precision("highest")
    undo = _set(backends.cudnn, "allow_tf32", False)
    return [undo, lambda: torch.set_float32_matmul_precision(matmul_precision)]


def _set(owner: object, name: str, value: object) -> Callable[[], None]:
    """Set an attribute, and return a function that restores its previous value."""
    previous = getattr(owner, name)
    setattr(owner, name, value)
    return lambda: setattr(owner, name, previous)
