"""The heights of a run: σ of each step, and the timestep that the network sees there."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..physics.preconditioning import Parameterization
from ..solvers.spacing import geometric_sigmas, is_decreasing, knotted_sigmas
from .beta_schedule import SPACINGS, BetaSchedule
from .diffusers_classes import timesteps_of_class


@dataclass(frozen=True)
class Heights:
    """Where a run calls its network.

    Attributes:
        sigmas: σ at the start of each step, falling and positive.
        timesteps: what the network sees there, one for each.
        final: σ at the end of the last step, 0 or more.
    """

    sigmas: list[float]
    timesteps: list[float]
    final: float

    def timesteps_at(self, calls: Sequence[float], form: Parameterization) -> torch.Tensor:
        """What the network sees at each call's σ, which is that of a step or, in Heun's last call, the final one.

        Whole numbers for the DDPM family, unless the caller's σ's lie between its timesteps.
        """
        known = dict(zip(self.sigmas, self.timesteps, strict=True))
        values = rounded([known[sigma] if sigma in known else float(form.label(sigma)) for sigma in calls])
        whole = form.train_sigmas is not None and all(value.is_integer() for value in values)
        return torch.tensor(values, dtype=torch.int64 if whole else torch.float32, device="cpu")

    def sigmas_of_rounded(self, form: Parameterization) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The timesteps and the σ's, both (n,), if the timesteps were rounded and so do not say what σ they stand for.

        With Karras' spacing diffusers' multistep schedulers round the timesteps that their networks see.
        """
        labels = torch.tensor(self.timesteps, dtype=torch.float64, device="cpu")
        sigmas = torch.tensor(self.sigmas, dtype=torch.float64, device="cpu")
        if form.train_sigmas is None or torch.allclose(torch.as_tensor(form.sigma(labels)), sigmas, rtol=1e-4, atol=0):
            return None
        return labels, sigmas


def rounded(values: list[float]) -> list[float]:
    """In float32, so that the network sees just the σ's of the solver's coefficients."""
    result: list[float] = torch.tensor(values, dtype=torch.float32, device="cpu").tolist()
    return result


def check_height_options(config: Any) -> None:
    """Raises ValueError for options of a scheduler's heights that are not allowed, or not together."""
    low, high = config.sigma_min, config.sigma_max
    if config.beta_schedule is None and config.trained_betas is None:
        if low is None or high is None or not 0 < low < high < math.inf:
            raise ValueError(
                f"`sigma_min` and `sigma_max` must satisfy 0 < sigma_min < sigma_max < inf, but are {low} and {high}."
            )
    elif config.solver == "heun" and config.rescale_betas_zero_snr:
        raise ValueError(
            "`solver` 'heun' cannot start at infinite sigma, where `rescale_betas_zero_snr` lets it. Use 'multistep' "
            "or 'euler'."
        )
    if config.timestep_spacing not in SPACINGS:
        raise ValueError(f"`timestep_spacing` must be one of {SPACINGS}, but is {config.timestep_spacing!r}.")
    if config.final_sigmas_type not in ("zero", "sigma_min"):
        raise ValueError(f"`final_sigmas_type` must be 'zero' or 'sigma_min', but is {config.final_sigmas_type!r}.")


def choose_heights(
    config: Any,
    form: Parameterization,
    family: BetaSchedule | None,
    num_inference_steps: int | None = None,
    sigmas: Sequence[float] | torch.Tensor | None = None,
    timesteps: Sequence[float] | torch.Tensor | None = None,
) -> Heights:
    """The heights of a run, by a number of steps or by the caller's own; see `PoissonFlowScheduler.set_timesteps`.

    Raises:
        ValueError: if not exactly one of the three is given, or it is not what it should be.
    """
    if sum(value is not None for value in (num_inference_steps, sigmas, timesteps)) != 1:
        raise ValueError(
            "Pass exactly one of `num_inference_steps`, `sigmas` and `timesteps`, but got "
            f"num_inference_steps={num_inference_steps}, sigmas={sigmas}, timesteps={timesteps}."
        )
    if num_inference_steps is None:
        return _given(config, form, sigmas, timesteps)
    real = isinstance(num_inference_steps, numbers.Real | torch.Tensor) and not isinstance(num_inference_steps, bool)
    if not real or not num_inference_steps >= 1 or int(num_inference_steps) != num_inference_steps:
        raise ValueError(f"`num_inference_steps` must be a whole number >= 1, but is {num_inference_steps!r}.")
    return _spaced(config, form, family, int(num_inference_steps))


