"""diffusers pipelines for Poisson flow models, one for each task."""

from .pipeline_pfgm import PFGMPipeline, PFGMPipelineOutput
from .pipeline_pfgm_editing import PFGMEditingPipeline
from .pipeline_pfgm_inverse import PFGMInverseOutput, PFGMInversePipeline
from .pipeline_pfgm_likelihood import PFGMLikelihoodOutput, PFGMLikelihoodPipeline

__all__ = [
    "PFGMEditingPipeline",
    "PFGMInverseOutput",
    "PFGMInversePipeline",
    "PFGMLikelihoodOutput",
    "PFGMLikelihoodPipeline",
    "PFGMPipeline",
    "PFGMPipelineOutput",
]
