"""Measures of the distance between samples and data, one in each file."""

from .frechet_distance import FrechetDistance
from .sliced_wasserstein import sliced_wasserstein

__all__ = ["FrechetDistance", "sliced_wasserstein"]
