"""scikit-learn's digits as images, as charges, and as files for the training script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import Image
from sklearn.datasets import load_digits

NUM_HELD_OUT = 360  # the number of held-out digits; there are 1,797 digits


def split_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the training digits (1437, 1, 8, 8) and the held-out digits (360, 1, 8, 8), in [-1, 1]."""
    digits = torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    return _split(digits)


def split_labels() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the labels of the digits that `split_digits` returns, (1437,) and (360,)."""
    return _split(torch.tensor(load_digits().target))


def line_and_plane_charges(digits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return charges for `plot_field_lines`: five on a line, (5, 1), and the pixels of a digit in a plane, (K, 2)."""
    strokes = (digits[5, 0] > 0).nonzero().double()
    plane = (strokes - 3.5)[:, [1, 0]] * torch.tensor([1.0, -1.0], dtype=torch.float64)
    return torch.tensor([[-1.0], [-0.8], [0.1], [0.9], [1.0]], dtype=torch.float64), plane


def write_parquet(images: torch.Tensor, path: Path, labels: torch.Tensor | None = None) -> None:
    """Write images (B, 1, H, W) in [-1, 1] to a parquet file with a column "image" of PNG files.

    Class numbers from 0 to 9, (B,), make a column "label".
    """
    pixels = ((images + 1) * 127.5).round().to(torch.uint8).squeeze(1).numpy()
    columns: dict[str, list[Any]] = {"image": [Image.fromarray(image) for image in pixels]}
    features: dict[str, Any] = {"image": datasets.Image()}
    if labels is not None:
        columns["label"] = labels.tolist()
        features["label"] = datasets.ClassLabel(names=list("0123456789"))
    datasets.Dataset.from_dict(columns, datasets.Features(features)).to_parquet(path)


def _split(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    return values[order[NUM_HELD_OUT:]], values[order[:NUM_HELD_OUT]]
