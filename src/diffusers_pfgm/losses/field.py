r"""The field objective of PFGM: regression of the normalized field of a batch of charges.

A clean sample y is perturbed to a point (x, z) (`physics.perturbation`). The target is the normalized field of K
charges y_i, the data points of a larger batch (PFGM, arXiv 2209.11178, section 3.2 and Algorithm 1),

    v(x, z) = √N (x̂ − x, −z) / (‖(x̂ − x, z)‖ + γ),        x̂ = Σ w_i y_i / Σ w_i,
    w_i = (‖x − y_i‖² + z²)^(−(N+1)/2),

and the loss of a network F with N + 1 components is the mean squared error

    L = E_{(x, z)} ‖F(x, z) − v(x, z)‖² / (N + 1).

As K grows, v converges to the normalized field of the whole data distribution, which is the minimum of L. Unlike the
target of denoising score matching, v does not depend on the y that x was perturbed from, except that y should be among
the charges. It therefore has little noise.

With class labels the charges are those of the sample's class, or all of them for the null class.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ..physics.charges import Charges, check_finite
from ..physics.class_charges import ClassCharges
from ..physics.field import unchecked_normalized_field
from ..physics.parameterization import Parameterization
from ..physics.perturbation import PFGMHyperparameters, perturb
from ..physics.tensors import Generators, append_dims, at_least_float32, check_samples
from .charge_targets import target_of_charges
from .loss_output import LossOutput, mean_squares

LEAST_Z = 1e-6  # the smallest z whose ln(z)/4 a preconditioned network gets as its timestep, in units of sigma_data


class FieldObjective:
    """The objective of PFGM: the mean squared error with respect to the normalized field of charges, at D = 1.

    Args:
        hyperparameters: hyperparameters of the perturbation, from `recommend_hyperparameters`.
        gamma: γ of the normalized field, in data units. Defaults to 5.
        sigma_data: standard deviation of the data. The network's input is then x/√(z² + sigma_data²) and its timestep
            ln(z)/4, as with EDM's preconditioning. None, the default, for the paper's network, which receives x and z.

    Raises:
        ValueError: if `gamma` is negative or not finite, or `sigma_data` is not positive.

    Examples:
        >>> from diffusers_pfgm import ChargeField, recommend_hyperparameters
        >>> data = torch.rand(16, 1, 4, 4)
        >>> objective = FieldObjective(recommend_hyperparameters(data_norm=2.3, data_dim=16))
        >>> model = ChargeField(data)  # the exact field has no loss
        >>> float(objective(model, data[:4], charges=data).loss) < 1e-10
        True
    """

    def __init__(
        self, hyperparameters: PFGMHyperparameters, gamma: float = 5.0, sigma_data: float | None = None
    ) -> None:
        self.hyperparameters = hyperparameters
        self.sigma_data = sigma_data
        self.parameterization = Parameterization("field", gamma, sigma_data)

    def __call__(
        self,
        model: Callable[..., Any],
        clean: torch.Tensor,
        charges: torch.Tensor | Charges | ClassCharges | None = None,
        generator: Generators = None,
        class_labels: torch.Tensor | None = None,
        charge_labels: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> LossOutput:
        """Compute the loss of `model` on a batch.

        Args:
            model: called as `model(x, z, **model_kwargs).sample`, with `sigma_data` as `model(c_in x, c_noise, ...)`;
                returns C + 1 channels.
            clean: clean samples y to perturb, (B, C, *), in data units.
            charges: charges y_i whose field is learned, (K, C, *), in data units, usually K ≥ B and including `clean`;
                by default `clean`. If they stay the same between calls, `Charges`, or `ClassCharges` with class labels.
            generator: one generator, or a list of B of them.
            class_labels: class of each sample, (B,), which is also passed to the model. A label that no charge has,
                such as the null class, selects all charges. None by default.
            charge_labels: class of each charge of a tensor, (K,); by default `class_labels`.
            **model_kwargs: further keyword arguments of the model.

        Returns:
            The loss and its parts. Its `sigma` is z.

        Raises:
            ValueError: if `clean` is not floating-point, `clean` or `charges` hold NaN or infinity (the error names the
                index), `charge_labels` are given without `class_labels` or do not have one label for each charge,
                `class_labels` do not have one label for each sample, `charges` are `Charges` although there are class
                labels, or the model's output has the wrong shape.
        """
        check_samples("clean", clean)
        x, z = perturb(clean, self.hyperparameters, generator=generator)
        check_finite("clean", clean)  # after the draws, during which a GPU may still compute the previous step
        if self.sigma_data is not None:
            z = z.clamp_min(LEAST_Z * self.sigma_data)  # a float32 draw of z may be 0
        charges = clean if charges is None else charges
        if class_labels is not None:
            model_kwargs["class_labels"] = class_labels
        field = functools.partial(unchecked_normalized_field, gamma=self.parameterization.gamma)
        target = target_of_charges(field, x, z, charges, class_labels, charge_labels)
        model_input, timestep, _ = self.parameterization.model_input(x, append_dims(z, x.ndim))
        output = model(model_input, timestep, **model_kwargs).sample
        self.parameterization.check_output(output, clean)
        v_x = output[:, :-1].flatten(1)
        v_z = output[:, -1:].flatten(1).mean(1, keepdim=True)
        return mean_squares(at_least_float32(torch.cat([v_x, v_z], dim=1)) - target, z)
