"""Targets of the training objectives that are computed from all charges, or from the charges of each sample's class."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from ..physics.charges import Charges
from ..physics.class_charges import ClassCharges, charges_of_class, check_charge_labels

AnyCharges = torch.Tensor | Charges | ClassCharges
Target = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | Charges], torch.Tensor]


def target_of_charges(
    target: Target,
    x: torch.Tensor,
    sigma: torch.Tensor,
    charges: AnyCharges,
    class_labels: torch.Tensor | None,
    charge_labels: torch.Tensor | None,
) -> torch.Tensor:
    """Compute the target of each sample from all charges, or with class labels from those of its class.

    Args:
        target: called as `target(x, sigma, charges)` with some of the samples; returns one row for each of them.
        x: perturbed samples, (B, C, *), in data units.
        sigma: noise level σ of each sample, (B,).
        charges: charges (K, C, *). With class labels a tensor or `ClassCharges`.
        class_labels: class of each sample, (B,). A label that no charge has, such as the null class, selects all
            charges. None for all charges.
        charge_labels: class of each charge of a tensor, (K,); None for `class_labels`.

    Returns:
        The targets of all samples (B, ...), in the order of the samples. The other dimensions are those of `target`.

    Raises:
        ValueError: if `charge_labels` are given without `class_labels` or do not have one label for each charge, or
            `charges` are `Charges` although there are class labels.
    """
    if class_labels is None:
        if charge_labels is not None:
            raise ValueError("`charge_labels` were given without `class_labels`. Pass both, or neither.")
        return target(x, sigma, charges.all if isinstance(charges, ClassCharges) else charges)
    charges_of: Callable[[int], torch.Tensor | Charges]
    if isinstance(charges, torch.Tensor):
        numbers = class_labels if charge_labels is None else charge_labels
        check_charge_labels(charges, numbers)
        charges_of = functools.partial(charges_of_class, charges, numbers.cpu())
    elif isinstance(charges, ClassCharges):
        charges_of = charges.of
    else:
        raise ValueError(
            f"With `class_labels`, `charges` must be a tensor or ClassCharges, but are {type(charges).__name__}."
        )
    targets: torch.Tensor | None = None
    labels = class_labels.cpu()
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().flatten().to(x.device)
        values = target(x[rows], sigma[rows], charges_of(label))
        if targets is None:
            targets = values.new_empty(len(x), *values.shape[1:])
        targets[rows] = values
    assert targets is not None  # a batch has at least one sample
    return targets
