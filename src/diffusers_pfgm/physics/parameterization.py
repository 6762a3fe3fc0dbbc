"""The prediction type and the preconditioning of a network: one object that computes x̂ from its output.

Solvers, losses and likelihoods work with x̂ = E[y | x, σ] alone. `Parameterization` is the one place where x̂ is computed
from a network's output F, and where the output that a network learns is computed from x̂. A new prediction type is a
subclass of `Prediction` with an entry in `PREDICTIONS`, and a new preconditioning is a subclass of `Preconditioning`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from .field_prediction import FieldPrediction, check_gamma
from .noise_estimate import NoiseEstimate
from .preconditioning import (
    ZERO_SNR_SIGMA,
    DDPMPreconditioning,
    EDMPreconditioning,
    Preconditioning,
    Scalar,
    StudentTPreconditioning,
)
from .prediction import EpsilonPrediction, Prediction, SamplePrediction, VPrediction
from .tensors import append_dims, cast_clamped

PREDICTIONS: dict[str, Callable[[Preconditioning, float], Prediction]] = {
    "field": FieldPrediction,
    "sample": lambda preconditioning, gamma: SamplePrediction(preconditioning),
    "epsilon": lambda preconditioning, gamma: EpsilonPrediction(preconditioning),
    "v_prediction": lambda preconditioning, gamma: VPrediction(preconditioning),
}
PREDICTIONS_AT_ZERO_SNR = ("sample", "v_prediction")  # those whose output determines x̂ at infinite σ


@dataclass(frozen=True)
class Parameterization:
    """A prediction type together with a preconditioning.

    Args:
        prediction_type: "field", "sample", "epsilon" or "v_prediction". Defaults to "field".
        gamma: γ of the normalized field, in data units. Defaults to 5.
        sigma_data: standard deviation of the data, for EDM's preconditioning; None, the default, for other networks.
        train_sigmas: noise level σ of each training timestep of a network with a beta schedule, increasing; None, the
            default, for other networks.
        learns_variance: whether the network also predicts a variance, in C further channels, which are not used here
            (arXiv 2102.09672). Defaults to False.
        noise_estimate: estimate of a sample's noise level, for the Student-t preconditioning of a network at finite D;
            None, the default, for other networks. It needs `sigma_data`.
        boundary: σ_b > 0, in data units, for a consistency model f = c_b x + (1 − c_b) x̂_θ with c_b = σ_b²/(σ_b² + s²)
            at the noise level s (`losses.consistency`), which is x itself where the noise vanishes; None, the default,
            for other networks.

    Attributes:
        preconditioning: the `Preconditioning` of the network's input.
        prediction: the `Prediction` that relates its output to x̂.

    Raises:
        ValueError: if `prediction_type` is unknown, `gamma` is negative or not finite, `sigma_data` is not positive and
            finite, both `sigma_data` and `train_sigmas` are set, `noise_estimate` is set without `sigma_data`,
            `boundary` is not positive or is set together with `train_sigmas`, or `prediction_type` does not support
            `learns_variance` or the infinite noise level of `train_sigmas`.
    """

    prediction_type: str = "field"
    gamma: float = 5.0
    sigma_data: float | None = None
    train_sigmas: tuple[float, ...] | None = None
    learns_variance: bool = False
    noise_estimate: NoiseEstimate | None = None
    boundary: float | None = None
    preconditioning: Preconditioning = field(init=False, repr=False, compare=False)
    prediction: Prediction = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.prediction_type not in (*PREDICTIONS,):  # a tuple, since the value may not be hashable
            raise ValueError(f"`prediction_type` must be one of {(*PREDICTIONS,)}, but is {self.prediction_type!r}.")
        check_gamma(self.gamma)
        if self.sigma_data is not None and not 0 < self.sigma_data < math.inf:
            raise ValueError(f"`sigma_data` must be a finite number > 0 or None, but is {self.sigma_data}.")
        if self.learns_variance and self.prediction_type == "field":
            raise ValueError(
                "`variance_type` 'learned' and 'learned_range' are for networks of diffusion models, but "
                "`prediction_type` is 'field', which has no variance. Set `variance_type=None`."
            )
        if self.noise_estimate is not None and self.sigma_data is None:
            raise ValueError("`noise_estimate` needs `sigma_data`, the standard deviation of the data. Set it too.")
        if self.boundary is not None and not 0 < self.boundary < math.inf:
            raise ValueError(
                f"`boundary` (`consistency_boundary` of a scheduler) must be a finite number > 0 or None, but is "
                f"{self.boundary}."
            )
        if self.train_sigmas is not None:
            if self.boundary is not None:
                raise ValueError(
                    "`boundary` (`consistency_boundary` of a scheduler) is for networks whose noise levels are "
                    "continuous, but a beta schedule defines finitely many. Set one of them to None."
                )
            if self.sigma_data is not None:
                raise ValueError(
                    f"`sigma_data` = {self.sigma_data} preconditions a network as in EDM, but a beta schedule "
                    "is for networks of the DDPM family. Set one of them to None."
                )
            if self.train_sigmas[-1] >= ZERO_SNR_SIGMA and self.prediction_type not in PREDICTIONS_AT_ZERO_SNR:
                raise ValueError(
                    f"`prediction_type` {self.prediction_type!r} cannot determine x̂ where sigma is infinite, "
                    "as with zero terminal SNR. Use a network for 'v_prediction' or 'sample'."
                )
        preconditioning = Preconditioning()
        if self.train_sigmas is not None:
            preconditioning = DDPMPreconditioning(self.train_sigmas)
        elif self.sigma_data is not None and self.noise_estimate is not None:
            preconditioning = StudentTPreconditioning(self.sigma_data, self.noise_estimate)
        elif self.sigma_data is not None:
            preconditioning = EDMPreconditioning(self.sigma_data)
        # A frozen dataclass allows no other assignment. torch.compile cannot trace a `cached_property`.
        object.__setattr__(self, "preconditioning", preconditioning)
        object.__setattr__(self, "prediction", PREDICTIONS[self.prediction_type](preconditioning, self.gamma))

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Objects that version 0.1.0 pickled have neither `preconditioning` nor `prediction`.
        self.__dict__.update(state)
        self.__post_init__()

    def output_channels(self, channels: int) -> int:
        """The number of output channels for C = `channels`: C, C + 1 for the field, 2 C with a learned variance."""
        return 2 * channels if self.learns_variance else self.prediction.output_channels(channels)

    def allows_channels(self, num_channels: int, channels: int) -> bool:
        """Whether an output may have `num_channels` channels for data with `channels` channels.

        With a learned variance the variance may also be missing, since some pipelines of diffusers remove it first.
        """
        return num_channels == self.output_channels(channels) or (self.learns_variance and num_channels == channels)

    def check_output(self, output: torch.Tensor, x: torch.Tensor) -> None:
        """Raise a ValueError that names both shapes unless `output` has the shape of an output for `x`."""
        expected = (x.shape[0], self.output_channels(x.shape[1]), *x.shape[2:])
        same = output.ndim == x.ndim and self.allows_channels(output.shape[1], x.shape[1])
        if not same or (output.shape[0], *output.shape[2:]) != (x.shape[0], *x.shape[2:]):
            raise ValueError(
                f"`model_output` must have the shape {expected} for prediction_type {self.prediction_type!r}, but has "
                f"{tuple(output.shape)}. A network for 'field' returns one channel more than the data, one that also "
                "predicts a variance (`variance_type` 'learned' or 'learned_range') twice as many, any other the same "
                "number: set `out_channels` of the network, or `prediction_type` or `variance_type` of the scheduler."
            )

    def noise_level(self, x: torch.Tensor, sigma: Scalar) -> Scalar:
        """The noise level for which the input and the output are scaled: σ, or an estimate from x, (B, 1, ...).

        Args:
            x: (B, *), in data units.
            sigma: noise level σ, a number, () or (B, 1, ...).
        """
        return self.preconditioning.noise_level(x, sigma)

    def c_in(self, noise_level: Scalar) -> Scalar:
        """The factor of x in the network's input."""
        return self.preconditioning.c_in(noise_level)

    def c_noise(self, noise_level: Scalar) -> Scalar:
        """The timestep passed to the network."""
        return self.preconditioning.c_noise(noise_level)

    def sigma(self, c_noise: Scalar) -> Scalar:
        """The inverse of `c_noise`: σ at a timestep."""
        return self.preconditioning.sigma(c_noise)

    def timestep(self, noise_level: Scalar) -> Scalar:
        """`c_noise` in the shape that a network takes: a number, () or (B,), for a number, () or (B, 1, ...)."""
        timestep = self.c_noise(noise_level)
        if isinstance(timestep, torch.Tensor) and timestep.ndim:
            return timestep.flatten()
        return timestep

    def model_input(self, x: torch.Tensor, sigma: Scalar) -> tuple[torch.Tensor, Scalar, Scalar]:
        """The network's input c_in x, its timestep c_noise, and the noise level for both.

        Args:
            x: (B, C, *), in data units.
            sigma: noise level σ, a number, () or (B, 1, ...).

        Returns:
            c_in x, (B, C, *), in the dtype of x; the timestep, a number, () or (B,); and the noise level, a number, ()
            or (B, 1, ...).
        """
        noise_level = self.noise_level(x, sigma)
        return cast_clamped(self.c_in(noise_level) * x, x.dtype), self.timestep(noise_level), noise_level

    def noise_level_at(self, timestep: Scalar, ndim: int) -> Scalar:
        """The noise level for which a network was called with a timestep, shaped for x with `ndim` dimensions.

        Args:
            timestep: a number, () or (B,), as `model_input` returns it.
            ndim: number of dimensions of x.

        Returns:
            A number, () or (B, 1, ...).
        """
        noise_level = self.sigma(timestep)
        if isinstance(noise_level, torch.Tensor) and noise_level.ndim:
            return append_dims(noise_level, ndim)
        return noise_level

    def denoised(self, output: torch.Tensor, x: torch.Tensor, noise_level: Scalar) -> torch.Tensor:
        """x̂ from a network's output.

        Args:
            output: the network's output, (B, C', *), see `output_channels`.
            x: (B, C, *), in data units, not multiplied by `c_in`.
            noise_level: the noise level of the network's input, see `noise_level`: a number, () or (B, 1, ...).

        Returns:
            x̂ (B, C, *), in data units; for a consistency model its prediction f of the end of the field line.
        """
        if self.learns_variance:
            output = output[:, : x.shape[1]]
        denoised = self.prediction.denoised(output, x, noise_level)
        if self.boundary is None:
            return denoised
        share = 1 / (1 + (noise_level / self.boundary) ** 2)  # c_b
        return denoised + share * (x - denoised)

    def target(self, denoised: torch.Tensor, x: torch.Tensor, noise_level: Scalar) -> torch.Tensor:
        """The output F for which `denoised` returns a given x̂: the target of training.

        Args:
            denoised: x̂ (B, C, *), in data units; for a consistency model f.
            x: (B, C, *), in data units, not multiplied by `c_in`.
            noise_level: the noise level of the network's input, see `noise_level`: a number, () or (B, 1, ...).

        Returns:
            (B, C, *), or (B, C + 1, *) for the normalized field. A learned variance is not included.
        """
        if self.boundary is not None:
            # x̂_θ = f + (f − x) c_b/(1 − c_b), in which 1 − c_b is not computed as a difference
            denoised = denoised + (denoised - x) * (self.boundary / noise_level) ** 2
        return self.prediction.target(denoised, x, noise_level)
