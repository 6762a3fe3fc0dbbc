"""Any scheduler as a Poisson flow."""

from __future__ import annotations

import inspect
from typing import Any

from .diffusers_classes import class_of_name, options_of
from .diffusers_configs import adds_noise, incompatibility

STOCHASTIC = (
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DPMSolverSDEScheduler",
    "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "SASolverScheduler",
)


def convert_scheduler(scheduler: Any) -> dict[str, Any]:
    """The configuration of a diffusers scheduler, as `PoissonFlowScheduler.from_config` reads it.

    A scheduler that was made from ours also keeps our options that it does not read, and these say what the network is.

    Raises:
        ValueError: if the scheduler does not follow a Poisson flow, with the reason.
    """
    config, name = scheduler.config, type(scheduler).__name__
    parameters = inspect.signature(type(scheduler).__init__).parameters
    own_options = {key: value for key, value in config.items() if key in parameters}
    step_parameters = list(inspect.signature(scheduler.step).parameters.values())
    reason = incompatibility(own_options)
    if config.get("prediction_type") == "field":
        reason = "unable to follow prediction_type 'field'. Use PoissonFlowScheduler, or another network"
    elif "Inverse" in name or any(parameter.default is parameter.empty for parameter in step_parameters[3:]):
        reason = "made for another task than to draw images from noise alone. Use PoissonFlowScheduler"
    elif reason is None:
        for key, meaning in (("beta_schedule", "a beta schedule"), ("sigma_data", "EDM's preconditioning")):
            if config.get(key) is not None and key not in own_options:
                reason = f"without `{key}`, but the network has {meaning}. Use one of its kind"
    aug_dim = config.get("aug_dim")
    if reason is None and aug_dim is not None and name in STOCHASTIC:
        reason = f"a source of Gaussian noise, which is not the kernel of `aug_dim` = {aug_dim}. Use an ODE solver"
    if reason is not None:
        raise ValueError(f"`scheduler` ({name}) is {reason}.")
    return {**config, "_class_name": name} if class_of_name(name) is type(scheduler) else dict(config)


def check_field_config(config: Any, flow: Any) -> None:
    """Raises ValueError where a `ChargeField` says otherwise than the scheduler; a network does not say."""
    for name in ("aug_dim", "prediction_type", "gamma", "sigma_data", "beta_schedule"):
        if hasattr(config, name) and getattr(config, name) != flow.config[name]:
            raise ValueError(
                f"`{name}` is {getattr(config, name)} of the field, but {flow.config[name]} of the scheduler. Make "
                "both the same."
            )


def check_density(model: Any, scheduler: Any) -> None:
    """Raises ValueError for a guided model, or a scheduler that adds noise: neither has a density to tell."""
    why = "Ask for the likelihood of the model itself, with a PoissonFlowScheduler or another ODE solver."
    if getattr(model, "is_guided", False):
        raise ValueError(
            f"`model` ({type(model).__name__}) is guided: its field is made of several and belongs to no distribution "
            f"of data, so a likelihood of it would mean nothing. {why} Set `guidance_scale=1`, or leave out the "
            "measurement."
        )
    name = type(scheduler).__name__
    if name in STOCHASTIC or adds_noise(options_of(scheduler.config, type(scheduler))):
        raise ValueError(
            f"`scheduler` ({name}) adds noise at every step, so no point has one way up, and the change of variables "
            f"does not hold. {why}"
        )
