"""All claims by their letters."""

from __future__ import annotations

from pathlib import Path

from .calls import few_calls
from .claim import Claim
from .euler import step_sizes
from .field_target import variance_of_the_target
from .latents import likelihood, theorem_one
from .norms import norms_against_z
from .speed import speed
from .weak_networks import weak_networks

LETTERS = list("abcdefgh")


def measure(letter: str, pictures: Path, mnist: str | None) -> Claim:
    """Measure a claim.

    Args:
        letter: the letter of the claim.
        pictures: the folder in which its pictures are saved.
        mnist: MNIST's test images, a folder or a parquet file; None if there are none.
    """
    measures = {
        "a": lambda: few_calls(pictures),
        "b": weak_networks,
        "c": lambda: step_sizes(pictures),
        "d": lambda: norms_against_z(pictures),
        "e": variance_of_the_target,
        "f": lambda: likelihood(mnist),
        "g": lambda: theorem_one(mnist),
        "h": speed,
    }
    return measures[letter]()
