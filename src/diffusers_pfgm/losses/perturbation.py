"""The perturbation objective."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from ..physics.bounded_noise import check_trainable, reach, sample_bounded
from ..physics.charges import check_finite
from ..physics.kernel import PoissonKernel
from ..physics.parameterization import Parameterization
from ..physics.tensors import Generators, append_dims, draw
from .loss_output import LossOutput, mean_squares


class PerturbationObjective:
    """The perturbation objective of PFGM++ for any D: regress the clean point from its perturbation.

    σ is log-normal as in EDM (arXiv 2206.00364, table 1), whose hyper-parameters carry over by r = σ√D. The error is
    taken in the network's own output, which with `sigma_data` is EDM's weighting.

    By default the heavy tail of a finite D is cut where the noise exceeds four times its σ (`physics.bounded_noise`),
    so that inputs, targets and gradients are bounded. Give the scheduler the same limit, `max_norm`, and samples follow
    the data exactly.

    Args:
        parameterization: any but "field", whose target one point alone does not make.
        aug_dim: D, at least 0.01; None for ∞.
        p_mean: mean of ln σ.
        p_std: standard deviation of ln σ.
        bounded: cut the tail. False for the whole kernel, whose prior `PoissonFlow` takes for densities; for small D
            its losses overflow.

    Raises:
        ValueError: for "field", or a D that is too small.

    Example:
        >>> from diffusers_pfgm import PoissonFlowScheduler
        >>> objective = PerturbationObjective(Parameterization("epsilon", sigma_data=0.5), aug_dim=1.0)
        >>> limit = objective.max_norm(sigma_max=80.0, data_dim=64)
        >>> scheduler = PoissonFlowScheduler(
        ...     sigma_max=80.0, prediction_type="epsilon", sigma_data=0.5, max_norm=limit
        ... )
        >>> scheduler.config.max_norm
        2560.0
    """

    def __init__(
        self,
        parameterization: Parameterization,
        aug_dim: float | None = 1.0,
        p_mean: float = -1.2,
        p_std: float = 1.2,
        bounded: bool = True,
    ) -> None:
        if parameterization.prediction_type == "field":
            raise ValueError(
                "prediction_type 'field' needs the field of many charges: use `FieldObjective`, or another type here."
            )
        self.parameterization, self.kernel = parameterization, PoissonKernel(aug_dim)
        self.p_mean, self.p_std, self.bounded = p_mean, p_std, bounded and math.isfinite(self.kernel.aug_dim)
        check_trainable(self.kernel.aug_dim)

    def max_norm(self, sigma_max: float, data_dim: int) -> float | None:
        """Largest norm ‖x‖ that training has seen at `sigma_max`, in data units; None without a limit, as at D = ∞.

        It is the `max_norm` of a scheduler that draws `data_dim` numbers with the trained network.
        """
        return sigma_max * reach(data_dim) if self.bounded else None

    def __call__(
        self, model: Callable[..., Any], clean: torch.Tensor, generator: Generators = None, **model_kwargs: Any
    ) -> LossOutput:
        """Loss of `model`, called as `model(c_in x, c_noise, **model_kwargs).sample`, on `clean` (B, C, *).

        Raises:
            ValueError: if `clean` holds NaN or infinity (by index), or the output has the wrong shape.
        """
        check_finite("clean", clean)
        normal = draw(torch.randn, (clean.shape[0],), generator, clean.device)
        sigma = (self.p_mean + self.p_std * normal).exp()
        height = append_dims(sigma, clean.ndim)
        sample = functools.partial(sample_bounded, self.kernel) if self.bounded else self.kernel.sample
        x = clean + sample(tuple(clean.shape), sigma, generator, clean.device, clean.dtype)
        parameterization = self.parameterization
        output = model(parameterization.c_in(height) * x, parameterization.c_noise(sigma), **model_kwargs).sample
        parameterization.check_output(output, clean)
        return mean_squares(output.float() - parameterization.target(clean, x, height), sigma)
