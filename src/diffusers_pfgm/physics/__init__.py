"""The physics of Poisson flow models on tensors (B, *): torch only, readable without knowing diffusers."""

from .charges import Charges
from .class_charges import ClassCharges
from .field import ChargeField, normalized_field, posterior_mean
from .hemisphere import HemisphereLatents, hemisphere_points, interpolate, with_temperature
from .kernel import PoissonKernel
from .parameterization import Parameterization
from .perturbation import PFGMHyperparameters, perturb, recommend_hyperparameters

__all__ = [
    "ChargeField",
    "Charges",
    "ClassCharges",
    "HemisphereLatents",
    "PFGMHyperparameters",
    "Parameterization",
    "PoissonKernel",
    "hemisphere_points",
    "interpolate",
    "normalized_field",
    "perturb",
    "posterior_mean",
    "recommend_hyperparameters",
    "with_temperature",
]
