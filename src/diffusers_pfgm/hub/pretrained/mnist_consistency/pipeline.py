# Lets DiffusionPipeline.from_pretrained(..., trust_remote_code=True) load this folder.
from diffusers_pfgm import PFGMPipeline  # noqa: F401
