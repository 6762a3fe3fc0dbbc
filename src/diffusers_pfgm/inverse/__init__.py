"""Inverse problems: samples of the posterior given a measurement, by guidance or by Markov chains over the latent."""

from .latent_sampling import LatentSampler, LatentSamples
from .linear_operator import LinearOperator, check_adjoint
from .linearization import linearized
from .measurement_guidance import GUIDANCE_METHODS, GuidedByMeasurement
from .operators import Blur, CompressedSensing, Inpainting, SuperResolution

__all__ = [
    "GUIDANCE_METHODS",
    "Blur",
    "CompressedSensing",
    "GuidedByMeasurement",
    "Inpainting",
    "LatentSampler",
    "LatentSamples",
    "LinearOperator",
    "SuperResolution",
    "check_adjoint",
    "linearized",
]
