"""Figures that tell how close samples are to data, one a file."""

from .sliced_wasserstein import sliced_wasserstein

__all__ = ["sliced_wasserstein"]
