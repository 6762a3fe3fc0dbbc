"""Numerical methods that follow the flow's ordinary differential equation."""

from .multistep import Step, plan
from .spacing import geometric_sigmas, knotted_sigmas

__all__ = ["Step", "geometric_sigmas", "knotted_sigmas", "plan"]
