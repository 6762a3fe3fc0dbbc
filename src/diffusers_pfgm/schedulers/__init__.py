"""The Poisson flow as a scheduler of diffusers, and the exchange with diffusers' own schedulers."""

from .scheduling_poisson_flow import PoissonFlowScheduler, PoissonFlowSchedulerOutput

__all__ = ["PoissonFlowScheduler", "PoissonFlowSchedulerOutput"]
