"""What one process decides for all of them."""

from __future__ import annotations

from typing import TypeVar

from accelerate.utils import broadcast_object_list

Value = TypeVar("Value")


def broadcast_from_main(value: Value) -> Value:
    """The main process's value, on every process; to be called by all of them."""
    values = [value]
    broadcast_object_list(values)
    return values[0]
