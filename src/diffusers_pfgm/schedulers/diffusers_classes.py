"""The scheduler of diffusers that a configuration belongs to: its class, its options and its own timesteps."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
from diffusers import SchedulerMixin
from diffusers.utils import DummyObject

# Schedulers whose timesteps go up, repeat or jump back, with the one whose spacing theirs is built on.
SPACED_AS = {
    "DDIMInverseScheduler": "DDIMScheduler",
    "DPMSolverMultistepInverseScheduler": "DPMSolverMultistepScheduler",
    "PNDMScheduler": "DDIMScheduler",
    "RePaintScheduler": "DDIMScheduler",
}
# Schedulers that diffusers only has beside another package, with one of the same options and defaults.
STAND_INS = {"DPMSolverSDEScheduler": "KDPM2DiscreteScheduler"}
BETA_OPTIONS = ("beta_schedule", "trained_betas")


def class_of_name(name: Any) -> type[Any] | None:
    """The scheduler class that diffusers has under this name, which may be the name of its Flax version."""
    if not isinstance(name, str):
        return None
    name = name.removeprefix("Flax")
    found = getattr(diffusers, name, None)
    if isinstance(found, DummyObject):
        found = getattr(diffusers, STAND_INS.get(name, ""), None)
    return found if isinstance(found, type) and issubclass(found, SchedulerMixin) else None


def class_of_config(config: Mapping[str, Any]) -> type[Any] | None:
    """The scheduler class of diffusers that a configuration belongs to, or None where nothing says so.

    A saved configuration names its class. The `config` of a scheduler in memory does not, but it begins with all
    options of its class in the order of their declaration; what earlier schedulers have left behind comes later.
    """
    name = config.get("_class_name")
    if name is not None:
        return class_of_name(name)
    keys = [key for key in config if key == "_use_default_values" or not key.startswith("_")]
    if "_use_default_values" in keys:
        keys = keys[: keys.index("_use_default_values")]
    best: type[Any] | None = None
    for name in dir(diffusers.schedulers):
        found = class_of_name(name)
        if found is None or found is SchedulerMixin:
            continue
        names = list(_defaults(found))
        longest = 0 if best is None else len(_defaults(best))
        # Schedulers of equal options differ in the calls of a step alone; one call is what is wanted here.
        if keys[: len(names)] == names and (len(names) > longest or (len(names) == longest and found.order == 1)):
            best = found
    return best


def options_of(config: Mapping[str, Any], scheduler_class: type[Any]) -> dict[str, Any]:
    """All options of a class, as it reads them from a configuration: those that are missing are at its defaults."""
    return {name: config.get(name, default) for name, default in _defaults(scheduler_class).items()}


def _defaults(scheduler_class: type[Any]) -> dict[str, Any]:
    parameters = inspect.signature(scheduler_class.__init__).parameters
    return {name: p.default for name, p in parameters.items() if p.default is not p.empty}


def timesteps_of_class(
    name: str, config: Mapping[str, Any], num_train_timesteps: int, count: int
) -> tuple[list[float], list[float] | None]:
    """The timesteps and the σ's at which a scheduler of diffusers makes the first network call of each step.

    Args:
        name: of its class.
        config: with its options; those that are missing are at its defaults.
        num_train_timesteps: the number of timesteps that the network was trained with.
        count: the number of steps.

    Returns:
        The timesteps, and σ at each of them if the scheduler chooses it itself, else None.

    Raises:
        ValueError: if it cannot make so many steps.
    """
    scheduler_class: Any = class_of_name(name)
    options = options_of(config, scheduler_class)
    if all(options.get(key) is None for key in BETA_OPTIONS):  # without a beta schedule diffusers makes no scheduler
        options = {key: value for key, value in options.items() if key not in BETA_OPTIONS}
    options["num_train_timesteps"] = num_train_timesteps
    if "final_sigmas_type" in options:
        options["final_sigmas_type"] = "sigma_min"  # allowed with every algorithm, and not part of the timesteps
    try:
        schedule = scheduler_class(**options)
        schedule.set_timesteps(count)
    except (ArithmeticError, IndexError, NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"`timesteps_from` {name!r} cannot make {count} steps with the options of this configuration ({error}). "
            "Take another `num_inference_steps`, or set `timesteps_from=None`."
        ) from error
    timesteps: list[float] = schedule.timesteps.tolist()[:: getattr(schedule, "order", 1)][:count]
    sigmas = getattr(schedule, "sigmas", None)
    return timesteps, None if sigmas is None else sigmas.tolist()[:: schedule.order][: len(timesteps)]
