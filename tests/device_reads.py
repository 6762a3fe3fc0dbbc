"""Counts the values that are read from a device, for each of which the host waits."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

READS = (
    "_local_scalar_dense",
    "_unique2",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "repeat_interleave",
)


class DeviceReads(TorchDispatchMode):
    """Counts the operations inside that read values."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in READS
        return func(*args, **(kwargs or {}))
