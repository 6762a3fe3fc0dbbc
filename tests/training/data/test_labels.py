"""Class labels are read from columns of every type."""

from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_pfgm.training.data.images import ImageTensors
from diffusers_pfgm.training.data.labels import LabelledImages, read_class_labels


def make(labels: list[Any], feature: Any) -> datasets.Dataset:
    images = [Image.fromarray(np.full((4, 4), 40 * i, np.uint8)) for i in range(len(labels))]
    features = datasets.Features({"image": datasets.Image(), "kind": feature})
    return datasets.Dataset.from_dict({"image": images, "kind": labels}, features)


@pytest.mark.parametrize(
    ("labels", "feature", "names"),
    [
        ([1, 0, 1], datasets.ClassLabel(names=["cat", "dog", "owl"]), {0: "cat", 1: "dog", 2: "owl"}),
        ([7, 3, 7], datasets.Value("int64"), {0: "3", 1: "7"}),
        (["b", "a", "b"], datasets.Value("string"), {0: "a", 1: "b"}),
    ],
)
def test_labels_count_from_zero(labels: list[Any], feature: Any, names: dict[int, str]) -> None:
    numbers, id2label = read_class_labels(make(labels, feature), "kind")
    assert numbers.tolist() == [1, 0, 1] and id2label == names and numbers.dtype == torch.int64


def test_the_first_class_column_is_the_default() -> None:
    labels, _ = read_class_labels(make([1, 0], datasets.ClassLabel(names=["cat", "dog"])))
    assert labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"among \['image', 'kind'\]\. .* into at least two subfolders"):
        read_class_labels(make([1, 0], datasets.Value("int64")))


@pytest.mark.parametrize(
    ("labels", "feature"),
    [
        (["a", None], datasets.Value("string")),
        ([0, -1], datasets.ClassLabel(names=["cat"])),
        ([0, None], datasets.ClassLabel(names=["cat"])),
        ([0.5, 0.5], datasets.Value("float32")),
    ],
)
def test_invalid_labels_are_named(labels: list[Any], feature: Any) -> None:
    with pytest.raises(
        ValueError, match=r"Image [01] of the data set has the label .* in 'kind', which is not a class"
    ):
        read_class_labels(make(labels, feature), "kind")


def test_an_unknown_column_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"`--label_column` is 'class', but the data set's columns are \['image', 'kind'"
    ):
        read_class_labels(make([1], datasets.Value("int64")), "class")


@pytest.mark.parametrize("labelled", [True, False])
def test_labels_stay_with_their_images(labelled: bool) -> None:
    dataset = make([0, 1, 2, 1], datasets.Value("int64"))
    labels = read_class_labels(dataset, "kind")[0] if labelled else None
    labelled_images = LabelledImages(ImageTensors(dataset, 4), labels)
    images, batch_labels = labelled_images.__getitems__([3, 0, 2])
    assert len(labelled_images) == 4 and batch_labels.tolist() == ([1, 0, 2] if labelled else [0, 0, 0])
    assert torch.allclose(images[:, 0, 0, 0], torch.tensor([120.0, 0.0, 80.0]) / 127.5 - 1)
