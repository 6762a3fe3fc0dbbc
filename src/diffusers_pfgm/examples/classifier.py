"""A small classifier that is trained on real images and predicts the classes of generated ones."""

from __future__ import annotations

from typing import Any

import torch

from ..pipelines.inputs import PIL_MODES
from ..pipelines.pipeline_pfgm import PFGMPipeline
from ..training.data.images import ImageTensors
from ..training.data.labels import read_class_labels
from ..training.data.source import open_images


def load_labelled_images(
    name: str, resolution: int, channels: int, id2label: dict[int, str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Load images with class labels.

    Args:
        name: a folder, a parquet file or the Hub id of a data set.
        resolution: R, the height and width of the images in pixels.
        channels: C, to which the images are converted.
        id2label: the names of the model's classes by number.

    Returns:
        Images (K, C, R, R) in [-1, 1], and their class numbers (K,) in `id2label`.

    Raises:
        ValueError: if the data have a class that is not in `id2label`.
    """
    dataset = open_images(name)
    numbers, names = read_class_labels(dataset)
    label2id = {label: number for number, label in id2label.items()}
    unknown = sorted({names[number] for number in numbers.tolist()} - set(label2id))
    if unknown:
        raise ValueError(
            f"{name!r} has the classes {unknown}, but the model's are {list(label2id)}. Pass data with the model's "
            "classes."
        )
    labels = torch.tensor([label2id[names[number]] for number in numbers.tolist()])
    return ImageTensors(dataset, resolution, mode=PIL_MODES[channels], center_crop=True).plain(), labels


def load_conditional_pipeline(pipeline_class: type[PFGMPipeline], name: str) -> tuple[Any, dict[int, str]]:
    """Load a class-conditional pipeline from a folder or the Hub, without progress bars, and the names of its classes.

    Raises:
        ValueError: if the pipeline has no class names.
    """
    pipe = pipeline_class.from_pretrained(name)
    pipe.set_progress_bar_config(disable=True)
    if not pipe.config.id2label:
        raise ValueError(f"`--model` {name!r} has no classes. Train one with `--class_conditional`.")
    return pipe, pipe.config.id2label


def make_classifier(channels: int, resolution: int, classes: int) -> torch.nn.Sequential:
    """Return a network of two convolutional and two linear layers, with 0.4 M parameters for 28 x 28 pixels."""
    nn = torch.nn
    pooled_size = resolution // 4
    return nn.Sequential(
        *(nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(64 * pooled_size**2, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, classes)),
    )


def train_classifier(classifier: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int) -> None:
    """Train a classifier on images (K, C, H, W) with class numbers (K,), by cross entropy."""
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-3)
    classifier.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(128):
            loss = torch.nn.functional.cross_entropy(classifier(images[rows]), labels[rows])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    classifier.eval()


@torch.no_grad()
def predict_classes(classifier: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the most likely class number of each image (K, C, H, W), (K,)."""
    return torch.cat([classifier(batch).argmax(1) for batch in images.split(500)])
