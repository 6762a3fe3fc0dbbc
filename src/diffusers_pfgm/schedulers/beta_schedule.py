"""Networks of the DDPM family: their heights from a beta schedule, by diffusers' own code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import DDIMScheduler

from ..physics.preconditioning import ZERO_SNR_SIGMA

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
SPACINGS = ("leading", "trailing", "linspace")


class BetaSchedule:
    """The training timesteps of a network that DDPM's or a kindred scheduler has trained (arXiv 2006.11239).

    Its state x / √(1 + σ²) is the DDPM's, √ᾱ = 1 / √(1 + σ²).

    Args:
        beta_schedule: "linear", "scaled_linear" or "squaredcos_cap_v2"; not read with `trained_betas`.
        trained_betas: the betas themselves.
        rescale_betas_zero_snr: let the last timestep be pure noise (arXiv 2305.08891); it then stands for σ = ∞.
        beta_start, beta_end, num_train_timesteps: as in diffusers.

    Attributes:
        betas: (T,).
        alphas_cumprod: (T,), ᾱ.
        sigmas: σ at each of the T timesteps, rising.

    Raises:
        ValueError: if an argument is not one of these, or a beta makes σ infinite or 0.
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
        schedule = DDIMScheduler(
            num_train_timesteps=num_train_timesteps if trained_betas is None else len(trained_betas),
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
            trained_betas=trained_betas,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
        )
        self.betas, self.alphas_cumprod = schedule.betas, schedule.alphas_cumprod
        alphas = self.alphas_cumprod.double()
        # Neither so large that ᾱ ends at 0, nor so small that it stays the same in float32.
        proper = (self.betas > 0) & (self.betas < 1) & (alphas > 0)
        proper &= alphas.diff(prepend=torch.ones(1, dtype=alphas.dtype)) < 0
        if rescale_betas_zero_snr:
            proper[-1] = True
        if not proper.all():
            index = int((~proper).nonzero()[0])
            raise ValueError(
                f"The betas make sigma infinite, zero or meaningless: beta[{index}] = {self.betas[index]:.4g} gives "
                f"alpha_cumprod = {alphas[index]:.4g}. All betas must lie between 1e-7 and 1, and their product of "
                "1 - beta stay positive: change `beta_start`, `beta_end`, `trained_betas` or `num_train_timesteps`. "
                "For pure noise at the last timestep use `rescale_betas_zero_snr`."
            )
        sigmas = ((1 - alphas) / alphas).sqrt().clamp(max=ZERO_SNR_SIGMA)
        self.sigmas: tuple[float, ...] = tuple(sigmas.tolist())
