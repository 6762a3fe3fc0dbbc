"""The field objective."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ..physics.charges import Charges, check_finite
from ..physics.class_charges import ClassCharges, charges_of_class, check_charge_labels
from ..physics.field import normalized_field
from ..physics.parameterization import Parameterization
from ..physics.perturbation import PFGMHyperparameters, perturb
from ..physics.tensors import Generators
from .loss_output import LossOutput, mean_squares

ChargesOfClass = Callable[[int], torch.Tensor | Charges]


class FieldObjective:
    """The paper's objective: mean squared error to the normalised field of the charges, at D = 1.

    Args:
        hyperparameters: of the perturbation, from `recommend_hyperparameters`.
        gamma: γ of the normalised field, in data units.

    Example:
        >>> from diffusers_pfgm import ChargeField, recommend_hyperparameters
        >>> data = torch.rand(16, 1, 4, 4)
        >>> objective = FieldObjective(recommend_hyperparameters(data_norm=2.3, data_dim=16))
        >>> model = ChargeField(data)  # the exact field, which the objective must find flawless
        >>> float(objective(model, data[:4], charges=data).loss) < 1e-10
        True
    """

    def __init__(self, hyperparameters: PFGMHyperparameters, gamma: float = 5.0) -> None:
        self.hyperparameters = hyperparameters
        self.parameterization = Parameterization("field", gamma)

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
        """Loss of `model` on a batch.

        Args:
            model: called as `model(x, z, **model_kwargs).sample`, returns C + 1 channels.
            clean: (B, C, *), the points to perturb.
            charges: (K, C, *) with K ≥ B as a rule, the larger batch whose field is learned; `clean` by default.
                `Charges`, or with classes `ClassCharges`, where they stay the same between calls.
            generator: one generator, or a list of B of them.
            class_labels: (B,), the class that the network is told; one that no charge carries, such as the null class,
                stands for all charges.
            charge_labels: (K,), the classes of a tensor of charges; `class_labels` by default.
            **model_kwargs: given to the model.

        Raises:
            ValueError: if `clean` or `charges` hold NaN or infinity (by index), or shapes do not fit.
        """
        check_finite("clean", clean)
        x, z = perturb(clean, self.hyperparameters, generator=generator)
        charges = clean if charges is None else charges
        if class_labels is None:
            if charge_labels is not None:
                raise ValueError("`charge_labels` were given without `class_labels`. Pass both, or neither.")
            everything = charges.all if isinstance(charges, ClassCharges) else charges
            target = normalized_field(x, z, everything, self.parameterization.gamma)
        else:
            model_kwargs["class_labels"] = class_labels
            if isinstance(charges, torch.Tensor):
                carried = class_labels if charge_labels is None else charge_labels
                check_charge_labels(charges, carried)
                pick: ChargesOfClass = functools.partial(charges_of_class, charges, carried.cpu())
            elif isinstance(charges, ClassCharges):
                pick = charges.of
            else:
                raise ValueError(
                    "With `class_labels`, `charges` must be a tensor or ClassCharges, but are "
                    f"{type(charges).__name__}."
                )
            target = self._field_of_classes(x, z, pick, class_labels)
        output = model(x, z, **model_kwargs).sample
        self.parameterization.check_output(output, clean)
        v_x, v_z = output[:, :-1].flatten(1), output[:, -1:].flatten(1).mean(1, keepdim=True)
        return mean_squares(torch.cat([v_x, v_z], dim=1).float() - target, z)

    def _field_of_classes(
        self, x: torch.Tensor, z: torch.Tensor, charges_of: ChargesOfClass, class_labels: torch.Tensor
    ) -> torch.Tensor:
        target = x.new_empty(x.shape[0], x[0].numel() + 1)
        labels = class_labels.cpu()
        for label in labels.unique().tolist():
            rows = (labels == label).nonzero().flatten().to(x.device)
            target[rows] = normalized_field(x[rows], z[rows], charges_of(label), self.parameterization.gamma)
        return target
