"""Class labels of a data set of images. Needs the extra `training`."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import torch

from .images import ImageTensors


def read_class_labels(dataset: datasets.Dataset, column: str | None = None) -> tuple[torch.Tensor, dict[int, str]]:
    """Return the labels (len(dataset),), counted from 0, and a dictionary from label to class name.

    Args:
        dataset: A data set with a column of class labels, which may be integers or strings.
        column: The name of that column. By default the first column of type `datasets.ClassLabel`; an image folder gets
            one from the names of its subfolders.

    Raises:
        ValueError: if the data set has no such column, or if a label is missing or invalid. The message then names the
            image.
    """
    features = dataset.features
    if column is None:
        label_columns = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        if not label_columns:
            raise ValueError(
                f"`--class_conditional` needs class labels, but there is no column of class labels among "
                f"{list(features)}. Name one by `--label_column`, or sort all images into at least two subfolders of "
                "the same depth, one for each class, without a metadata file, whose columns replace the subfolders."
            )
        column = label_columns[0]
    if column not in features:
        raise ValueError(f"`--label_column` is {column!r}, but the data set's columns are {list(features)}.")
    values = dataset[column][:]
    feature = features[column]
    known_labels = range(len(feature.names)) if isinstance(feature, datasets.ClassLabel) else None
    invalid = [
        i
        for i, value in enumerate(values)
        if not isinstance(value, int | str) or value == -1 or (known_labels is not None and value not in known_labels)
    ]
    if invalid:
        raise ValueError(
            f"Image {invalid[0]} of the data set has the label {values[invalid[0]]!r} in {column!r}, which is not a "
            "class. Repair the label, or remove the image."
        )
    if isinstance(feature, datasets.ClassLabel):
        return torch.tensor(values), dict(enumerate(feature.names))
    classes = sorted(set(values))
    labels = {value: i for i, value in enumerate(classes)}
    return torch.tensor([labels[value] for value in values]), {i: str(value) for i, value in enumerate(classes)}


class LabelledImages(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Images with their labels, read as batches of images (B, C, R, R) and labels (B,).

    Args:
        images: The images.
        labels: Class labels (len(images),); None without classes, all labels are then 0.
    """

    def __init__(self, images: ImageTensors, labels: torch.Tensor | None) -> None:
        self.images = images
        self.labels = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images (len(keys), C, R, R) of these keys and their labels (len(keys),).

        Args:
            keys: keys, epoch · len(self) + index of the image. An image has the same label in every epoch, but another
                crop and flip.
        """
        indices = torch.as_tensor(keys) % len(self)  # without the epoch
        return self.images.__getitems__(keys), self.labels[indices]
