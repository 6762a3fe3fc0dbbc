"""argparse types of numbers in a range. Their errors name the option, its value and the allowed range."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return the argparse type of an integer from `low` to `high`, both included; without an upper limit by default."""
    allowed = f"a whole number >= {low}" if high is None else f"a whole number from {low} to {high}"

    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be {allowed}, but is {text!r}") from None
        if number < low or (high is not None and number > high):
            raise argparse.ArgumentTypeError(f"must be {allowed}, but is {text}")
        return number

    return convert


def number(
    low: float = -math.inf,
    high: float = math.inf,
    above_low: bool = False,
    below_high: bool = False,
    or_infinity: bool = False,
) -> Callable[[str], float]:
    """Return the argparse type of a finite number from `low` to `high`.

    Args:
        low: The smallest allowed number.
        high: The largest allowed number.
        above_low: Whether to exclude `low` itself.
        below_high: Whether to exclude `high` itself.
        or_infinity: Whether to allow "inf" too.
    """
    limits = []
    if low > -math.inf:
        limits.append(f"{'>' if above_low else '>='} {low:g}")
    if high < math.inf:
        limits.append(f"{'<' if below_high else '<='} {high:g}")
    allowed = " ".join(["a finite number", " and ".join(limits)]).rstrip() + (", or inf" if or_infinity else "")

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if or_infinity and value == math.inf:
            return value
        inside = low <= value <= high and math.isfinite(value)
        if not inside or (above_low and value == low) or (below_high and value == high):
            raise argparse.ArgumentTypeError(f"must be {allowed}, but is {text}")
        return value

    return convert


positive = integer(1)
share = number(0, 1, below_high=True)
