"""Checks of arguments that many functions share."""

from __future__ import annotations

import math
import numbers
from typing import Any


def check_whole_number(name: str, value: Any, minimum: int, hint: str = "") -> int:
    """A value as an int, if it is a whole number of any numeric type.

    Args:
        name: of the argument, for the error.
        value: its value. True and False are not numbers.
        minimum: the smallest value that is allowed.
        hint: what else the error says is allowed, such as ", or None for an adaptive solver".

    Raises:
        ValueError: if it is not a whole number of at least `minimum`.
    """
    is_number = isinstance(value, numbers.Real) or hasattr(value, "item")  # tensors and arrays of one element too
    if isinstance(value, bool) or not is_number or not minimum <= value < math.inf or int(value) != value:
        raise ValueError(f"`{name}` must be a whole number >= {minimum}{hint}, but is {value!r}.")
    return int(value)
