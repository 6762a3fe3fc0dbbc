"""Measures of the distance between samples and data, one in each file."""

from .sliced_wasserstein import sliced_wasserstein

__all__ = ["sliced_wasserstein"]
