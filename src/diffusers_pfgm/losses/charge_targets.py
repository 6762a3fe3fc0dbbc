"""Targets of the training objectives that are computed from all charges, or from the charges of each sample's class."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from ..physics.charges import Charges
from ..physics.class_charges import ClassCharges, charges_of_class, check_charge_labels
from ..physics.field import check_result

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
        target: called as `target(x, sigma, charges)` with some of the samples; returns one row for each of them, which
            is NaN where an input is not finite.
        x: perturbed samples, (B, C, *), in data units.
        sigma: noise level σ of each sample, (B,).
        charges: charges (K, C, *). With class labels a tensor or `ClassCharges`.
        class_labels: class of each sample, (B,). A label that no charge has, such as the null class, selects all
            charges. None for all charges.
        charge_labels: class of each charge of a tensor, (K,); None for `class_labels`.

    Returns:
        The targets of all samples (B, ...), in the order of the samples. The other dimensions are those of `target`.

    Raises:
        ValueError: if `charge_labels` are given without `class_labels` or do not have one label for each charge,
            `class_labels` do not have one label for each sample, `charges` are `Charges` although there are class
            labels, or `x`, `sigma` or `charges` are not finite.
    """
    all_charges = charges.all if isinstance(charges, ClassCharges) else charges
    if class_labels is None:
        if charge_labels is not None:
            raise ValueError("`charge_labels` were given without `class_labels`. Pass both, or neither.")
        targets = target(x, sigma, all_charges)
    elif class_labels.shape != x.shape[:1]:
        raise ValueError(
            f"`class_labels` must have one label for each of the {len(x)} samples, but has the shape "
            f"{tuple(class_labels.shape)}. Repeat one label by `class_labels.expand({len(x)})`."
        )
    else:
        targets = _target_of_classes(target, x, sigma, charges, class_labels, charge_labels)
    # One check for all classes, since the host waits for the device in each.
    check_result(targets, x, "sigma", sigma, all_charges)
    return targets


def _target_of_classes(
    target: Target,
    x: torch.Tensor,
    sigma: torch.Tensor,
    charges: AnyCharges,
    class_labels: torch.Tensor,
    charge_labels: torch.Tensor | None,
) -> torch.Tensor:
    """Compute the target of each sample from the charges of its class; see `target_of_charges`."""
    charges_of: Callable[[int], torch.Tensor | Charges]
    if isinstance(charges, torch.Tensor):
        name, numbers = ("class_labels", class_labels) if charge_labels is None else ("charge_labels", charge_labels)
        check_charge_labels(name, charges, numbers)
        charges_of = functools.partial(charges_of_class, charges, numbers.cpu())
    elif isinstance(charges, ClassCharges):
        charges_of = charges.of
    else:
        raise ValueError(
            f"With `class_labels`, `charges` must be a tensor or ClassCharges, but are {type(charges).__name__}."
        )
    labels = class_labels.cpu()
    classes, counts = labels.unique(return_counts=True)
    rows = labels.argsort(stable=True).to(x.device)
    parts = zip(classes.tolist(), x[rows].split(counts.tolist()), sigma[rows].split(counts.tolist()), strict=True)
    sorted_targets = torch.cat([target(points, sigmas, charges_of(label)) for label, points, sigmas in parts])
    targets = torch.empty_like(sorted_targets)
    targets[rows] = sorted_targets
    return targets
