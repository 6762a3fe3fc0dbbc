"""Types of a scheduler's options, checked before anything is computed from them."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

MAX_TRAIN_TIMESTEPS = 1_000_000  # diffusers makes several tensors of this length

OPTIONAL = {"aug_dim", "sigma_min", "sigma_max", "sigma_data", "max_norm", "M", "beta_schedule", "sigma_knots"}
OPTIONAL |= {"trained_betas", "timesteps_from", "variance_type"}
KINDS = {
    "a number": ("aug_dim", "sigma_min", "sigma_max", "gamma", "sigma_data", "max_norm", "beta_start", "beta_end"),
    "a whole number": ("solver_order", "M", "num_train_timesteps", "steps_offset"),
    "True or False": ("use_corrector", "rescale_betas_zero_snr"),
    "a list of numbers": ("sigma_knots", "trained_betas"),
    "a string": (
        "prediction_type",
        "solver",
        "final_sigmas_type",
        "beta_schedule",
        "timestep_spacing",
        "timesteps_from",
        "variance_type",
    ),
}


def checked_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a scheduler as Python's own numbers and lists, which JSON can hold.

    Raises:
        ValueError: if one is of another type than it should be, NaN, or a number of timesteps that no network has.
    """
    found = {}
    for kind, names in KINDS.items():
        for name in names:
            value = config[name]
            if value is None and name in OPTIONAL:
                continue
            found[name] = _as_kind(kind, value)
            if found[name] is None:
                also = " or None" if name in OPTIONAL else ""
                raise ValueError(f"`{name}` must be {kind}{also}, but is {value!r:.100} ({type(value).__name__}).")
    for name, count in (
        ("num_train_timesteps", found["num_train_timesteps"]),
        ("trained_betas", len(found.get("trained_betas", [0]))),
    ):
        if not 1 <= count <= MAX_TRAIN_TIMESTEPS:
            what = f"`{name}` must be" if name == "num_train_timesteps" else f"The length of `{name}` must be"
            raise ValueError(f"{what} at least 1 and at most {MAX_TRAIN_TIMESTEPS}, but is {count}.")
    if found["steps_offset"] < 0:
        raise ValueError(f"`steps_offset` must be a whole number >= 0, but is {found['steps_offset']}.")
    return found


def _as_kind(kind: str, value: Any) -> Any:
    """The value as Python's own, or None if it is of another kind."""
    if kind == "a list of numbers":
        values = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(values, Sequence) or isinstance(values, str):
            return None
        numbers_found = [_as_kind("a number", each) for each in values]
        return None if None in numbers_found else numbers_found
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
