"""Errors that are added to a trained model on purpose, to measure how much its samples depend on them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DModel

from ..physics.tensors import append_dims
from ..utils.checks import check_whole_number


class NoiseInSteps:
    """A `callback_on_step_end` that adds Gaussian noise α σ n to the samples after each step.

    σ is the noise level after the step, so that the last step adds none if it ends at 0. The random numbers follow from
    a seed; a new instance draws the same for the same shapes.

    Args:
        alpha: α, the noise in units of σ.
        seed: the seed of the noise.

    Reference:
        PFGM++ (arXiv 2302.04265), section 5, on the robustness to errors of the field.
    """

    def __init__(self, alpha: float, seed: int = 0) -> None:
        self.alpha = alpha
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(
        self, pipe: DiffusionPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        latents = tensors["latents"]
        noise = torch.randn(latents.shape, generator=self.generator).to(latents)
        return {"latents": latents + self.alpha * pipe.scheduler.sigmas[step + 1].to(latents) * noise}


def round_weights(unet: UNet2DModel, bits: int) -> UNet2DModel:
    """Return a copy of a network whose weights are rounded to a number of bits, with one scale per output channel.

    Biases and the parameters of normalizations are kept.

    Args:
        unet: the network.
        bits: the number of bits of a weight, at least 2.

    Raises:
        ValueError: if `bits` is not a whole number ≥ 2.
    """
    check_whole_number("bits", bits, 2)
    unet = copy.deepcopy(unet)
    limit = 2 ** (bits - 1) - 1
    for weight in (parameter.data for parameter in unet.parameters() if parameter.ndim > 1):
        wide = weight.float()
        largest = append_dims(wide.flatten(1).abs().amax(1), weight.ndim)
        scale = (largest / limit).clamp_min(torch.finfo(wide.dtype).tiny)
        weight.copy_((wide / scale).round() * scale)
    return unet
