"""The Poisson flow as a scheduler of diffusers, and the exchange with diffusers' own schedulers."""

from .fit_sigmas import fit_sigmas
from .scheduling_poisson_flow import PoissonFlowScheduler, PoissonFlowSchedulerOutput

__all__ = ["PoissonFlowScheduler", "PoissonFlowSchedulerOutput", "fit_sigmas"]
