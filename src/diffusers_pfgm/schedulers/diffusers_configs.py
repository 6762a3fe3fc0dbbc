"""Configurations of diffusers' own schedulers: whether their networks define a Poisson flow, and their conversion."""

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

# Options that are passed on to diffusers' schedulers even at our default, as their `from_config` would otherwise use
# its own default.
SHARED_KEYS = {"aug_dim", "prediction_type", "beta_schedule", "trained_betas", "final_sigmas_type", "timesteps_from"}
SHARED_KEYS |= {"prior"}
EDM_KEYS = {"sigma_min", "sigma_max", "sigma_data"}
DDPM_KEYS = {"num_train_timesteps", "beta_start", "beta_end", "rescale_betas_zero_snr"}
DDPM_KEYS |= {"timestep_spacing", "steps_offset"}

FLOW = (
    "a flow-matching scheduler, whose network predicts the velocity between noise and data, not x̂. Use "
    "FlowMatchEulerDiscreteScheduler for it"
)
# Options with which a scheduler spaces its noise levels by σ rather than by the timestep.
SIGMA_SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
ENDING_AT_SIGMA_MIN = ("DEISMultistepScheduler", "SASolverScheduler")  # these have no option for the end
CONSISTENCY = (
    "a consistency scheduler, whose network predicts the end of a path rather than x̂. Use the scheduler that it came "
    "with, such as LCMScheduler, TCDScheduler, CMStochasticIterativeScheduler or SCMScheduler"
)


def incompatibility(config: Mapping[str, Any]) -> str | None:
    """Return why the network of a diffusers scheduler with these options defines no Poisson flow; None if it does.

    The reason completes a sentence such as "`config` belongs to ...".
    """
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
            "one of timestep_type 'continuous', whose noise levels are not those of its beta schedule, but without "
            "`sigma_min`, `sigma_max` and `use_karras_sigmas`, which define them. Use EDMEulerScheduler"
        )
    if config.get("beta_schedule") is not None or config.get("trained_betas") is not None:
        return None
    # EDM's multistep scheduler has `algorithm_type`; the cosine one, which has another c_noise, does not.
    cosine = config.get("_class_name") == "CosineDPMSolverMultistepScheduler"
    cosine = cosine or ("solver_order" in config and "algorithm_type" not in config)
    if config.get("sigma_data") is not None and not cosine:
        return None
    return (
        "one without a beta schedule or EDM's `sigma_data`, so the input of its network is unknown. Make a "
        "PoissonFlowScheduler(...) with the options of the network"
    )


