"""Numerical methods for the ordinary differential equation (ODE) of the flow."""

from .multistep import Step, integrate, integration_steps, plan_steps
from .spacing import geometric_sigmas, knotted_sigmas

__all__ = ["Step", "geometric_sigmas", "integrate", "integration_steps", "knotted_sigmas", "plan_steps"]
