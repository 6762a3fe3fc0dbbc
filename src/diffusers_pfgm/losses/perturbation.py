r"""The perturbation objective of PFGM++: regression of a clean sample from its perturbation.

A clean sample y is perturbed to x = y + σ n, with ln σ ~ N(p_mean, p_std²) as in EDM (arXiv 2206.00364, table 1) and n
the unit noise of the Poisson kernel (PFGM++, arXiv 2302.04265, section 3.2). For a network F with the preconditioning
x̂ = c_skip x + c_out F (`physics.preconditioning`) the loss is the mean squared error of its output,

    L = E_{σ, y, n} ‖F(c_in x, c_noise) − (y − c_skip x)/c_out‖² / N.

For fixed x and σ it is minimal where c_skip x + c_out F is the conditional mean E[y | x, σ] = x̂, whatever the
distribution of n. In terms of x̂ it is the error ‖x̂ − y‖² weighted by 1/c_out², which for `sigma_data` is EDM's weight.
At D = ∞ this is denoising score matching.

For finite D the noise is heavy-tailed. By default it is conditioned on ‖n‖ ≤ 4 √N (`physics.bounded_noise`). In many
dimensions a sample that starts on the shell keeps this bound on its whole field line, so that sampling only calls the
network where it was trained.

With the Student-t preconditioning the coefficients, and therefore the weight 1/c_out², follow from the estimate ŝ(x, σ)
of the noise level of a sample. A weight that is a function of x and σ alone does not move the minimum. A weight that
depends on the true noise level s of a sample does: for example, 1/s² ≈ N/‖x − y‖² multiplies each term of the
conditional mean by ‖x − y‖⁻², which in many dimensions gives almost the conditional mean for D + 2 in place of D.

Given charges, their posterior mean x̂ replaces y in the target (arXiv 2302.00670, "stable target field", here for any
D). This target has no noise, but costs a distance to each charge. It is the posterior mean for the whole kernel, so for
fewer than about 64 dimensions the noise should not be bounded.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from ..physics.bounded_noise import check_trainable, reach, sample_bounded
from ..physics.charges import check_finite
from ..physics.field import unchecked_posterior_mean
from ..physics.kernel import PoissonKernel
from ..physics.parameterization import Parameterization
from ..physics.tensors import Generators, append_dims, at_least_float32, check_samples, draw
from .charge_targets import AnyCharges, target_of_charges
from .loss_output import LossOutput, mean_squares


class PerturbationObjective:
    """The objective of PFGM++ for any D: the mean squared error of the network's output for a perturbed sample.

    σ is log-normal as in EDM (arXiv 2206.00364, table 1). By r = σ√D the same hyperparameters serve any D.

    By default the root mean square of a sample's noise is limited to 4 σ (`physics.bounded_noise`), so that inputs,
    targets and gradients are bounded for finite D. With the same limit as the scheduler's `max_norm`, see `max_norm`,
    the flow maps the prior exactly to the data.

    Args:
        parameterization: the network's parameterization, with any prediction type but "field". The target of "field"
            requires more than one charge.
        aug_dim: D, at least 0.01; None for ∞. Defaults to 1.
        p_mean: mean of ln σ. Defaults to -1.2.
        p_std: standard deviation of ln σ. Defaults to 1.2.
        bounded: limit the noise, the default. False for the complete kernel, the prior of the densities of
            `PoissonFlow`; for small D its losses overflow.

    Raises:
        ValueError: if the prediction type is "field", `p_mean` or `p_std` is not finite, or `aug_dim` is below 0.01.

    Examples:
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
        for name, value in (("p_mean", p_mean), ("p_std", p_std)):
            if not math.isfinite(value):
                raise ValueError(f"`{name}` must be a finite number, but is {value}.")
        self.parameterization = parameterization
        self.kernel = PoissonKernel(aug_dim)
        self.p_mean = p_mean
        self.p_std = p_std
        self.bounded = bounded and math.isfinite(self.kernel.aug_dim)
        check_trainable(self.kernel.aug_dim)

    def max_norm(self, sigma_max: float, data_dim: int) -> float | None:
        """The largest norm of the training noise at `sigma_max`: the `max_norm` of the trained network's scheduler.

        Args:
            sigma_max: the first noise level σ of sampling, in data units.
            data_dim: N, the number of elements of a sample.

        Returns:
            The norm in data units; None if the noise is not limited, as at D = ∞.
        """
        return sigma_max * reach(data_dim) if self.bounded else None

    def __call__(
        self,
        model: Callable[..., Any],
        clean: torch.Tensor,
        generator: Generators = None,
        charges: AnyCharges | None = None,
        class_labels: torch.Tensor | None = None,
        charge_labels: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> LossOutput:
        """Compute the loss of `model` on a batch.

        Args:
            model: called as `model(c_in x, c_noise, **model_kwargs).sample`.
            clean: clean samples y, (B, C, *), in data units.
            generator: one generator, or a list of B of them.
            charges: charges whose x̂ is the target, (K, C, *), in data units, including `clean`. None, the default, for
                y itself as the target.
            class_labels, charge_labels: see `FieldObjective`; `class_labels` are passed to the model.
            **model_kwargs: further keyword arguments of the model.

        Returns:
            The loss and its parts.

        Raises:
            ValueError: as in `FieldObjective.__call__`, and if there are `charge_labels` without `charges`.
        """
        check_samples("clean", clean)
        if charges is None and charge_labels is not None:
            raise ValueError("`charge_labels` were given without `charges`. Pass both, or neither.")
        normal = draw(torch.randn, (clean.shape[0],), generator, clean.device)
        sigma = (self.p_mean + self.p_std * normal).exp()
        sigma_column = append_dims(sigma, clean.ndim)
        sample = functools.partial(sample_bounded, self.kernel) if self.bounded else self.kernel.sample
        x = clean + sample(tuple(clean.shape), sigma, generator, clean.device, clean.dtype)
        check_finite("clean", clean)  # after the draws, during which a GPU may still compute the previous step
        parameterization = self.parameterization
        model_input, timestep, noise_level = parameterization.model_input(x, sigma_column)
        if class_labels is not None:
            model_kwargs["class_labels"] = class_labels
        denoised = clean
        if charges is not None:
            mean = functools.partial(unchecked_posterior_mean, aug_dim=self.kernel.aug_dim)
            denoised = target_of_charges(mean, x, sigma, charges, class_labels, charge_labels)
        output = model(model_input, timestep, **model_kwargs).sample
        parameterization.check_output(output, clean)
        return mean_squares(at_least_float32(output) - parameterization.target(denoised, x, noise_level), sigma)
