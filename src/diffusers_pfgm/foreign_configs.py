"""Configurations of diffusers' own schedulers, told apart by what their networks have learned."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from diffusers.utils import logging

from .physics.kernel import check_aug_dim

logger = logging.get_logger(__name__)

DDPM_COMPATIBLES = [
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
]
EDM_COMPATIBLES = ["EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"]

# What diffusers' schedulers must be told even where it is our default, lest `from_config` give them their own.
SHARED_KEYS = {"aug_dim", "prediction_type", "beta_schedule", "trained_betas", "final_sigmas_type"}
EDM_KEYS = {"sigma_min", "sigma_max", "sigma_data"}
DDPM_KEYS = {"num_train_timesteps", "beta_start", "beta_end", "rescale_betas_zero_snr"}
DDPM_KEYS |= {"timestep_spacing", "steps_offset"}

FLOW = (
    "a flow-matching scheduler, whose network predicts the velocity between noise and data, not x̂. Use "
    "FlowMatchEulerDiscreteScheduler for it"
)
CONSISTENCY = (
    "a consistency scheduler, whose network jumps to the data rather than denoise. Use the scheduler that it came "
    "with, such as LCMScheduler, TCDScheduler, CMStochasticIterativeScheduler or SCMScheduler"
)


def refusal(config: Mapping[str, Any]) -> str | None:
    """Why the network of a diffusers scheduler with this configuration follows no Poisson flow; None if it does."""
    prediction_type = config.get("prediction_type")
    if "shift" in config or config.get("use_flow_sigmas") or prediction_type == "flow_prediction":
        return FLOW
    if "original_inference_steps" in config or "clip_denoised" in config or prediction_type == "trigflow":
        return CONSISTENCY
    if config.get("snr_shift_scale", 1.0) != 1.0:
        return (
            "one of CogVideoX, which shifts its beta schedule (`snr_shift_scale`). Use the scheduler that it came with"
        )
    if config.get("timestep_type") == "continuous":
        return (
            "one of timestep_type 'continuous', whose heights are not those of its beta schedule. Use EDMEulerScheduler"
        )
    if config.get("beta_schedule") is not None or config.get("trained_betas") is not None:
        return None
    # EDM's multistep scheduler names its algorithm; the cosine one, whose c_noise is another, does not.
    if config.get("sigma_data") is not None and ("solver_order" not in config or "algorithm_type" in config):
        return None
    return (
        "one without a beta schedule or EDM's `sigma_data`, so what its network sees is unknown. Make a "
        "PoissonFlowScheduler(...) with what you know of the network"
    )


def timesteps_rule(config: Mapping[str, Any]) -> str:
    """The scheduler of diffusers whose timesteps a configuration means; three kinds space them each in its own way."""
    if "lower_order_final" in config:
        return "DPMSolverMultistepScheduler"
    if "use_karras_sigmas" in config:
        return "EulerDiscreteScheduler"
    return "DDIMScheduler"


def hidden_defaults(names: Iterable[str], has_beta_schedule: bool) -> list[str]:
    """Of the options left at their default, those that `from_config` of another scheduler need not be told."""
    told = SHARED_KEYS | (DDPM_KEYS if has_beta_schedule else EDM_KEYS)
    return sorted(set(names) - told)


def refuse_noise(**amounts: float) -> None:
    """Raises ValueError for options of a stochastic sampler other than 0, such as `eta` and `s_churn`."""
    for name, amount in amounts.items():
        if amount:
            raise ValueError(
                f"`{name}` = {amount} asks for noise on the way, but this solver follows the ODE, and Gaussian noise "
                f"is not the kernel of a finite D. Leave `{name}` at 0; at D = inf use DDIMScheduler or "
                "EDMEulerScheduler for a stochastic sampler."
            )


def adds_noise(config: Mapping[str, Any]) -> bool:
    """Whether a multistep solver is that of an SDE, by its algorithm."""
    return str(config.get("algorithm_type", "")).startswith("sde")


def check_deterministic(config: Mapping[str, Any], aug_dim: float | None) -> None:
    """Raises ValueError for a stochastic solver at finite D, whose kernel is not its Gaussian noise."""
    if adds_noise(config) and aug_dim is not None:
        raise ValueError(
            f"`algorithm_type` {config['algorithm_type']!r} adds Gaussian noise on its way, which is not the kernel of "
            f"`aug_dim` = {aug_dim}. Set `aug_dim=None`, or take the ODE, `algorithm_type='dpmsolver++'`."
        )


def adopted(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A diffusers scheduler's configuration as `PoissonFlowScheduler` takes it, its default values included.

    Args:
        config: of a scheduler whose network was trained with Gaussian noise, D = ∞.
        overrides: what the caller sets; `aug_dim` is None unless it is there.

    Raises:
        ValueError: if its network is of another kind, or its options do not fit D.
    """
    reason = refusal(config)
    if reason is not None:
        raise ValueError(f"`config` is that of {reason}.")
    found = {"prediction_type": "epsilon", **{k: v for k, v in config.items() if k != "_use_default_values"}}
    for name in ("sigma_min", "sigma_max"):
        if found.get(name) is None:  # of the DDPM family, which has a beta schedule
            found.pop(name, None)
    if found.get("set_alpha_to_one") is False:  # the end of DDIM and PNDM, by the name that the others give it
        found.setdefault("final_sigmas_type", "sigma_min")
    aug_dim = overrides.get("aug_dim")
    aug_dim = None if math.isinf(check_aug_dim(aug_dim)) else aug_dim
    check_deterministic({**found, **overrides}, aug_dim)
    if aug_dim is not None:
        logger.warning(
            f"This network was trained with Gaussian noise (D = inf), but `aug_dim` is {aug_dim}: `sample_prior` and "
            "`sample_noise` are heavy-tailed, with radii that the network has never seen. The steps themselves are the "
            "same for every D. Pass `aug_dim=None` to stay with what it knows."
        )
    return {**found, "aug_dim": aug_dim}
