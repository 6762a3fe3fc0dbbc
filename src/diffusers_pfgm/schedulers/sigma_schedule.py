"""The noise levels of a run: σ of each step, and the timestep with which the network is called there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..physics.parameterization import Parameterization
from ..solvers.spacing import geometric_sigmas, is_decreasing, knotted_sigmas
from ..utils.checks import check_whole_number
from .beta_schedule import SPACINGS
from .diffusers_classes import timesteps_of_class

Values = Sequence[float] | torch.Tensor


@dataclass(frozen=True)
class RunSigmas:
    """The noise levels of one run.

    Attributes:
        sigmas: σ at the start of each step, decreasing and positive.
        timesteps: the network's timestep at each of them.
        final: σ at the end of the last step, 0 or more.
    """

    sigmas: list[float]
    timesteps: list[float]
    final: float


class SigmaSchedule:
    """Chooses the noise levels of a scheduler's runs.

    Args:
        config: the configuration of the scheduler.
        parameterization: the parameterization of its network.

    Raises:
        ValueError: if an option of the configuration has a value that is not allowed, or two options contradict each
            other.
    """

    def __init__(self, config: Any, parameterization: Parameterization) -> None:
        self.config = config
        self.parameterization = parameterization
        self.train_sigmas = parameterization.train_sigmas
        low, high = config.sigma_min, config.sigma_max
        if self.train_sigmas is None:
            if low is None or high is None or not 0 < low < high < math.inf:
                raise ValueError(
                    "`sigma_min` and `sigma_max` must satisfy 0 < sigma_min < sigma_max < inf, but are "
                    f"{low} and {high}."
                )
        elif config.solver == "heun" and config.rescale_betas_zero_snr:
            raise ValueError(
                "`solver` 'heun' cannot start at infinite sigma, which is the start with `rescale_betas_zero_snr`. Use "
                "'multistep' or 'euler'."
            )
        if config.timestep_spacing not in SPACINGS:
            raise ValueError(f"`timestep_spacing` must be one of {SPACINGS}, but is {config.timestep_spacing!r}.")
        if config.final_sigmas_type not in ("zero", "sigma_min"):
            raise ValueError(f"`final_sigmas_type` must be 'zero' or 'sigma_min', but is {config.final_sigmas_type!r}.")

    def choose(
        self,
        num_inference_steps: int | None = None,
        sigmas: Values | None = None,
        timesteps: Values | None = None,
    ) -> RunSigmas:
        """Return the noise levels of a run, from a number of steps or from custom σ's or timesteps.

        See `PoissonFlowScheduler.set_timesteps` for the arguments.

        Raises:
            ValueError: if not exactly one of the three arguments is given, or its value is not allowed.
        """
        if sum(value is not None for value in (num_inference_steps, sigmas, timesteps)) != 1:
            raise ValueError(
                "Pass exactly one of `num_inference_steps`, `sigmas` and `timesteps`, but got "
                f"num_inference_steps={num_inference_steps}, sigmas={sigmas}, timesteps={timesteps}."
            )
        if sigmas is not None:
            return self._from_sigmas(sigmas)
        if timesteps is not None:
            return self._from_timesteps(timesteps)
        return self._spaced(check_whole_number("num_inference_steps", num_inference_steps, 1))

    def call_timesteps(self, run: RunSigmas, call_sigmas: Sequence[float]) -> torch.Tensor:
        """Return the timestep of each network call of a run.

        They are integers for a network with a beta schedule, unless custom σ's are between its training timesteps.

        Args:
            run: the noise levels of the run.
            call_sigmas: σ of each call. It is one of `run.sigmas`, or `run.final` in the last call of Heun's method.
        """
        timestep_at = dict(zip(run.sigmas, run.timesteps, strict=True))
        timesteps = [timestep_at[sigma] if sigma in timestep_at else self._timestep(sigma) for sigma in call_sigmas]
        values = rounded(timesteps)
        are_integers = self.train_sigmas is not None and all(value.is_integer() for value in values)
        return torch.tensor(values, dtype=torch.int64 if are_integers else torch.float32, device="cpu")

    def rounded_timesteps(self, run: RunSigmas) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the timesteps and the σ's of a run, both (n,), if the timesteps are rounded, else None.

        With Karras' spacing diffusers' multistep schedulers round the timesteps of the network, so that σ cannot be
        computed from them.
        """
        timesteps = torch.tensor(run.timesteps, dtype=torch.float64, device="cpu")
        sigmas = torch.tensor(run.sigmas, dtype=torch.float64, device="cpu")
        implied = torch.as_tensor(self.parameterization.sigma(timesteps), device="cpu")
        if self.train_sigmas is None or ((implied - sigmas).abs() <= 1e-4 * sigmas).all():
            return None
        return timesteps, sigmas

    def _spaced(self, count: int) -> RunSigmas:
        config = self.config
        if config.consistency_sigmas is not None:
            if count > len(config.consistency_sigmas):
                raise ValueError(
                    f"`num_inference_steps` must be at most {len(config.consistency_sigmas)} for this consistency "
                    f"model, the number of its `consistency_sigmas`, but is {count}. Pass `num_inference_steps=1` "
                    "or 2, or use the model that it was tuned from."
                )
            return self._from_sigmas(config.consistency_sigmas[:count])
        if config.sigma_steps is not None and count == len(config.sigma_steps["sigmas"]):
            return self._from_sigmas(config.sigma_steps["sigmas"])
        if config.sigma_knots is None and (self.train_sigmas is not None or config.timesteps_from is not None):
            return self._as_diffusers(count)
        if config.sigma_knots is not None:
            # The last step, to σ_min or to 0, is as long as the others.
            sigmas = knotted_sigmas(config.sigma_knots, count + 1)
        else:
            # A run to σ_min has one σ more than steps. One to 0 ends with a step from σ_min.
            num_sigmas = count + (config.final_sigmas_type == "sigma_min")
            sigmas = geometric_sigmas(config.sigma_max, config.sigma_min, num_sigmas)
        sigmas = rounded(sigmas[:count])
        if not is_decreasing(sigmas):
            raise ValueError(
                f"{count} values of sigma between {sigmas[0]} and {sigmas[-1]} are not distinct in float32. Use a "
                "smaller `num_inference_steps`, or other `sigma_max`, `sigma_min` or `sigma_knots`."
            )
        return RunSigmas(sigmas, [*map(self._timestep, sigmas)], self._final(sigmas[-1]))

    def _as_diffusers(self, count: int) -> RunSigmas:
        """The noise levels of the diffusers scheduler `timesteps_from`; if it is None, those of DDIMScheduler."""
        config = self.config
        train_sigmas = self.train_sigmas
        trained = config.num_train_timesteps if train_sigmas is None else len(train_sigmas)
        if train_sigmas is not None and count > trained:
            raise ValueError(
                f"`num_inference_steps` must be at most {trained}, the number of trained timesteps, but is {count}."
            )
        timesteps, sigmas = timesteps_of_class(config.timesteps_from or "DDIMScheduler", config, trained, count)
        is_in_range = len(timesteps) == count and 0 <= timesteps[-1] <= timesteps[0] < trained
        if train_sigmas is not None and not is_in_range:
            raise ValueError(
                f"`timestep_spacing` {config.timestep_spacing!r} with `steps_offset` = {config.steps_offset} gives "
                f"{len(timesteps)} timesteps from {timesteps[0]}, but {count} timesteps from 0 to {trained - 1}, the "
                "trained ones, are needed. Set `steps_offset` to 0 or use fewer steps."
            )
        if sigmas is None:
            sigmas = [self._trained_sigma(t) for t in timesteps]
        if not is_decreasing(sigmas):
            raise ValueError(
                f"The {count} values of sigma of {config.timesteps_from} are not strictly decreasing. Use a smaller "
                "`num_inference_steps`, or set `timesteps_from=None`."
            )
        return RunSigmas(sigmas, [*map(float, timesteps)], self._final(sigmas[-1]))

    def _from_sigmas(self, sigmas: Values) -> RunSigmas:
        custom = _as_float64("sigmas", sigmas)
        values, final = self._split_final(rounded(custom.flatten().tolist()))
        if not (custom.ndim == 1 and values and is_decreasing(values)):
            raise ValueError(
                "`sigmas` must be a list of positive, strictly decreasing numbers in float32 (a final 0 is optional), "
                f"but is {custom.tolist()}."
            )
        if self.train_sigmas is not None and values[0] > 1.01 * self.train_sigmas[-1]:
            raise ValueError(
                f"`sigmas` must be at most {self.train_sigmas[-1]:.6g}, the largest of the beta schedule, but are "
                f"{custom.tolist()}."
            )
        return RunSigmas(values, [*map(self._timestep, values)], final)

    def _from_timesteps(self, timesteps: Values) -> RunSigmas:
        custom = _as_float64("timesteps", timesteps)
        values = rounded(custom.flatten().tolist())
        sigmas, final = self._split_final([float(self.parameterization.sigma(value)) for value in values])
        values = values[: len(sigmas)]
        if not (custom.ndim == 1 and sigmas and is_decreasing(rounded(sigmas))):
            raise ValueError(
                "`timesteps` must be a list of strictly decreasing numbers whose sigma is positive and finite in "
                f"float32, but is {custom.tolist()}, where sigma is {sigmas}. They are what the network is called "
                "with: sigma; with `sigma_data` ln(sigma)/4; with a beta schedule the trained timesteps."
            )
        if self.train_sigmas is not None and not 0 <= values[-1] <= values[0] < len(self.train_sigmas):
            raise ValueError(
                f"`timesteps` must be from 0 to {len(self.train_sigmas) - 1}, as trained, but are {custom.tolist()}."
            )
        return RunSigmas(sigmas, values, final)

    def _split_final(self, sigmas: list[float]) -> tuple[list[float], float]:
        """Return the σ's at the start of each step, and the final σ, which custom σ's may contain or not."""
        if len(sigmas) > 1 and sigmas[-1] == 0:
            return sigmas[:-1], 0.0
        # The `sigmas` of EDM's schedulers contain σ_min twice if the run ends there.
        if self.config.final_sigmas_type == "sigma_min" and len(sigmas) > 1 and sigmas[-1] == sigmas[-2]:
            sigmas = sigmas[:-1]
        return sigmas, self._final(sigmas[-1]) if sigmas else 0.0

    def _final(self, last: float) -> float:
        if self.config.final_sigmas_type == "zero":
            return 0.0
        return min(last, self.config.sigma_min if self.train_sigmas is None else self.train_sigmas[0])

    def _timestep(self, sigma: float) -> float:
        return float(self.parameterization.c_noise(sigma))

    def _trained_sigma(self, timestep: float) -> float:
        """σ at a timestep: the value of the beta schedule itself at a training timestep, else an interpolation."""
        if self.train_sigmas is None or timestep % 1:
            return float(self.parameterization.sigma(timestep))
        return self.train_sigmas[int(timestep)]


def rounded(values: list[float]) -> list[float]:
    """Round values to float32, so that the network and the solver's coefficients have exactly the same σ's."""
    float32_values: list[float] = torch.tensor(values, dtype=torch.float32, device="cpu").tolist()
    return float32_values


def _as_float64(name: str, values: Values) -> torch.Tensor:
    if isinstance(values, torch.Tensor):  # its device may lack float64
        values = values.detach().cpu()
    try:
        return torch.as_tensor(values, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be a list of numbers, but is {values!r:.100}.") from error
