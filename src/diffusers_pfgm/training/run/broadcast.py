"""Values that the main process decides for all processes."""

from __future__ import annotations

from typing import TypeVar

from accelerate.utils import broadcast_object_list

Value = TypeVar("Value")


def broadcast_from_main(value: Value) -> Value:
    """Return the main process's value on every process. Every process must call this."""
    values = [value]
    broadcast_object_list(values)
    return values[0]
