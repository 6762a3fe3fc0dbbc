"""Networks of the DDPM family: their heights from a beta schedule, and their timesteps, both by diffusers' own code."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from .physics.parameterization import ZERO_SNR_SIGMA

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
RULES = {rule.__name__: rule for rule in (DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler)}
SPACINGS = ("leading", "trailing", "linspace")


class DDPMFamily:
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
        trained_betas: Any,
        num_train_timesteps: int,
        beta_start: float,
        beta_end: float,
        rescale_betas_zero_snr: bool,
    ) -> None:
        if trained_betas is None and beta_schedule not in BETA_SCHEDULES:
            raise ValueError(f"`beta_schedule` must be one of {BETA_SCHEDULES} or None, but is {beta_schedule!r}.")
        count = num_train_timesteps if trained_betas is None else len(trained_betas)
        if count < 1:
            raise ValueError(
                f"`num_train_timesteps`, or the length of `trained_betas`, must be at least 1, but is {count}."
            )
        self._schedule = DDIMScheduler(
            num_train_timesteps=count,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
            trained_betas=trained_betas,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
        )
        self.betas, self.alphas_cumprod = self._schedule.betas, self._schedule.alphas_cumprod
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

    def timesteps(self, count: int, spacing: str, offset: int, rule: str = "DDIMScheduler") -> list[float]:
        """`count` timesteps, falling, the same as diffusers'.

        Args:
            count: at most T.
            spacing: "leading", "trailing" or "linspace" (arXiv 2305.08891, table 2).
            offset: added to those of "leading".
            rule: the scheduler whose timesteps they are; see `timesteps_rule`.

        Raises:
            ValueError: if there are not so many, or `offset` shifts them out of the trained ones.
        """
        trained = len(self.sigmas)
        if count > trained:
            raise ValueError(f"`num_inference_steps` must be at most the {trained} timesteps trained, but is {count}.")
        options = {"timestep_spacing": spacing, "steps_offset": offset, "rescale_betas_zero_snr": False}
        schedule = RULES[rule].from_config(self._schedule.config, **options)
        schedule.set_timesteps(count)
        timesteps: list[float] = schedule.timesteps.tolist()[:count]  # "trailing" may round itself one too many
        if len(timesteps) < count or not 0 <= timesteps[-1] <= timesteps[0] < trained:
            raise ValueError(
                f"`timestep_spacing` {spacing!r} with `steps_offset` = {offset} gives {len(timesteps)} timesteps from "
                f"{timesteps[0]} in place of {count} within 0 to {trained - 1}, those trained. Set `steps_offset` to 0 "
                "or take fewer steps."
            )
        return timesteps
