"""The flow as an invertible map between data and the prior, with the densities that it carries."""

from .poisson_flow import PoissonFlow
from .results import FlowLatents, FlowLogProb, FlowSamples

__all__ = ["FlowLatents", "FlowLogProb", "FlowSamples", "PoissonFlow"]