def is_continuous(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is of EulerDiscreteScheduler with EDM's preconditioning and `sigma_data` = 1.

    Stable Video Diffusion has such a configuration.
    """
    return config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction"


def final_sigmas_type(config: Mapping[str, Any], name: str | None) -> str:
    """Return the end of a run of a diffusers scheduler of this class with these options: "zero" or "sigma_min"."""
    is_log_linear = config.get("interpolation_type") == "log_linear" and not any(map(config.get, SIGMA_SPACINGS))
    if is_log_linear or name in ENDING_AT_SIGMA_MIN:
        return "sigma_min"
    by_alpha = "zero" if config.get("set_alpha_to_one", True) else "sigma_min"  # DDIM, PNDM and others
    return str(config.get("final_sigmas_type", by_alpha))


def guess_timesteps_class(config: Mapping[str, Any]) -> str | None:
    """Guess, from its options, the diffusers scheduler whose timesteps a configuration without a class name uses."""
    if "lower_order_final" in config:
        return "DPMSolverMultistepScheduler"
    return "EulerDiscreteScheduler" if "use_karras_sigmas" in config else None


def spaced_by_options(name: str | None, overrides: Mapping[str, Any]) -> str | None:
    """Return `name`, or None if `overrides` has an option of spacing that the scheduler of this name does not have."""
    scheduler_class = class_of_name(name)
    spacing_options = {"timestep_spacing", "steps_offset"} & overrides.keys()
    is_possible = scheduler_class is None or spacing_options <= options_of({}, scheduler_class).keys()
    return name if is_possible else None


def hidden_defaults(names: Iterable[str], has_beta_schedule: bool) -> list[str]:
    """Return those of the options at their default that are not passed on to the `from_config` of other schedulers."""
    passed_on = SHARED_KEYS | (DDPM_KEYS if has_beta_schedule else EDM_KEYS)
    return sorted(set(names) - passed_on)


def refuse_noise(**amounts: float) -> None:
    """Check that options of stochastic samplers, such as `eta` and `s_churn`, are 0.

    Raises:
        ValueError: if one of them is not 0.
    """
    for name, amount in amounts.items():
        if amount:
            raise ValueError(
                f"`{name}` = {amount} asks for noise in each step, but this solver follows the ODE, and Gaussian noise "
                f"is not the kernel of a finite D. Leave `{name}` at 0; at D = inf use DDIMScheduler or "
                "EDMEulerScheduler for a stochastic sampler."
            )


def adds_noise(config: Mapping[str, Any]) -> bool:
    """Whether the `algorithm_type` of a multistep scheduler is a solver of the SDE, which adds noise."""
    return str(config.get("algorithm_type", "")).startswith("sde")


def check_deterministic(config: Mapping[str, Any], aug_dim: float | None) -> None:
    """Check that a solver of the SDE is only used at D = ∞.

    Raises:
        ValueError: if the solver adds noise and D is finite, where the kernel is not Gaussian.
    """
    if adds_noise(config) and aug_dim is not None:
        raise ValueError(
            f"`algorithm_type` {config['algorithm_type']!r} adds Gaussian noise in each step, which is not the kernel "
            f"of `aug_dim` = {aug_dim}. Set `aug_dim=None`, or solve the ODE, `algorithm_type='dpmsolver++'`."
        )


def convert_config(config: Mapping[str, Any], overrides: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Convert the configuration of a diffusers scheduler to one of `PoissonFlowScheduler`.

    It is read as its own class reads it: missing options have that class's defaults, and options that earlier
    schedulers have passed on are ignored.

    Args:
        config: configuration of a scheduler whose network was trained with Gaussian noise, D = ∞.
        overrides: options that the caller sets, also those of the other scheduler. `aug_dim` is None if not set here.
        names: names of the options of `PoissonFlowScheduler`.

    Raises:
        ValueError: if the network defines no Poisson flow, or the solver adds Gaussian noise and `aug_dim` is finite.
    """
    scheduler_class = class_of_config(config)
    if scheduler_class is None:
        own = {name: value for name, value in config.items() if name != "_use_default_values"}
        rule = guess_timesteps_class(own)
    else:
        own = options_of(config, scheduler_class)
        rule = SPACED_AS.get(scheduler_class.__name__, scheduler_class.__name__)
        config = {**config, "_class_name": scheduler_class.__name__}
    own.update({name: value for name, value in overrides.items() if name in own})
    reason = incompatibility(own)
    if reason is not None:
        raise ValueError(f"`config` belongs to {reason}.")
    passed_on = {name: value for name, value in config.items() if name not in own and name not in names}
    passed_on.pop("_use_default_values", None)
    converted = {**passed_on, "prediction_type": "epsilon", **own}
    converted["final_sigmas_type"] = final_sigmas_type(own, rule)
    if is_continuous(own):
        converted.update(sigma_data=1.0, beta_schedule=None, trained_betas=None)
    elif "sigma_data" not in own:  # the DDPM family, which has a beta schedule
        converted.update(sigma_min=own.get("sigma_min"), sigma_max=own.get("sigma_max"))
    converted["timesteps_from"] = spaced_by_options(rule, overrides)
    aug_dim = overrides.get("aug_dim")
    aug_dim = None if aug_dim == math.inf else aug_dim
    check_deterministic({**own, **overrides}, aug_dim)
    if aug_dim is not None:
        logger.warning(
            f"This network was trained with Gaussian noise (D = inf), but `aug_dim` is {aug_dim}: `sample_prior` and "
            "`sample_noise` are heavy-tailed, with radii that do not occur in its training. The steps themselves are "
            "the same for every D. Pass `aug_dim=None` for the distribution of the training."
        )
    return {**converted, "aug_dim": aug_dim}


def complete_config(config: Mapping[str, Any], overrides: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return a configuration of `PoissonFlowScheduler`, with the caller's values of options of other schedulers.

    Args:
        config: configuration of a `PoissonFlowScheduler`, or of another scheduler that was made from one.
        overrides: options that the caller sets.
        names: names of the options of `PoissonFlowScheduler`.

    Raises:
        ValueError: if the solver adds Gaussian noise and `aug_dim` is finite.
    """
    options = {**config, **overrides}
    check_deterministic(options, options.get("aug_dim", 1.0))
    foreign = {name: value for name, value in overrides.items() if name in config and name not in names}
    # Configurations saved by versions without `timesteps_from` still have the options of the diffusers scheduler.
    has_betas = config.get("beta_schedule") is not None or config.get("trained_betas") is not None
    rule = config.get("timesteps_from", guess_timesteps_class(config) if has_betas else None)
    # Configurations that were saved by versions without `prior` start on the plane.
    prior = config.get("prior", "plane" if "_diffusers_version" in config else None)
    return {**config, **foreign, "timesteps_from": spaced_by_options(rule, overrides), "prior": prior}
