"""Checks of the types and values of a scheduler's options, before anything is computed from them."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from ..solvers.multistep import check_solver
from .consistency import check_consistency_options
from .diffusers_classes import class_of_name

LEARNED_VARIANCE_TYPES = ("learned", "learned_range")
VARIANCE_TYPES = (*LEARNED_VARIANCE_TYPES, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", None)
MAX_TRAIN_TIMESTEPS = 1_000_000  # diffusers makes several tensors of this length

OPTIONAL = {"aug_dim", "sigma_min", "sigma_max", "sigma_data", "max_norm", "M", "beta_schedule", "sigma_knots"}
OPTIONAL |= {"trained_betas", "timesteps_from", "variance_type", "data_mean", "mean_square_std", "prior"}
OPTIONAL |= {"consistency_boundary", "consistency_sigmas", "consistency_guidance", "sigma_steps"}
KINDS = {
    "a number": (
        "aug_dim",
        "sigma_min",
        "sigma_max",
        "gamma",
        "sigma_data",
        "data_mean",
        "mean_square_std",
        "max_norm",
        "beta_start",
        "beta_end",
        "consistency_boundary",
        "consistency_guidance",
    ),
    "a whole number": ("solver_order", "M", "num_train_timesteps", "steps_offset"),
    "True or False": ("use_corrector", "rescale_betas_zero_snr", "consistency_clip"),
    "a list of numbers": ("sigma_knots", "trained_betas", "consistency_sigmas"),
    "a dictionary": ("sigma_steps",),
    "a string": (
        "prediction_type",
        "solver",
        "final_sigmas_type",
        "beta_schedule",
        "timestep_spacing",
        "timesteps_from",
        "variance_type",
        "prior",
    ),
}
PRIORS = ("plane", "shell", "hemisphere", None)
STATISTICS = ("data_mean", "mean_square_std")  # statistics of the data for the Student-t preconditioning


def checked_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a scheduler in Python's own types, which JSON can store.

    Raises:
        ValueError: if an option has the wrong type, is NaN, or has a value that is not allowed.
    """
    options = _typed(config)
    for name, count in (
        ("`num_train_timesteps`", options["num_train_timesteps"]),
        ("The length of `trained_betas`", 1 if options["trained_betas"] is None else len(options["trained_betas"])),
    ):
        if not 1 <= count <= MAX_TRAIN_TIMESTEPS:
            raise ValueError(f"{name} must be at least 1 and at most {MAX_TRAIN_TIMESTEPS}, but is {count}.")
    if options["steps_offset"] < 0:
        raise ValueError(f"`steps_offset` must be a whole number >= 0, but is {options['steps_offset']}.")
    check_solver(options["solver"], options["solver_order"])
    max_norm = options["max_norm"]
    if max_norm is not None and not 0 < max_norm < math.inf:
        raise ValueError(f"`max_norm` must be a finite number > 0 or None, but is {max_norm}.")
    if options["prior"] not in PRIORS:
        raise ValueError(f"`prior` must be one of {PRIORS}, but is {options['prior']!r}.")
    missing = [name for name in STATISTICS if options[name] is None]
    if len(missing) == 1 or (not missing and options["sigma_data"] is None):
        raise ValueError(
            f"The Student-t preconditioning needs `sigma_data`, `data_mean` and `mean_square_std`, but `"
            f"{(*missing, 'sigma_data')[0]}` is None. Set all of them, or `data_mean` and `mean_square_std` to None."
        )
    if not missing and not (math.isfinite(options["data_mean"]) and 0 <= options["mean_square_std"] < math.inf):
        raise ValueError(
            "`data_mean` must be a finite number and `mean_square_std` a finite number >= 0, but they are "
            f"{options['data_mean']} and {options['mean_square_std']}."
        )
    if options["variance_type"] not in VARIANCE_TYPES:
        raise ValueError(f"`variance_type` must be one of {VARIANCE_TYPES}, but is {options['variance_type']!r}.")
    if options["timesteps_from"] is not None and class_of_name(options["timesteps_from"]) is None:
        raise ValueError(
            f"`timesteps_from` must be the name of a scheduler of diffusers or None, but is "
            f"{options['timesteps_from']!r}, which this version of diffusers does not have. Set it to None."
        )
    check_consistency_options(options)
    if options["prediction_type"] == "original_sample":  # the same under the name of EulerDiscreteScheduler
        options["prediction_type"] = "sample"
    if options["aug_dim"] == math.inf:
        options["aug_dim"] = None  # JSON has no infinity
    if options["beta_schedule"] is not None or options["trained_betas"] is not None:
        # The betas define the noise levels. Only the spacing of a diffusers scheduler may have its own σ_min and σ_max.
        used = set() if options["timesteps_from"] is None else {"sigma_min", "sigma_max"}
        used -= set(config.get("_use_default_values", ()))
        options.update(dict.fromkeys({"sigma_min", "sigma_max"} - used))
    return options


def _typed(config: Mapping[str, Any]) -> dict[str, Any]:
    options = {}
    for kind, names in KINDS.items():
        for name in names:
            value = config[name]
            options[name] = _as_kind(kind, value)
            if options[name] is None and not (value is None and name in OPTIONAL):
                also = " or None" if name in OPTIONAL else ""
                raise ValueError(f"`{name}` must be {kind}{also}, but is {value!r:.100} ({type(value).__name__}).")
    return options


def _as_kind(kind: str, value: Any) -> Any:
    """Return a value as Python's own type of this kind, or None if it is of another kind."""
    if kind == "a list of numbers":
        values = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(values, Sequence) or isinstance(values, str):
            return None
        converted = [_as_kind("a number", each) for each in values]
        return None if None in converted else converted
    if kind == "a dictionary":
        return dict(value) if isinstance(value, Mapping) else None
    if kind == "a string":
        return value if isinstance(value, str) else None
    if kind == "True or False":
        return value if isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    if kind == "a whole number":
        return int(value) if isinstance(value, numbers.Integral) else None
    if isinstance(value, int):
        return value
    return None if math.isnan(value) else float(value)
