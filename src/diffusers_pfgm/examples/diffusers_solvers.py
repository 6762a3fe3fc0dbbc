"""Multistep solvers of diffusers on the field lines of any Poisson flow model, to compare them with ours.

The classes of diffusers solve the ODE for the state x/√(1 + σ²). They need nothing but x̂ of each state
(`prediction_type="sample"`) and the noise levels, so that they run on the ODE dx/dσ = (x − x̂)/σ at every D.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DEISMultistepScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

from ..physics.denoiser import Denoise, Denoiser
from ..pipelines.class_conditioning import Label
from ..pipelines.pipeline_pfgm import PFGMPipeline
from ..schedulers import PoissonFlowScheduler

SOLVER_ORDER = 3  # the largest order of these classes, and the default of ours
DIFFUSERS_SOLVERS: dict[str, Any] = {
    "UniPC (diffusers)": UniPCMultistepScheduler,
    "DPM-Solver++ (diffusers)": DPMSolverMultistepScheduler,
    "DEIS (diffusers)": DEISMultistepScheduler,
}


@torch.no_grad()
def draw_by_diffusers(
    name: str,
    pipe: PFGMPipeline,
    latents: torch.Tensor,
    sigmas: Sequence[float],
    labels: list[Label] | None = None,
    guidance_scale: float = 1.0,
) -> torch.Tensor:
    """Draw images with the network of a pipeline, by a solver of diffusers, from the prior of the pipeline's scheduler.

    Args:
        name: a key of `DIFFUSERS_SOLVERS`.
        pipe: the pipeline, with a `PoissonFlowScheduler`.
        latents: (B, C, H, W), latents at the first σ, as for the pipeline.
        sigmas: noise level of each network call, decreasing and positive, from the largest σ of the scheduler.
        labels: the class of each image, or one for all; None for no condition.
        guidance_scale: the scale of classifier-free guidance; 1 for no guidance.

    Returns:
        (B, C, H, W), in [-1, 1].
    """
    scheduler = PoissonFlowScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(sigmas=sigmas, device=latents.device)
    model_kwargs = pipe.prepare_class_labels(labels, len(latents), latents.device)
    model = pipe.prepare_model(scheduler, labels, model_kwargs, guidance_scale)
    denoiser = Denoiser(model, scheduler.parameterization, pipe.unet.dtype)
    x = scheduler.move_to_prior(latents) * scheduler.data_scale(sigmas[0])

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        # On the hemisphere each sample has its own σ. A solver depends on ratios of the σ's only, which are equal.
        return denoiser(x, scheduler.sigma_of_samples(sigma))

    return integrate_by_diffusers(name, denoise, x, sigmas).clamp(-1, 1)


def integrate_by_diffusers(name: str, denoise: Denoise, x: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """Follow the field lines to σ = 0 by a solver of diffusers. The last step is x' = x̂, as in our solvers.

    Args:
        name: a key of `DIFFUSERS_SOLVERS`.
        denoise: x̂ (B, C, H, W) as a function of x and σ.
        x: points at the first σ, (B, C, H, W), in data units.
        sigmas: noise level of each network call, decreasing and positive.

    Returns:
        (B, C, H, W), in data units.
    """
    scheduler = DIFFUSERS_SOLVERS[name](prediction_type="sample", solver_order=SOLVER_ORDER)
    scheduler.set_timesteps(len(sigmas))
    # These classes choose noise levels for timesteps that were trained, which a network for any σ does not have.
    scheduler.sigmas = torch.tensor([*sigmas, 0.0], dtype=torch.float32)
    scheduler.set_begin_index(0)
    for index, timestep in enumerate(scheduler.timesteps[:-1]):
        scale, next_scale = math.hypot(1, sigmas[index]), math.hypot(1, sigmas[index + 1])
        x = next_scale * scheduler.step(denoise(x, sigmas[index]), timestep, x / scale).prev_sample
    return denoise(x, sigmas[-1])


def karras_sigmas(sigma_max: float, sigma_min: float, count: int) -> list[float]:
    """Return the noise levels of EDM (arXiv 2206.00364, equation 5, ρ = 7), the usual ones of these solvers."""
    roots = torch.linspace(sigma_max ** (1 / 7), sigma_min ** (1 / 7), count, dtype=torch.float64)
    return roots.pow(7).tolist()
