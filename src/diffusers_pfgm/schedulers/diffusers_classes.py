"""The diffusers scheduler class that a configuration belongs to, its options and its timesteps."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
from diffusers import SchedulerMixin
from diffusers.utils import DummyObject

# Schedulers whose timesteps increase, repeat or jump back, and the scheduler whose spacing they are based on.
SPACED_AS = {
    "DDIMInverseScheduler": "DDIMScheduler",
    "DPMSolverMultistepInverseScheduler": "DPMSolverMultistepScheduler",
    "PNDMScheduler": "DDIMScheduler",
    "RePaintScheduler": "DDIMScheduler",
}
# Schedulers that diffusers only has if another package is installed, and one with the same options and defaults.
STAND_INS = {"DPMSolverSDEScheduler": "KDPM2DiscreteScheduler"}
BETA_OPTIONS = ("beta_schedule", "trained_betas")

_signature = functools.cache(inspect.signature)


def class_of_name(name: Any) -> type[Any] | None:
    """Return the diffusers scheduler class of this name (also of its Flax version), or None if there is none."""
    if not isinstance(name, str):
        return None
    name = name.removeprefix("Flax")
    scheduler_class = getattr(diffusers, name, None)
    if isinstance(scheduler_class, DummyObject):
        scheduler_class = getattr(diffusers, STAND_INS.get(name, ""), None)
    is_scheduler = isinstance(scheduler_class, type) and issubclass(scheduler_class, SchedulerMixin)
    return scheduler_class if is_scheduler else None


def class_of_config(config: Mapping[str, Any]) -> type[Any] | None:
    """Return the diffusers scheduler class that a configuration belongs to, or None if it cannot be determined.

    A saved configuration names its class. The `config` of a scheduler in memory does not, but it begins with all
    options of its class in the order of their declaration. Options of earlier schedulers, which `from_config` has
    passed on, come later.
    """
    name = config.get("_class_name")
    if name is not None:
        return class_of_name(name)
    keys = [key for key in config if key == "_use_default_values" or not key.startswith("_")]
    if "_use_default_values" in keys:
        keys = keys[: keys.index("_use_default_values")]
    best: type[Any] | None = None
    for candidate, names in _scheduler_classes():
        longest = 0 if best is None else len(_defaults(best))
        # Schedulers with equal options differ in the network calls per step only. Prefer one call per step.
        if keys[: len(names)] == names and (len(names) > longest or (len(names) == longest and candidate.order == 1)):
            best = candidate
    return best


@functools.cache
def _scheduler_classes() -> list[tuple[type[Any], list[str]]]:
    """All scheduler classes of diffusers, each with the names of its options in the order of their declaration."""
    classes = (class_of_name(name) for name in dir(diffusers.schedulers))
    return [(each, list(_defaults(each))) for each in classes if each is not None and each is not SchedulerMixin]


def options_of(config: Mapping[str, Any], scheduler_class: type[Any]) -> dict[str, Any]:
    """Return all options of a scheduler class, from a configuration where it has them, else the class's defaults."""
    return {name: config.get(name, default) for name, default in _defaults(scheduler_class).items()}


def _defaults(scheduler_class: type[Any]) -> dict[str, Any]:
    parameters = _signature(scheduler_class.__init__).parameters
    return {name: p.default for name, p in parameters.items() if p.default is not p.empty}


def timesteps_of_class(
    name: str, config: Mapping[str, Any], num_train_timesteps: int, count: int
) -> tuple[list[float], list[float] | None]:
    """Return the timesteps and σ's at which a diffusers scheduler makes the first network call of each step.

    Args:
        name: name of the scheduler class.
        config: options of the scheduler; missing options have the class's defaults.
        num_train_timesteps: the number of timesteps that the network was trained with.
        count: the number of steps.

    Returns:
        The timesteps, and σ at each of them if the scheduler has `sigmas`, else None.

    Raises:
        ValueError: if the scheduler cannot make `count` steps.
    """
    scheduler_class: Any = class_of_name(name)
    options = options_of(config, scheduler_class)
    # diffusers' schedulers need a beta schedule, so take the class's default if the configuration has none.
    if all(options.get(key) is None for key in BETA_OPTIONS):
        options = {key: value for key, value in options.items() if key not in BETA_OPTIONS}
    options["num_train_timesteps"] = num_train_timesteps
    if "final_sigmas_type" in options:
        options["final_sigmas_type"] = "sigma_min"  # accepted with every algorithm, and without effect on the timesteps
    try:
        schedule = scheduler_class(**options)
        schedule.set_timesteps(count)
    except (ArithmeticError, IndexError, NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"`timesteps_from` {name!r} cannot make {count} steps with the options of this configuration ({error}). "
            "Use another `num_inference_steps`, or set `timesteps_from=None`."
        ) from error
    timesteps: list[float] = schedule.timesteps.tolist()[:: getattr(schedule, "order", 1)][:count]
    sigmas = getattr(schedule, "sigmas", None)
    return timesteps, None if sigmas is None else sigmas.tolist()[:: schedule.order][: len(timesteps)]
