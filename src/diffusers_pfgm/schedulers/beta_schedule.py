"""Noise levels of networks of the DDPM family, computed from their beta schedule by diffusers' own code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import DDIMScheduler

from ..physics.preconditioning import ZERO_SNR_SIGMA

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
SPACINGS = ("leading", "trailing", "linspace")


class BetaSchedule:
    """The noise level of each training timestep of a network of the DDPM family (arXiv 2006.11239).

    The DDPM's state √ᾱ x₀ + √(1 − ᾱ) ε is x / √(1 + σ²) with x = x₀ + σ ε and √ᾱ = 1 / √(1 + σ²).

    Args:
        beta_schedule: "linear", "scaled_linear" or "squaredcos_cap_v2"; ignored with `trained_betas`.
        trained_betas: list of T betas in place of `beta_schedule`, or None.
        num_train_timesteps: T; ignored with `trained_betas`.
        beta_start, beta_end: the first and the last β, as in diffusers.
        rescale_betas_zero_snr: whether to rescale the betas such that the last timestep is pure noise, σ = ∞
            (arXiv 2305.08891).

    Attributes:
        betas: (T,).
        alphas_cumprod: (T,), ᾱ.
        sigmas: σ at each of the T timesteps, increasing.

    Raises:
        ValueError: if `beta_schedule` is unknown, or a beta makes σ infinite, zero or equal to the previous σ.
    """

    def __init__(
        self,
        beta_schedule: str | None,
        trained_betas: Sequence[float] | None,
        num_train_timesteps: int,
        beta_start: float,
        beta_end: float,
        rescale_betas_zero_snr: bool,
    ) -> None:
        if trained_betas is None and beta_schedule not in BETA_SCHEDULES:
            raise ValueError(f"`beta_schedule` must be one of {BETA_SCHEDULES} or None, but is {beta_schedule!r}.")
        with torch.device("cpu"):  # whatever torch's default device is: MPS has no float64
            schedule = DDIMScheduler(
                num_train_timesteps=num_train_timesteps if trained_betas is None else len(trained_betas),
                beta_start=beta_start,
                beta_end=beta_end,
                beta_schedule=beta_schedule,
                trained_betas=trained_betas,
                rescale_betas_zero_snr=rescale_betas_zero_snr,
            )
        self.betas = schedule.betas
        self.alphas_cumprod = schedule.alphas_cumprod
        alphas = self.alphas_cumprod.double()
        # A valid β is neither so large that ᾱ becomes 0, nor so small that ᾱ does not change in float32.
        is_valid = (self.betas > 0) & (self.betas < 1) & (alphas > 0)
        is_valid &= alphas.diff(prepend=alphas.new_ones(1)) < 0
        if rescale_betas_zero_snr:
            is_valid[-1] = True
        if not is_valid.all():
            index = int((~is_valid).nonzero()[0])
            raise ValueError(
                f"The betas make sigma infinite, zero or meaningless: beta[{index}] = {self.betas[index]:.4g} gives "
                f"alpha_cumprod = {alphas[index]:.4g}. All betas must be between 1e-7 and 1, and the product of all "
                "1 - beta must be positive: change `beta_start`, `beta_end`, `trained_betas` or `num_train_timesteps`. "
                "For pure noise at the last timestep use `rescale_betas_zero_snr`."
            )
        sigmas = ((1 - alphas) / alphas).sqrt().clamp(max=ZERO_SNR_SIGMA)
        self.sigmas: tuple[float, ...] = tuple(sigmas.tolist())
