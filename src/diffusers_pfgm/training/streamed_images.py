"""Images of a data set that is read while it trains, in an order that depends on seed and epoch alone.

Every process reads the same stream and decodes only its own batches of it, so that a run is the same on any number of
processes. A run that goes on reads past what it has seen, without decoding it: exact, but not at once.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator

import datasets
import torch

from .decode import BrokenImageError, Entry, ImageReader
from .image_column import with_image_files
from .stream import BatchPlan, mixed

BUFFER = 1000  # images from which the next one is drawn
NORM_IMAGES = 1000  # the mean data norm is taken from the first so many images


class StreamedImages:
    """A stream's images as float tensors (C, R, R) in [-1, 1], with labels.

    Args:
        dataset: as `load_image_dataset(streaming=True)` returns it.
        resolution: R, in pixels.
        image_column: its name; the first column of images by default.
        mode: "L", "RGB" or "RGBA"; by default as the first hundred images are.
        center_crop: crop the middle rather than anywhere.
        random_flip: mirror each image with probability 1/2.
        seed: of order, crops and flips.
        label_column: of class labels whose names the data set tells; None for none.
        skip_broken: put the image before in the place of one that cannot be read, with a warning that names it.

    Raises:
        ValueError: if there are no such columns.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        resolution: int,
        image_column: str | None = None,
        mode: str | None = None,
        center_crop: bool = False,
        random_flip: bool = False,
        seed: int = 0,
        label_column: str | None = None,
        skip_broken: bool = False,
    ) -> None:
        dataset, self.column = with_image_files(dataset, image_column, "stream")
        features = dataset.features
        self.label_column, self.id2label = label_column, None
        if label_column is not None:
            feature = features.get(label_column)
            if not isinstance(feature, datasets.ClassLabel):
                raise ValueError(
                    f"`--label_column` {label_column!r} of a stream must be a column of class labels whose names the "
                    f"data set tells, but the columns are {features}. Leave out `--streaming`."
                )
            self.id2label = dict(enumerate(feature.names))
        self.rows = dataset
        self.random_flip, self.seed, self.skip_broken = random_flip, seed, skip_broken
        entries = (self._entry(i, row) for i, row in enumerate(self.rows))
        self.reader = ImageReader.of(entries, resolution, mode, center_crop)
        self.mode, self.channels = self.reader.mode, self.reader.channels

    def mean_norm(self) -> float:
        """Mean Euclidean norm of the first images."""
        norms = []
        for position, row in enumerate(itertools.islice(self.rows, NORM_IMAGES)):
            image = self._image(position, row)
            norms += [] if image is None else [image.norm().item()]
        return sum(norms) / len(norms)

    def batches(self, plan: BatchPlan, first_step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """This process's batches from a step on, for ever: images (B, C, R, R) and labels (B,)."""
        size, start = plan.batch_size, first_step * plan.images_per_step
        images: list[torch.Tensor] = []
        labels: list[int] = []
        last = None
        for position, row in self._positions():
            if position < start or position // size % plan.processes != plan.process:
                continue
            image = self._image(position, row)
            last = image if image is not None else last
            if last is None:
                raise BrokenImageError(f"Image {position} of the stream is broken, and there is none before it.")
            images.append(last)
            labels.append(0 if self.label_column is None else row[self.label_column])
            if len(images) == size:
                yield torch.stack(images), torch.tensor(labels)
                images, labels = [], []

    def _positions(self) -> Iterator[tuple[int, dict]]:
        """Every row with its position in the run."""
        position = 0
        shuffled = self.rows.shuffle(seed=mixed(self.seed, 0) % 2**32, buffer_size=BUFFER)
        for epoch in itertools.count():
            shuffled.set_epoch(epoch)
            before = position
            for row in shuffled:
                yield position, row
                position += 1
            if position == before:
                raise ValueError("The stream is empty. Training needs at least one image.")

    def _entry(self, position: int, row: dict) -> tuple[str, Entry]:
        return f"Image {position} of the stream", row[self.column]

    def _image(self, position: int, row: dict) -> torch.Tensor | None:
        generator = torch.Generator().manual_seed(mixed(self.seed, position))
        try:
            number = lambda: int(torch.randint(2**31, (), generator=generator))  # noqa: E731
            pixels, _ = self.reader(*self._entry(position, row), number)
        except BrokenImageError as error:
            if not self.skip_broken:
                raise
            warnings.warn(f"The image before takes its place: {error}", stacklevel=2)
            return None
        image = pixels.float() / 127.5 - 1
        return image.flip(-1) if self.random_flip and torch.randint(2, (), generator=generator) else image
