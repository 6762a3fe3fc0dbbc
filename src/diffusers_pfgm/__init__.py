"""Poisson flow generative models (PFGM, PFGM++) for diffusers."""

# diffusers loads schedulers and networks of a package only if the package has these names.
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from .flow.poisson_flow import PoissonFlow
from .flow.results import FlowLatents, FlowLogProb, FlowSamples
from .hub.pretrained import pretrained_model
from .hub.serialization import register
from .inverse import Blur, CompressedSensing, Inpainting, LinearOperator, SuperResolution
from .losses.consistency import ConsistencyObjective
from .losses.distribution_matching import DistributionMatchingObjective
from .losses.field import FieldObjective
from .losses.loss_output import LossOutput
from .losses.perturbation import PerturbationObjective
from .models.edm import DhariwalUNet, SongUNet
from .models.ncsnpp import NCSNpp
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

__version__ = "0.2.0.dev0"

register()

__all__ = [
    "Blur",
    "ChargeField",
    "Charges",
    "ClassCharges",
    "CompressedSensing",
    "ConsistencyObjective",
    "DhariwalUNet",
    "DistributionMatchingObjective",
    "FieldObjective",
    "FlowLatents",
    "FlowLogProb",
    "FlowSamples",
    "HemisphereLatents",
    "Inpainting",
    "LinearOperator",
    "LossOutput",
    "ModelMixin",
    "NCSNpp",
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
    "SongUNet",
    "SuperResolution",
    "fit_sigmas",
    "normalized_field",
    "perturb",
    "plan_steps",
    "posterior_mean",
    "pretrained_model",
    "recommend_hyperparameters",
]

# A saved pipeline names the module of each component. It names this package, so that it loads after a file is moved.
for _name in __all__:
    _value = globals()[_name]
    _is_component = isinstance(_value, type) and issubclass(_value, SchedulerMixin | ModelMixin)
    if _is_component and _value.__module__.startswith(f"{__name__}."):
        _value.__module__ = __name__
del _name, _value, _is_component
