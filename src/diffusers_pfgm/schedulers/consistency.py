"""Sampling from a consistency model: alternate the prediction of the data and fresh noise of a smaller level.

A consistency model f(x, σ) maps a point of a field line to the end of that line in one call (arXiv 2303.01469). More
calls improve it: the prediction gets new noise, x' = f(x, σ) + σ' n, and f is called again at σ' (algorithm 1 there).
For a finite D the noise n is that of the Poisson kernel, as in the tuning (`losses.consistency`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from ..physics.tensors import Generators, append_dims, draw
from ..solvers.multistep import Step
from ..solvers.spacing import is_decreasing
from .priors import PriorMixin

NO_ODE = (
    "of a consistency model, which predicts the end of a field line in one call. It follows no ODE, so it has no "
    "likelihood, no inverse and no other solver. Use the model that it was tuned from"
)


def check_consistency_options(options: Mapping[str, Any]) -> None:
    """Check the options of a scheduler that describe a consistency model.

    Raises:
        ValueError: if only some of them are set, or one has a value that is not allowed.
    """
    boundary, sigmas, guidance = (options[f"consistency_{name}"] for name in ("boundary", "sigmas", "guidance"))
    if boundary is None and sigmas is None and guidance is None:
        return
    if boundary is None or sigmas is None:
        raise ValueError(
            "A consistency model needs `consistency_boundary` and `consistency_sigmas`, but they are "
            f"{boundary} and {sigmas}. Set both, or set all three options of a consistency model to None."
        )
    if not (sigmas and is_decreasing(sigmas) and sigmas[0] <= (options["sigma_max"] or math.inf)):
        raise ValueError(
            "`consistency_sigmas` must be positive, strictly decreasing and at most `sigma_max` = "
            f"{options['sigma_max']}, but are {sigmas}."
        )
    if options["final_sigmas_type"] != "zero":
        raise ValueError(
            f"`final_sigmas_type` must be 'zero' for a consistency model, but is {options['final_sigmas_type']!r}."
        )
    if options["solver"] != "multistep":
        raise ValueError(
            f"`solver` must be 'multistep', the default, for a consistency model, but is {options['solver']!r}: such a "
            "model solves no ODE. Leave it out, or use the model that it was tuned from."
        )
    if guidance is not None and not math.isfinite(guidance):
        raise ValueError(f"`consistency_guidance` must be a finite number or None, but is {guidance}.")


def plan_consistency_steps(sigmas: list[float]) -> list[Step]:
    """Plan one call at each σ but the last, whose result replaces the state."""
    return [Step(sigma, 0.0, (1.0,)) for sigma in sigmas[:-1]]


class ConsistencyMixin(PriorMixin):
    """The noise between two calls of a consistency model, as a method of a scheduler."""

    def renoise(self, denoised: torch.Tensor, sigma: float, generator: Generators = None) -> torch.Tensor:
        """Add noise of the kernel to a prediction of a consistency model, for its next call.

        Args:
            denoised: the prediction (B, *), in data units.
            sigma: the noise level σ of the next call, in data units.
            generator: one generator, or a list of B of them.

        Returns:
            (B, *), `denoised` + σ n on the plane σ, with `denoised` clamped to [-1, 1] if `consistency_clip`. If
            pipelines start on the shell (`prior_of`), all n have the norm √N.
        """
        if self.config.consistency_clip:
            denoised = denoised.clamp(-1, 1)
        size = denoised[0].numel()
        if self.prior_of(size) != "shell":
            return denoised + sigma * self.sample_noise(denoised.shape, generator, denoised.device, denoised.dtype)
        noise = draw(torch.randn, tuple(denoised.shape), generator, denoised.device).to(denoised.dtype)
        norm = torch.linalg.vector_norm(noise.flatten(1), dim=1)
        return denoised + sigma * noise * append_dims(math.sqrt(size) / norm, noise.ndim)
