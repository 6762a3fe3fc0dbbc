"""The noise levels of a run: σ of each step, and the timestep that the network sees there."""

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
        timesteps: what the network sees at each of them.
        final: σ at the end of the last step, 0 or more.
    """

    sigmas: list[float]
    timesteps: list[float]
    final: float


class SigmaSchedule:
    """Chooses the noise levels of a scheduler's runs.

    Args:
        config: of the scheduler.
        parameterization: of its network.

    Raises:
        ValueError: if options of the configuration are not allowed, or not together.
    """

    def __init__(self, config: Any, parameterization: Parameterization) -> None:
        self.config, self.parameterization = config, parameterization
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
                "`solver` 'heun' cannot start at infinite sigma, where `rescale_betas_zero_snr` lets it. Use "
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
        """The noise levels of a run, by a number of steps or by the caller's own values.

        See `PoissonFlowScheduler.set_timesteps` for the arguments.

        Raises:
            ValueError: if not exactly one of the three is given, or it has another value than allowed.
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
        """What the network sees at each of its calls, whose σ is that of a step or, in Heun's last call, the final one.

        The values are whole numbers for a network with a beta schedule, unless the caller's own σ's lie between its
        training timesteps.
        """
        known = dict(zip(run.sigmas, run.timesteps, strict=True))
        values = rounded([known[sigma] if sigma in known else self._timestep(sigma) for sigma in call_sigmas])
        whole = self.train_sigmas is not None and all(value.is_integer() for value in values)
        return torch.tensor(values, dtype=torch.int64 if whole else torch.float32, device="cpu")

    def rounded_timesteps(self, run: RunSigmas) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The timesteps and the σ's of a run, both (n,), if the timesteps are rounded and do not determine the σ's.

        With Karras' spacing diffusers' multistep schedulers round the timesteps that their networks see.
        """
        timesteps = torch.tensor(run.timesteps, dtype=torch.float64, device="cpu")
        sigmas = torch.tensor(run.sigmas, dtype=torch.float64, device="cpu")
        implied = torch.as_tensor(self.parameterization.sigma(timesteps))
        if self.train_sigmas is None or torch.allclose(implied, sigmas, rtol=1e-4, atol=0):
            return None
        return timesteps, sigmas

    def _spaced(self, count: int) -> RunSigmas:
        config = self.config
        if config.sigma_knots is None and (self.train_sigmas is not None or config.timesteps_from is not None):
            return self._as_diffusers(count)
        # A run to σ_min has one σ more than steps, except that with a beta schedule it ends at the first timestep.
        points = count + (config.final_sigmas_type == "sigma_min" and self.train_sigmas is None)
        if config.sigma_knots is not None:
            sigmas = knotted_sigmas(config.sigma_knots, points)
        else:
            sigmas = geometric_sigmas(config.sigma_max, config.sigma_min, points)
        sigmas = rounded(sigmas[:count])
        if not is_decreasing(sigmas):
            raise ValueError(
                f"{count} values of sigma between {sigmas[0]} and {sigmas[-1]} are no longer apart in float32. Take a "
                "smaller `num_inference_steps`, or other `sigma_max`, `sigma_min` or `sigma_knots`."
            )
        return RunSigmas(sigmas, [*map(self._timestep, sigmas)], self._final(sigmas[-1]))

    def _as_diffusers(self, count: int) -> RunSigmas:
        """Those of the diffusers scheduler that `timesteps_from` names; without a name DDIM's, for a beta schedule."""
        config, train_sigmas = self.config, self.train_sigmas
        trained = config.num_train_timesteps if train_sigmas is None else len(train_sigmas)
        if train_sigmas is not None and count > trained:
            raise ValueError(f"`num_inference_steps` must be at most the {trained} timesteps trained, but is {count}.")
        timesteps, sigmas = timesteps_of_class(config.timesteps_from or "DDIMScheduler", config, trained, count)
        within = len(timesteps) == count and 0 <= timesteps[-1] <= timesteps[0] < trained
        if train_sigmas is not None and not within:
            raise ValueError(
                f"`timestep_spacing` {config.timestep_spacing!r} with `steps_offset` = {config.steps_offset} gives "
                f"{len(timesteps)} timesteps from {timesteps[0]} in place of {count} within 0 to {trained - 1}, those "
                "trained. Set `steps_offset` to 0 or take fewer steps."
            )
        if sigmas is None:
            sigmas = [self._trained_sigma(t) for t in timesteps]
        if not is_decreasing(sigmas):
            raise ValueError(
                f"The {count} values of sigma of {config.timesteps_from} do not fall strictly. Take a smaller "
                "`num_inference_steps`, or set `timesteps_from=None`."
            )
        return RunSigmas(sigmas, [*map(float, timesteps)], self._final(sigmas[-1]))

    def _from_sigmas(self, sigmas: Values) -> RunSigmas:
        given = _as_float64("sigmas", sigmas)
        values, final = self._without_end(rounded(given.flatten().tolist()))
        _check_decreasing("sigmas", given, values)
        if self.train_sigmas is not None and values[0] > 1.01 * self.train_sigmas[-1]:
            raise ValueError(
                f"`sigmas` must be at most {self.train_sigmas[-1]:.6g}, the largest of the beta schedule, but are "
                f"{given.tolist()}."
            )
        return RunSigmas(values, [*map(self._timestep, values)], final)

    def _from_timesteps(self, timesteps: Values) -> RunSigmas:
        given = _as_float64("timesteps", timesteps)
        labels = rounded(given.flatten().tolist())
        values, final = self._without_end([float(self.parameterization.sigma(label)) for label in labels])
        labels = labels[: len(values)]
        _check_decreasing("timesteps", given, values)
        if self.train_sigmas is not None and not 0 <= labels[-1] <= labels[0] < len(self.train_sigmas):
            raise ValueError(
                f"`timesteps` must lie from 0 to {len(self.train_sigmas) - 1}, as trained, but are {given.tolist()}."
            )
        return RunSigmas(values, labels, final)

    def _without_end(self, sigmas: list[float]) -> tuple[list[float], float]:
        """The σ's at the start of each step and the final one, which the caller may have given or left out."""
        if len(sigmas) > 1 and sigmas[-1] == 0:
            return sigmas[:-1], 0.0
        # EDM's schedulers give σ_min twice where they end there.
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
        """σ at a timestep, from the beta schedule itself where it is one of the training's."""
        if self.train_sigmas is None or timestep % 1:
            return float(self.parameterization.sigma(timestep))
        return self.train_sigmas[int(timestep)]


def rounded(values: list[float]) -> list[float]:
    """In float32, so that the network sees exactly the σ's of the solver's coefficients."""
    result: list[float] = torch.tensor(values, dtype=torch.float32, device="cpu").tolist()
    return result


def _as_float64(name: str, values: Values) -> torch.Tensor:
    if isinstance(values, torch.Tensor):  # which may be on a device without float64
        values = values.detach().cpu()
    try:
        return torch.as_tensor(values, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be a list of numbers, but is {values!r:.100}.") from error


def _check_decreasing(name: str, given: torch.Tensor, sigmas: list[float]) -> None:
    if not (given.ndim == 1 and sigmas and is_decreasing(sigmas)):
        raise ValueError(
            f"`{name}` must be a list that falls strictly and stays positive in float32 (a last 0 aside), "
            f"but is {given.tolist()}."
        )
