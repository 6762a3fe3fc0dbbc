"""Imported first by the examples that use more than the package itself."""

from diffusers_pfgm.extras import require_extra

require_extra("examples", "datasets", "matplotlib", "ot", "sklearn", "torchdiffeq")
