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
    # Tensors and arrays of one element are numbers too.
    number = value.item() if hasattr(value, "item") and math.prod(getattr(value, "shape", ())) == 1 else value
    is_number = isinstance(number, numbers.Real) and not isinstance(number, bool)
    if not is_number or not minimum <= number < math.inf or int(number) != number:
        raise ValueError(f"`{name}` must be a whole number >= {minimum}{hint}, but is {value!r}.")
    return int(number)
