"""Class labels of a data set of images, beside its `ImageTensors`. Needs the extra `training`."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import torch

from .images import ImageTensors


def read_class_labels(dataset: datasets.Dataset, column: str | None = None) -> tuple[torch.Tensor, dict[int, str]]:
    """Labels (len(dataset),) from 0, and the name of each class.

    Args:
        dataset: with a column of class labels, whole numbers or strings.
        column: its name; the first column of class labels by default, as an image folder has it from its subfolders.

    Raises:
        ValueError: if there is no such column, or a label is missing (with its index).
    """
    features = dataset.features
    if column is None:
        found = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        if not found:
            raise ValueError(
                f"`--class_conditional` finds no column of class labels among {list(features)}. Name one by "
                "`--label_column`, or sort the images into one subfolder for each class."
            )
        column = found[0]
    if column not in features:
        raise ValueError(f"`--label_column` is {column!r}, but the data set's columns are {list(features)}.")
    values = dataset[column][:]
    feature = features[column]
    numbers = range(len(feature.names)) if isinstance(feature, datasets.ClassLabel) else None
    missing = [
        i
        for i, value in enumerate(values)
        if not isinstance(value, int | str) or value == -1 or (numbers is not None and value not in numbers)
    ]
    if missing:
        raise ValueError(f"Image {missing[0]} of the data set has the label {values[missing[0]]!r} in {column!r}.")
    if isinstance(feature, datasets.ClassLabel):
        return torch.tensor(values), dict(enumerate(feature.names))
    classes = sorted(set(values))
    number = {value: i for i, value in enumerate(classes)}
    return torch.tensor([number[value] for value in values]), {i: str(value) for i, value in enumerate(classes)}


class LabelledImages(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Images and their labels, as batches (images (B, C, R, R), labels (B,)); without labels these are 0."""

    def __init__(self, images: ImageTensors, labels: torch.Tensor | None) -> None:
        self.images = images
        self.labels = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images.__getitems__(keys), self.labels[torch.as_tensor(keys) % len(self)]
