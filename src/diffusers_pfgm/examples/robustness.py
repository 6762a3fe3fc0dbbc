"""Small networks for comparisons of D, and errors that are added to a trained model on purpose."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DModel

from ..physics import PoissonKernel
from ..physics.bounded_noise import sample_bounded
from ..physics.tensors import append_dims
from ..training.data.statistics import DataStatistics
from ..training.run.hyperparameters import LEAST_STD, P_MEAN, P_STD
from ..utils.checks import check_whole_number


class NoiseInSteps:
    """A `callback_on_step_end` that adds Gaussian noise α σ n to the samples after each step.

    σ is the noise level after the step, so that the last step adds none if it ends at 0. Each instance draws the same
    random numbers for the same shapes.

    Args:
        alpha: α, the noise in units of σ.

    Reference:
        PFGM++ (arXiv 2302.04265), section 5, on the robustness to errors of the field.
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self.generator = torch.Generator().manual_seed(0)

    def __call__(
        self, pipe: DiffusionPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        latents = tensors["latents"]
        noise = torch.randn(latents.shape, generator=self.generator).to(latents)
        return {"latents": latents + self.alpha * pipe.scheduler.sigmas[step + 1].to(latents) * noise}


def round_weights(unet: UNet2DModel, bits: int) -> UNet2DModel:
    """Return a copy of a network whose weights are rounded to a number of bits, with one scale per output channel.

    Biases and the parameters of normalizations are not rounded.

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


def small_unet_config(width: int, channels: int, resolution: int) -> dict[str, Any]:
    """Return the configuration of a `UNet2DModel` without `sample_size`.

    Args:
        width: the number of channels of the first block, a multiple of 8. The others have twice as many.
        channels: the number of channels of the images.
        resolution: the height and width of the images.
    """
    blocks = 2 if resolution <= 12 else 3
    return {
        "in_channels": channels,
        "out_channels": channels,
        "layers_per_block": 1,
        "block_out_channels": [width] + [2 * width] * (blocks - 1),
        "down_block_types": ["DownBlock2D"] * blocks,
        "up_block_types": ["UpBlock2D"] * blocks,
        "norm_num_groups": 8,
    }


def pfgm_log_noise_moments(images: torch.Tensor) -> tuple[float, float]:
    """Return mean and standard deviation of ln s in a training of PFGM, for the noise levels s of its samples.

    At D = 1 the noise level s = ‖x − y‖/√N of a training sample x = y + σ n varies even at fixed σ. A diffusion model
    whose ln σ is drawn from the normal distribution with these moments is trained on almost the same noise levels.

    Args:
        images: training images (K, C, H, W) in [-1, 1].

    Returns:
        The mean and the standard deviation of ln s, with s in data units: `--p_mean` and `--p_std` of such a diffusion
        model. They are estimated from 10,000 draws with a fixed seed.
    """
    count, generator = 10_000, torch.Generator().manual_seed(0)
    unit = torch.ones(count)
    noise = sample_bounded(PoissonKernel(1.0), (count, *images.shape[1:]), unit, generator, unit.device, unit.dtype)
    log_ratio = noise.flatten(1).square().mean(1).log() / 2  # ln(s / σ)
    std = max(DataStatistics.of_images([images]).std, LEAST_STD)
    mean = math.log(std) + P_MEAN + log_ratio.mean().item()
    return mean, math.sqrt(P_STD**2 + log_ratio.var().item())
