"""A claim with the checks that decide it. The bounds of the checks are fixed before the measurement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scipy import stats

CONFIRMED = "confirmed"
REFUTED = "refuted"
NOT_MEASURABLE = "not measurable here"  # an interval contains the bound, or nothing was measured; the page says which
CONFIDENCE = 0.95  # the confidence level of the intervals over seeds

Cell = str | int | float | list[float]  # a list has one value for each seed


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of values, one for each seed, and half the width of its 95 % interval (Student's t).

    The interval of a single value, which does not depend on a seed, has the width 0.

    Examples:
        >>> [round(number, 3) for number in interval([1.0, 2.0, 3.0])]
        [2.0, 2.484]
    """
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return mean, 0.0
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * math.sqrt(variance / count)


@dataclass(frozen=True)
class Check:
    """One quantity with the bound that it must be above or below.

    Attributes:
        quantity: what is measured.
        relation: "above" or "below".
        bound: the bound.
        values: the measured values, one for each seed.
    """

    quantity: str
    relation: str
    bound: float
    values: list[float]

    @property
    def verdict(self) -> str:
        """Confirmed if the whole interval is on the claimed side of the bound, and refuted if it is on the other side.

        If the interval contains the bound, the result is inconclusive, which counts as not measurable at this size.
        """
        mean, half_width = interval(self.values)
        if abs(mean - self.bound) <= half_width:
            return NOT_MEASURABLE
        return CONFIRMED if (mean > self.bound) == (self.relation == "above") else REFUTED


@dataclass(frozen=True)
class Claim:
    """A claim, how it is checked, and what was measured.

    Attributes:
        title: the heading of its section.
        statement: the claim in one sentence.
        source: the paper and its section.
        method: how the claim is checked, and what is left out.
        checks: the checks that decide it; none if it could not be measured.
        header: the names of the table's columns.
        rows: the rows of the table.
        sizes: seeds and sizes of the measurement.
        pictures: descriptions by the name of the file in docs/pictures.
        missing: why the claim could not be measured; None if it was.
    """

    title: str
    statement: str
    source: str
    method: str
    checks: list[Check] = field(default_factory=list)
    header: list[str] = field(default_factory=list)
    rows: list[list[Cell]] = field(default_factory=list)
    sizes: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    missing: str | None = None

    @property
    def verdict(self) -> str:
        """Refuted if one check is, confirmed if all are, and otherwise, or without checks, not measurable here."""
        verdicts = {check.verdict for check in self.checks}
        if REFUTED in verdicts:
            return REFUTED
        return CONFIRMED if verdicts == {CONFIRMED} else NOT_MEASURABLE
