"""The noise levels of a run with one number of steps, which are fitted to one network: `sigma_steps` of a scheduler."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from ..physics.denoiser import wrapped_model
from ..solvers.spacing import is_decreasing

FIT_AGAIN = "Fit them again by `fit_sigmas(..., num_inference_steps=n)`, or set `sigma_steps=None`."


def num_parameters(model: Any) -> int | None:
    """The number of parameters of a model or of the model in a wrapper, such as a `functools.partial`; None if unknown.

    It shows whether steps were fitted to a network of another size.
    """
    wrapped = wrapped_model(model)
    if wrapped is not None:
        return num_parameters(wrapped)
    count = sum(weight.numel() for weight in model.parameters()) if isinstance(model, torch.nn.Module) else 0
    return count or None


def check_sigma_steps(steps: Mapping[str, Any], aug_dim: float | None, sigma_max: float) -> None:
    """Check that `sigma_steps` of a scheduler were fitted for its D and σ_max.

    Raises:
        ValueError: if an entry is missing, the noise levels do not decrease, or D or σ_max is another.
    """
    sigmas = steps.get("sigmas")
    has_numbers = isinstance(sigmas, list | tuple) and all(isinstance(each, float | int) for each in sigmas)
    is_complete = steps.keys() == {"sigmas", "aug_dim", "num_parameters"}
    if not (is_complete and sigmas and has_numbers and is_decreasing(sigmas)):
        raise ValueError(
            "`sigma_steps` must have 'sigmas', positive and strictly decreasing, 'aug_dim' and 'num_parameters', but "
            f"is {dict(steps)!r:.200}. Compute it by `fit_sigmas(..., num_inference_steps=n)`, or set it to None."
        )
    fitted_dim, dim = (math.inf if each is None else each for each in (steps["aug_dim"], aug_dim))
    if fitted_dim != dim:
        raise ValueError(
            f"`sigma_steps` were fitted for `aug_dim` = {steps['aug_dim']}, but it is {aug_dim}. {FIT_AGAIN}"
        )
    if not math.isclose(sigmas[0], sigma_max, rel_tol=1e-3):
        raise ValueError(
            f"`sigma_steps` were fitted from {sigmas[0]}, but the largest sigma is {sigma_max}. {FIT_AGAIN}"
        )


def check_steps_of_model(model: Any, scheduler: Any, num_inference_steps: int) -> None:
    """Check that `sigma_steps`, if a run of this number of steps uses them, were fitted for a model of this size.

    A model of unknown size, such as a `ChargeField`, is not checked.

    Raises:
        ValueError: if the model has another number of parameters.
    """
    steps = scheduler.config.sigma_steps
    if steps is None or len(steps["sigmas"]) != num_inference_steps:
        return
    count = num_parameters(model)
    if None not in (count, steps["num_parameters"]) and count != steps["num_parameters"]:
        raise ValueError(
            f"The {num_inference_steps} steps of `sigma_steps` were fitted for a network of "
            f"{steps['num_parameters']:,} parameters, but this one has {count:,}. {FIT_AGAIN}"
        )
