"""Images of a data set in the size and with the channels of a model."""

from __future__ import annotations

import torch

from ..pipelines.inputs import PIL_MODES
from ..training.data.images import ImageTensors
from ..training.data.source import open_images


def load_images(name: str, size: int, channels: int | None = None) -> torch.Tensor:
    """Load images (K, C, R, R) in [-1, 1].

    Args:
        name: a folder, a parquet file or the Hub id of a data set.
        size: R, the height and width of the images in pixels.
        channels: C, to which the images are converted; by default 1 if they are gray, and 3 otherwise.
    """
    mode = None if channels is None else PIL_MODES[channels]
    return ImageTensors(open_images(name), size, mode=mode, center_crop=True).plain()