def _spaced(config: Any, form: Parameterization, family: BetaSchedule | None, count: int) -> Heights:
    if config.sigma_knots is None and (family is not None or config.timesteps_from is not None):
        return _as_diffusers(config, form, family, count)
    # A run that ends at σ_min has one height more than steps. The DDPM family's end is its first timestep instead.
    points = count + (config.final_sigmas_type == "sigma_min" and family is None)
    if config.sigma_knots is not None:
        sigmas = knotted_sigmas(config.sigma_knots, points)
    else:
        sigmas = geometric_sigmas(config.sigma_max, config.sigma_min, points)
    sigmas = rounded(sigmas[:count])
    if not is_decreasing(sigmas):
        raise ValueError(
            f"{count} heights between {sigmas[0]} and {sigmas[-1]} are no longer apart in float32. Take a smaller "
            "`num_inference_steps`, or other `sigma_max`, `sigma_min` or `sigma_knots`."
        )
    return Heights(sigmas, [float(form.label(sigma)) for sigma in sigmas], _final(config, form, sigmas[-1]))


def _as_diffusers(config: Any, form: Parameterization, family: BetaSchedule | None, count: int) -> Heights:
    """The heights of the diffusers scheduler that `timesteps_from` names, DDIM's for a beta schedule without one."""
    trained = config.num_train_timesteps if family is None else len(family.sigmas)
    if family is not None and count > trained:
        raise ValueError(f"`num_inference_steps` must be at most the {trained} timesteps trained, but is {count}.")
    timesteps, sigmas = timesteps_of_class(config.timesteps_from or "DDIMScheduler", config, trained, count)
    if family is not None and (len(timesteps) < count or not 0 <= timesteps[-1] <= timesteps[0] < trained):
        raise ValueError(
            f"`timestep_spacing` {config.timestep_spacing!r} with `steps_offset` = {config.steps_offset} gives "
            f"{len(timesteps)} timesteps from {timesteps[0]} in place of {count} within 0 to {trained - 1}, those "
            "trained. Set `steps_offset` to 0 or take fewer steps."
        )
    if sigmas is None:
        sigmas = [float(form.sigma(t)) if family is None or t % 1 else family.sigmas[int(t)] for t in timesteps]
    if not is_decreasing(sigmas):
        raise ValueError(
            f"{count} heights of {config.timesteps_from} do not fall strictly. Take a smaller `num_inference_steps`, "
            "or set `timesteps_from=None`."
        )
    return Heights(sigmas, [*map(float, timesteps)], _final(config, form, sigmas[-1]))


def _given(
    config: Any,
    form: Parameterization,
    sigmas: Sequence[float] | torch.Tensor | None,
    timesteps: Sequence[float] | torch.Tensor | None,
) -> Heights:
    name, given = ("sigmas", sigmas) if timesteps is None else ("timesteps", timesteps)
    if isinstance(given, torch.Tensor):  # which may lie on a device without float64
        given = given.detach().cpu()
    try:
        wide = torch.as_tensor(given, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be a list of numbers, but is {given!r:.100}.") from error
    values = labels = rounded(wide.flatten().tolist())
    if timesteps is not None:
        values = [float(form.sigma(label)) for label in labels]
    to_zero = len(values) > 1 and values[-1] == 0
    # EDM's schedulers give σ_min twice where they end there.
    if to_zero or (config.final_sigmas_type == "sigma_min" and len(values) > 1 and values[-1] == values[-2]):
        values, labels = values[:-1], labels[:-1]
    if not (wide.ndim == 1 and values and is_decreasing(values)):
        raise ValueError(
            f"`{name}` must be a list that falls strictly and stays positive in float32 (a last 0 aside), "
            f"but is {wide.tolist()}."
        )
    if timesteps is None:
        if form.train_sigmas is not None and values[0] > 1.01 * form.train_sigmas[-1]:
            raise ValueError(
                f"`sigmas` must be at most {form.train_sigmas[-1]:.6g}, the largest of the beta schedule, but are "
                f"{wide.tolist()}."
            )
        labels = [float(form.label(sigma)) for sigma in values]
    elif form.train_sigmas is not None and not 0 <= labels[-1] <= labels[0] < len(form.train_sigmas):
        raise ValueError(
            f"`timesteps` must lie from 0 to {len(form.train_sigmas) - 1}, as trained, but are {wide.tolist()}."
        )
    return Heights(values, labels, 0.0 if to_zero else _final(config, form, values[-1]))


def _final(config: Any, form: Parameterization, last: float) -> float:
    if config.final_sigmas_type == "zero":
        return 0.0
    return min(last, config.sigma_min if form.train_sigmas is None else form.train_sigmas[0])
