"""Counts the values that are read from a device, for each of which the host waits."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal")


class DeviceReads(TorchDispatchMode):
    """Counts the operations inside that read values."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func._schema.name in READS
        return func(*args, **(kwargs or {}))
