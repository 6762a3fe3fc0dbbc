"""Noise levels of networks of the DDPM family, computed from their beta schedule by diffusers' own code."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler

from ..physics.preconditioning import ZERO_SNR_SIGMA

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
SPACINGS = ("leading", "trailing", "linspace")


def beta_tables(config: Any) -> tuple[torch.Tensor, torch.Tensor, tuple[float, ...]]:
    """Return the betas and noise levels of the T training timesteps of a DDPM-family network (arXiv 2006.11239).

    The DDPM's state √ᾱ x₀ + √(1 − ᾱ) ε is x / √(1 + σ²) with x = x₀ + σ ε and √ᾱ = 1 / √(1 + σ²).

    Args:
        config: the configuration of a scheduler with a `beta_schedule` or `trained_betas`, which take precedence. With
            `rescale_betas_zero_snr` the last timestep is pure noise, σ = ∞ (arXiv 2305.08891).

    Returns:
        β (T,), ᾱ (T,), and σ at each of the T timesteps, increasing.

    Raises:
        ValueError: if `beta_schedule` is unknown, or a beta makes σ infinite, zero or equal to the previous σ.
    """
    trained_betas = config.trained_betas
    if trained_betas is None and config.beta_schedule not in BETA_SCHEDULES:
        raise ValueError(f"`beta_schedule` must be one of {BETA_SCHEDULES} or None, but is {config.beta_schedule!r}.")
    with torch.device("cpu"):  # whatever torch's default device is: MPS has no float64
        schedule = DDIMScheduler(
            num_train_timesteps=config.num_train_timesteps if trained_betas is None else len(trained_betas),
            beta_start=config.beta_start,
            beta_end=config.beta_end,
            beta_schedule=config.beta_schedule,
            trained_betas=trained_betas,
            rescale_betas_zero_snr=config.rescale_betas_zero_snr,
        )
    betas = schedule.betas
    alphas = schedule.alphas_cumprod.double()
    # A valid β is neither so large that ᾱ becomes 0, nor so small that ᾱ does not change in float32.
    is_valid = (betas > 0) & (betas < 1) & (alphas > 0)
    is_valid &= alphas.diff(prepend=alphas.new_ones(1)) < 0
    if config.rescale_betas_zero_snr:
        is_valid[-1] = True
    if not is_valid.all():
        index = int((~is_valid).nonzero()[0])
        raise ValueError(
            f"The betas make sigma infinite, zero or meaningless: beta[{index}] = {betas[index]:.4g} gives "
            f"alpha_cumprod = {alphas[index]:.4g}. All betas must be between 1e-7 and 1, and the product of all "
            "1 - beta must be positive: change `beta_start`, `beta_end`, `trained_betas` or `num_train_timesteps`. "
            "For pure noise at the last timestep use `rescale_betas_zero_snr`."
        )
    sigmas = ((1 - alphas) / alphas).sqrt().clamp(max=ZERO_SNR_SIGMA)
    return betas, schedule.alphas_cumprod, tuple(sigmas.tolist())
