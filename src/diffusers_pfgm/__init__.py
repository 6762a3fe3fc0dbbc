"""Poisson flow generative models (PFGM, PFGM++) for diffusers."""

from diffusers.schedulers.scheduling_utils import SchedulerMixin  # diffusers loads schedulers only from where it is

from .fitting import fit_sigmas
from .losses import FieldObjective, LossOutput, PerturbationObjective
from .physics import (
    ChargeField,
    Charges,
    ClassCharges,
    Hyperparameters,
    Parameterization,
    PoissonKernel,
    normalized_field,
    perturb,
    plan,
    posterior_mean,
    recommend_hyperparameters,
)
from .pipeline_pfgm import PFGMPipeline, PFGMPipelineOutput
from .saved_folder import register
from .scheduling_poisson_flow import PoissonFlowScheduler, PoissonFlowSchedulerOutput

__version__ = "0.1.0"

register()

# Published models name this module, not the file in it, so that moving a file breaks none of them.
PoissonFlowScheduler.__module__ = __name__

__all__ = [
    "ChargeField",
    "Charges",
    "ClassCharges",
    "FieldObjective",
    "Hyperparameters",
    "LossOutput",
    "PFGMPipeline",
    "PFGMPipelineOutput",
    "Parameterization",
    "PerturbationObjective",
    "PoissonFlowScheduler",
    "PoissonFlowSchedulerOutput",
    "PoissonKernel",
    "SchedulerMixin",
    "fit_sigmas",
    "normalized_field",
    "perturb",
    "plan",
    "posterior_mean",
    "recommend_hyperparameters",
]
