"""Conversion of any scheduler to a `PoissonFlowScheduler`, and checks that a model and a scheduler belong together."""

from __future__ import annotations

import inspect
from typing import Any

from .diffusers_classes import class_of_name, options_of
from .diffusers_configs import CONSISTENCY, adds_noise, incompatibility

STOCHASTIC = (
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DPMSolverSDEScheduler",
    "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "SASolverScheduler",
)


def convert_scheduler(scheduler: Any) -> dict[str, Any]:
    """Return the configuration of a diffusers scheduler for `PoissonFlowScheduler.from_config`.

    A diffusers scheduler that was made from a `PoissonFlowScheduler` keeps the options that it does not read itself,
    such as `aug_dim`. They describe the network, and must not contradict the scheduler.

    Raises:
        ValueError: if `scheduler` is no scheduler, or does not solve the ODE of a Poisson flow; the message states the
            reason.
    """
    name = type(scheduler).__name__
    if not hasattr(scheduler, "config"):
        raise ValueError(
            f"`scheduler` must be a PoissonFlowScheduler or a scheduler of diffusers, but is a {name}. Make one by "
            "`PoissonFlowScheduler()`."
        )
    obstacle = _obstacle(scheduler, name)
    if obstacle is not None:
        raise ValueError(f"`scheduler` ({name}) is {obstacle}.")
    config = dict(scheduler.config)
    return {**config, "_class_name": name} if class_of_name(name) is type(scheduler) else config


def _obstacle(scheduler: Any, name: str) -> str | None:
    """Return why a scheduler does not solve its network's ODE, to complete "`scheduler` is ..."; None if it does."""
    config = scheduler.config
    if config.get("prediction_type") == "field":
        return "unable to follow prediction_type 'field'. Use PoissonFlowScheduler, or another network"
    parameters = inspect.signature(type(scheduler).__init__).parameters
    own_options = {key: value for key, value in config.items() if key in parameters}
    reason = incompatibility(own_options)
    if reason is not None:
        return reason
    if not hasattr(scheduler, "scale_model_input"):  # SCMScheduler, whose options are those of EDM
        return CONSISTENCY
    step_parameters = inspect.signature(scheduler.step).parameters
    num_required = sum(parameter.default is parameter.empty for parameter in step_parameters.values())
    if "Inverse" in name or num_required > 3:
        return "made for another task than drawing images from pure noise. Use PoissonFlowScheduler"
    if "prev_timestep" in step_parameters:
        return "one that needs `prev_timestep` in each step, which is not passed here. Use PoissonFlowScheduler"
    for key, meaning in (("sigma_data", "EDM's preconditioning"), ("beta_schedule", "a beta schedule")):
        if config.get(key) is not None and key not in own_options:
            return f"without `{key}`, but the network has {meaning}. Use a scheduler with `{key}`"
    if config.get("consistency_boundary") is not None:
        return "unable to sample from a consistency model. Use PoissonFlowScheduler"
    aug_dim = config.get("aug_dim")
    if aug_dim is not None and config.get("mean_square_std") is not None:
        return "unable to call the network with the noise level of each sample. Use PoissonFlowScheduler"
    if aug_dim is not None and name in STOCHASTIC:
        return f"a source of Gaussian noise, which is not the kernel of `aug_dim` = {aug_dim}. Use an ODE solver"
    return None


def check_field_config(config: Any, scheduler: Any) -> None:
    """Check that a `ChargeField` and its scheduler have the same options.

    Args:
        config: the configuration of the model. Only a `ChargeField` has these options in its configuration.
        scheduler: the `PoissonFlowScheduler`.

    Raises:
        ValueError: if an option of the field differs from that of the scheduler.
    """
    for name in ("aug_dim", "prediction_type", "gamma", "sigma_data", "beta_schedule"):
        if hasattr(config, name) and getattr(config, name) != scheduler.config[name]:
            raise ValueError(
                f"`{name}` of the field is {getattr(config, name)}, but that of the scheduler is "
                f"{scheduler.config[name]}. Make both the same."
            )


def check_density(model: Any, scheduler: Any) -> None:
    """Check that the log-likelihood of a model can be computed with a scheduler.

    Raises:
        ValueError: if the model is guided, or the scheduler adds noise. Neither defines a probability density that the
            change of variables formula gives.
    """
    advice = "Ask for the likelihood of the model itself, with a PoissonFlowScheduler or another ODE solver."
    if getattr(model, "is_guided", False):
        raise ValueError(
            f"`model` ({type(model).__name__}) is guided: its field is a combination of several and has no data "
            f"distribution, so it has no likelihood. {advice} Set `guidance_scale=1`, or leave out the "
            "measurement."
        )
    name = type(scheduler).__name__
    if name in STOCHASTIC or adds_noise(options_of(scheduler.config, type(scheduler))):
        raise ValueError(
            f"`scheduler` ({name}) adds noise at every step, so data and prior have no one-to-one map, and the change "
            f"of variables does not hold. {advice}"
        )
