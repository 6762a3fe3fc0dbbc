"""The flow of a model as an invertible map between data and prior, with its log-densities."""

from .poisson_flow import PoissonFlow
from .results import FlowLatents, FlowLogProb, FlowSamples

__all__ = ["FlowLatents", "FlowLogProb", "FlowSamples", "PoissonFlow"]
