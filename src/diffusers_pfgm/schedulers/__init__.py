"""The Poisson flow as a diffusers scheduler, and conversion from and to diffusers' own schedulers."""

from .scheduling_poisson_flow import PoissonFlowScheduler, PoissonFlowSchedulerOutput

__all__ = ["PoissonFlowScheduler", "PoissonFlowSchedulerOutput"]
