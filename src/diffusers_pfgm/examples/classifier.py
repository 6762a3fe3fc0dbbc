"""A small classifier of real images, which judges whether drawn images show the class that was asked for."""

from __future__ import annotations

from typing import Any

import torch

from ..pipelines.pipeline_pfgm import PFGMPipeline
from ..training.data.images import ImageTensors
from ..training.data.labels import read_class_labels
from ..training.data.source import open_images


def load(name: str, resolution: int, mode: str, id2label: dict[int, str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (K, C, R, R) in [-1, 1] and labels (K,), numbered by `id2label`, of a parquet file, folder or Hub id."""
    dataset = open_images(name)
    numbers, names = read_class_labels(dataset)
    known = {label: number for number, label in id2label.items()}
    unknown = sorted({names[number] for number in numbers.tolist()} - set(known))
    if unknown:
        raise ValueError(f"{name!r} has the classes {unknown}, but the model's are {list(known)}. Use its own data.")
    labels = torch.tensor([known[names[number]] for number in numbers.tolist()])
    return ImageTensors(dataset, resolution, mode=mode, center_crop=True).plain(), labels


def load_conditional(kind: type[PFGMPipeline], name: str) -> tuple[Any, dict[int, str]]:
    """A pipeline of this kind, quiet, from a folder or Hub id, and the names of its classes."""
    pipe = kind.from_pretrained(name)
    pipe.set_progress_bar_config(disable=True)
    if not pipe.config.id2label:
        raise ValueError(f"`--model` {name!r} has no classes. Train one with `--class_conditional`.")
    return pipe, pipe.config.id2label


def make_classifier(channels: int, resolution: int, classes: int) -> torch.nn.Sequential:
    """Two convolutions and two layers, of 0.4 M parameters for 28 x 28 pixels."""
    nn, rest = torch.nn, resolution // 4
    return nn.Sequential(
        *(nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(64 * rest**2, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, classes)),
    )


def train(classifier: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int) -> None:
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
def predict(classifier: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([classifier(part).argmax(1) for part in images.split(500)])
