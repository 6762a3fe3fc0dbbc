"""All claims by their letters."""

from __future__ import annotations

from pathlib import Path

from .calls import few_calls
from .claim import Claim

LETTERS = ["a"]


def measure(letter: str, pictures: Path, mnist: str | None) -> Claim:
    return few_calls(pictures)
