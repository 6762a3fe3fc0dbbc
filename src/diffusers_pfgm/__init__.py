"""Poisson flow generative models (PFGM, PFGM++) for diffusers."""

# diffusers loads schedulers and networks only from a package that has these.
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from .flow.poisson_flow import PoissonFlow
from .flow.results import FlowLatents, FlowLogProb, FlowSamples
from .hub.serialization import register
from .inverse import Blur, CompressedSensing, Inpainting, LinearOperator, SuperResolution
from .losses.field import FieldObjective
from .losses.loss_output import LossOutput
from .losses.perturbation import PerturbationObjective
from .physics import (
    ChargeField,
    Charges,
    ClassCharges,
    HemisphereLatents,
    Parameterization,
    PFGMHyperparameters,
    PoissonKernel,
    normalized_field,
    perturb,
    posterior_mean,
    recommend_hyperparameters,
)
from .pipelines.pipeline_pfgm import PFGMPipeline, PFGMPipelineOutput
from .pipelines.pipeline_pfgm_editing import PFGMEditingPipeline
from .pipelines.pipeline_pfgm_inverse import PFGMInverseOutput, PFGMInversePipeline
from .pipelines.pipeline_pfgm_likelihood import PFGMLikelihoodOutput, PFGMLikelihoodPipeline
from .schedulers.fit_sigmas import fit_sigmas
from .schedulers.scheduling_poisson_flow import PoissonFlowScheduler, PoissonFlowSchedulerOutput
from .solvers import plan_steps

__version__ = "0.1.0"

register()

__all__ = [
    "Blur",
    "ChargeField",
    "Charges",
    "ClassCharges",
    "CompressedSensing",
    "FieldObjective",
    "FlowLatents",
    "FlowLogProb",
    "FlowSamples",
    "HemisphereLatents",
    "Inpainting",
    "LinearOperator",
    "LossOutput",
    "ModelMixin",
    "PFGMEditingPipeline",
    "PFGMHyperparameters",
    "PFGMInverseOutput",
    "PFGMInversePipeline",
    "PFGMLikelihoodOutput",
    "PFGMLikelihoodPipeline",
    "PFGMPipeline",
    "PFGMPipelineOutput",
    "Parameterization",
    "PerturbationObjective",
    "PoissonFlow",
    "PoissonFlowScheduler",
    "PoissonFlowSchedulerOutput",
    "PoissonKernel",
    "SchedulerMixin",
    "SuperResolution",
    "fit_sigmas",
    "normalized_field",
    "perturb",
    "plan_steps",
    "posterior_mean",
    "recommend_hyperparameters",
]

# Saved models name this package, not the file in it, so that moving a file breaks none of them.
for _name in __all__:
    _value = globals()[_name]
    if isinstance(_value, type) and _value.__module__.startswith(f"{__name__}."):
        _value.__module__ = __name__
