"""Checks of arguments that are used by many functions."""

from __future__ import annotations

import math
import numbers
from typing import Any


def check_whole_number(name: str, value: Any, minimum: int, hint: str = "") -> int:
    """Return a whole number of any numeric type as an int.

    Args:
        name: name of the argument, for the error message.
        value: value of the argument. True and False are not accepted.
        minimum: the smallest allowed value.
        hint: text that follows the allowed range in the error message, such as ", or None for an adaptive solver".

    Raises:
        ValueError: if `value` is not a whole number ≥ `minimum`.
    """
    is_number = isinstance(value, numbers.Real) or hasattr(value, "item")  # also tensors and arrays of one element
    if isinstance(value, bool) or not is_number or not minimum <= value < math.inf or int(value) != value:
        raise ValueError(f"`{name}` must be a whole number >= {minimum}{hint}, but is {value!r}.")
    return int(value)
