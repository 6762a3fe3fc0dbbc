"""Configurations of diffusers' own schedulers, told apart by what their networks have learned."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from diffusers.utils import logging

from .diffusers_classes import SPACED_AS, class_of_config, class_of_name, options_of

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
SHARED_KEYS = {"aug_dim", "prediction_type", "beta_schedule", "trained_betas", "final_sigmas_type", "timesteps_from"}
EDM_KEYS = {"sigma_min", "sigma_max", "sigma_data"}
DDPM_KEYS = {"num_train_timesteps", "beta_start", "beta_end", "rescale_betas_zero_snr"}
DDPM_KEYS |= {"timestep_spacing", "steps_offset"}

FLOW = (
    "a flow-matching scheduler, whose network predicts the velocity between noise and data, not x̂. Use "
    "FlowMatchEulerDiscreteScheduler for it"
)
# The options by which a scheduler chooses its heights by σ rather than by the timestep.
SIGMA_SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
ENDING_AT_SIGMA_MIN = ("DEISMultistepScheduler", "SASolverScheduler")  # which have no option for it
CONSISTENCY = (
    "a consistency scheduler, whose network jumps to the data rather than denoise. Use the scheduler that it came "
    "with, such as LCMScheduler, TCDScheduler, CMStochasticIterativeScheduler or SCMScheduler"
)


def incompatibility(config: Mapping[str, Any]) -> str | None:
    """Why the network of a diffusers scheduler with these options follows no Poisson flow; None if it does."""
    prediction_type = config.get("prediction_type")
    if "shift" in config or config.get("use_flow_sigmas") or prediction_type == "flow_prediction":
        return FLOW
    if "original_inference_steps" in config or "clip_denoised" in config or prediction_type == "trigflow":
        return CONSISTENCY
    if config.get("snr_shift_scale", 1.0) != 1.0:
        return (
            "one of CogVideoX, which shifts its beta schedule (`snr_shift_scale`). Use the scheduler that it came with"
        )
    if is_continuous(config):
        if config.get("sigma_min") and config.get("sigma_max") and any(config.get(name) for name in SIGMA_SPACINGS):
            return None
        return (
            "one of timestep_type 'continuous', whose heights are not those of its beta schedule, but without a "
            "`sigma_min`, a `sigma_max` and `use_karras_sigmas`, which say what they are. Use EDMEulerScheduler"
        )
    if config.get("beta_schedule") is not None or config.get("trained_betas") is not None:
        return None
    # EDM's multistep scheduler names its algorithm; the cosine one, whose c_noise is another, does not.
    cosine = config.get("_class_name") == "CosineDPMSolverMultistepScheduler"
    cosine = cosine or ("solver_order" in config and "algorithm_type" not in config)
    if config.get("sigma_data") is not None and not cosine:
        return None
    return (
        "one without a beta schedule or EDM's `sigma_data`, so what its network sees is unknown. Make a "
        "PoissonFlowScheduler(...) with what you know of the network"
    )


def is_continuous(config: Mapping[str, Any]) -> bool:
    """Whether EulerDiscreteScheduler reads its network as EDM's with `sigma_data` = 1, as in Stable Video Diffusion."""
    return config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction"


def final_sigmas_type(config: Mapping[str, Any], name: str | None) -> str:
    """Where a diffusers scheduler of this class with these options ends, in the words that most of them have for it."""
    if config.get("interpolation_type") == "log_linear" or name in ENDING_AT_SIGMA_MIN:
        return "sigma_min"
    by_alpha = "zero" if config.get("set_alpha_to_one", True) else "sigma_min"  # of DDIM, PNDM and their kind
    return str(config.get("final_sigmas_type", by_alpha))


def timesteps_rule(config: Mapping[str, Any]) -> str | None:
    """The scheduler of diffusers whose timesteps a configuration means that does not say it, by options it has."""
    if "lower_order_final" in config:
        return "DPMSolverMultistepScheduler"
    return "EulerDiscreteScheduler" if "use_karras_sigmas" in config else None


def spaced_by_options(name: str | None, overrides: Mapping[str, Any]) -> str | None:
    """The scheduler whose timesteps are taken, or None if a spacing was asked for that this one has no option for."""
    found = class_of_name(name)
    asked = {"timestep_spacing", "steps_offset"} & overrides.keys()
    return name if found is None or asked <= options_of({}, found).keys() else None


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


def convert_config(config: Mapping[str, Any], overrides: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """A diffusers scheduler's configuration as `PoissonFlowScheduler` takes it.

    It is read as its own class reads it: options that are missing are at that class's defaults, and what earlier
    schedulers have left behind does not count.

    Args:
        config: of a scheduler whose network was trained with Gaussian noise, D = ∞.
        overrides: what the caller sets, options of the other scheduler too; `aug_dim` is None unless it is there.
        names: of the options of `PoissonFlowScheduler`.

    Raises:
        ValueError: if its network is of another kind, or its options do not fit D.
    """
    found_class = class_of_config(config)
    if found_class is None:
        own = {name: value for name, value in config.items() if name != "_use_default_values"}
        rule = timesteps_rule(own)
    else:
        own = options_of(config, found_class)
        rule = SPACED_AS.get(found_class.__name__, found_class.__name__)
        config = {**config, "_class_name": found_class.__name__}
    own.update({name: value for name, value in overrides.items() if name in own})
    reason = incompatibility(own)
    if reason is not None:
        raise ValueError(f"`config` is that of {reason}.")
    left_behind = {name: value for name, value in config.items() if name not in own and name not in names}
    left_behind.pop("_use_default_values", None)
    found = {**left_behind, "prediction_type": "epsilon", **own}
    found["final_sigmas_type"] = final_sigmas_type(own, rule)
    if is_continuous(own):
        found.update(sigma_data=1.0, beta_schedule=None, trained_betas=None)
    elif "sigma_data" not in own:  # of the DDPM family, which has a beta schedule
        found.update(sigma_min=own.get("sigma_min"), sigma_max=own.get("sigma_max"))
    found["timesteps_from"] = spaced_by_options(rule, overrides)
    aug_dim = overrides.get("aug_dim")
    aug_dim = None if aug_dim == math.inf else aug_dim
    check_deterministic({**own, **overrides}, aug_dim)
    if aug_dim is not None:
        logger.warning(
            f"This network was trained with Gaussian noise (D = inf), but `aug_dim` is {aug_dim}: `sample_prior` and "
            "`sample_noise` are heavy-tailed, with radii that the network has never seen. The steps themselves are the "
            "same for every D. Pass `aug_dim=None` to stay with what it knows."
        )
    return {**found, "aug_dim": aug_dim}


def complete_config(config: Mapping[str, Any], overrides: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """A configuration of `PoissonFlowScheduler` with what a caller sets of options that only other schedulers have.

    Args:
        config: of a `PoissonFlowScheduler`, or of another scheduler that was made from one.
        overrides: what the caller sets.
        names: of the options of `PoissonFlowScheduler`.

    Raises:
        ValueError: if the options do not fit D.
    """
    options = {**config, **overrides}
    check_deterministic(options, options.get("aug_dim", 1.0))
    found = {**config, **{name: value for name, value in overrides.items() if name in config and name not in names}}
    # Configurations that were saved before there was `timesteps_from` have only the options that it left behind.
    has_betas = config.get("beta_schedule") is not None or config.get("trained_betas") is not None
    rule = config.get("timesteps_from", timesteps_rule(config) if has_betas else None)
    return {**found, "timesteps_from": spaced_by_options(rule, overrides)}
