"""Charges with class labels: the charges of each class make a field."""

from __future__ import annotations

import torch

from .charges import Charges


class ClassCharges:
    """Point charges sorted by their class labels, so that the charges of a class are a slice of one prepared copy.

    Args:
        charges: (K, *), in data units.
        labels: class of each charge, (K,).
        dtype: dtype of the prepared copy, as in `Charges`.

    Attributes:
        all: all charges, sorted by class.

    Raises:
        ValueError: if `labels` does not have one label for each charge, or `charges` holds NaN or infinity.

    Examples:
        >>> charges = ClassCharges(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([1, 0, 1]))
        >>> charges.of(1).points.flatten().tolist(), charges.of(7).shape
        ([0.0, 2.0], torch.Size([3, 1]))
    """

    def __init__(self, charges: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype | None = None) -> None:
        check_charge_labels("labels", charges, labels)
        order = labels.argsort(stable=True).to(charges.device)
        self.all = Charges(charges[order], dtype)
        self.shape, self.dtype = self.all.shape, self.all.dtype
        classes, counts = labels.cpu().unique(return_counts=True)
        ends = counts.cumsum(0).tolist()
        starts = [0, *ends[:-1]]
        self._rows = {int(label): slice(*rows) for label, *rows in zip(classes, starts, ends, strict=True)}

    def of(self, label: int | torch.Tensor) -> Charges:
        """The charges with this label; all charges if none has it, as for the null class."""
        rows = self._rows.get(int(label))  # a tensor of one element is a label too, but no key of the dictionary
        return self.all if rows is None else self.all[rows]


def charges_of_class(charges: torch.Tensor, labels: torch.Tensor, label: int) -> torch.Tensor:
    """The charges with this label; all charges if none has it, as for the null class.

    Unlike `ClassCharges` this copies one class at a time, for charges that are used once.

    Args:
        charges: (K, *).
        labels: class of each charge, (K,), on the CPU.
        label: the class.
    """
    rows = (labels == label).nonzero().flatten()
    return charges[rows.to(charges.device)] if len(rows) else charges


def check_charge_labels(name: str, charges: torch.Tensor, labels: torch.Tensor) -> None:
    """Raise a ValueError that names the argument, unless `labels` is a tensor with one label for each charge."""
    shape = tuple(labels.shape) if isinstance(labels, torch.Tensor) else None
    if shape != tuple(charges.shape[:1]):
        kind = type(labels).__name__ if shape is None else f"a tensor of the shape {shape}"
        raise ValueError(
            f"`{name}` must be a tensor with one label for each of the {charges.shape[0]} charges, but is {kind}."
        )
