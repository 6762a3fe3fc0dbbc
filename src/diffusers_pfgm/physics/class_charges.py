"""Charges of several classes, each of which makes a field of its own."""

from __future__ import annotations

import torch

from .charges import Charges


class ClassCharges:
    """Point charges with class labels, sorted once, so that the charges of a class are a part of one prepared copy.

    Args:
        charges: (K, *), in data units.
        labels: (K,), their classes.
        dtype: of the prepared copy, as for `Charges`.

    Raises:
        ValueError: if there is not one label for each charge, or a charge is not finite.

    Example:
        >>> charges = ClassCharges(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([1, 0, 1]))
        >>> charges.of(1).points.flatten().tolist(), charges.of(7).shape
        ([0.0, 2.0], torch.Size([3, 1]))
    """

    def __init__(self, charges: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype | None = None) -> None:
        check_charge_labels(charges, labels)
        order = labels.argsort(stable=True).to(charges.device)
        self.all = Charges(charges[order], dtype)
        self.shape, self.dtype = self.all.shape, self.all.dtype
        classes, counts = labels.cpu().unique(return_counts=True)
        ends = counts.cumsum(0).tolist()
        starts = [0, *ends[:-1]]
        self._rows = {int(label): slice(*rows) for label, *rows in zip(classes, starts, ends, strict=True)}

    def of(self, label: int) -> Charges:
        """The charges of a class; all of them for a label that none carries, such as the null class."""
        return self.all[self._rows[label]] if label in self._rows else self.all


def charges_of_class(charges: torch.Tensor, labels: torch.Tensor, label: int) -> torch.Tensor:
    """The charges (K, *) whose label in `labels` (K,), on the CPU, is this one; all of them for one that none carries.

    Unlike `ClassCharges` this copies one class at a time, for charges that are used once.
    """
    rows = (labels == label).nonzero().flatten()
    return charges[rows.to(charges.device)] if len(rows) else charges


def check_charge_labels(charges: torch.Tensor, labels: torch.Tensor) -> None:
    """Raise a ValueError unless there is one label for each charge."""
    if labels.shape != charges.shape[:1]:
        raise ValueError(
            f"`charge_labels` must have one label for each of the {charges.shape[0]} charges, but has the shape "
            f"{tuple(labels.shape)}."
        )
