"""The physics of Poisson flow models on tensors (B, *): torch only, readable without knowing diffusers."""

from .charges import Charges
from .class_charges import ClassCharges
from .field import ChargeField, normalized_field, posterior_mean
from .hyperparameters import Hyperparameters, perturb, recommend_hyperparameters
from .kernel import PoissonKernel
from .latents import HemisphereLatents, hemisphere_points, interpolate, with_temperature
from .parameterization import Parameterization
from .solvers import Step, plan

__all__ = [
    "ChargeField",
    "Charges",
    "ClassCharges",
    "HemisphereLatents",
    "Hyperparameters",
    "Parameterization",
    "PoissonKernel",
    "Step",
    "hemisphere_points",
    "interpolate",
    "normalized_field",
    "perturb",
    "plan",
    "posterior_mean",
    "recommend_hyperparameters",
    "with_temperature",
]
