"""Images of a data set that is streamed during training, in an order that depends only on the seed and the epoch.

Every process reads the same stream and decodes only its own batches, so that a run is the same for any number of
processes. A resumed run skips the images of earlier steps without decoding them, which is exact but takes time. A
stream that is not longer than the shuffle buffer is read once and kept in memory, undecoded.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from tqdm.auto import tqdm

from .columns import with_image_files
from .decoding import SKIP_HINT, BrokenImageError, Entry, ImageReader
from .order import BatchPlan, splitmix64
from .statistics import DataStatistics

SHUFFLE_BUFFER = 1000  # images from which the next one is drawn
STREAM_STATISTICS_IMAGES = 1000  # the statistics are computed from this many images at the beginning of the stream


@dataclass
class Row:
    """An undecoded row of the stream.

    Attributes:
        position: The position of the row in the run.
        values: The values of the columns; None once the image of the row is known to be broken.
    """

    position: int
    values: dict[str, Any] | None


class StreamedImages:
    """The images of a stream as float tensors (C, R, R) in [-1, 1], with labels.

    Args:
        dataset: A streamed data set, as returned by `load_image_dataset(streaming=True)`.
        resolution, image_column, mode, center_crop, random_flip: As in `ImageTensors`.
        seed: The seed of order, crops and flips.
        label_column: The name of a column of type `datasets.ClassLabel`; None without classes.
        skip_broken: Whether to replace an image that cannot be read by the next one that can, together with its label,
            and warn. The replacement depends only on the stream, so it is the same on every process.

    Attributes:
        length: Number of images of an epoch; None until a step has read beyond the first epoch. It is the same on every
            process after the same step.

    Raises:
        ValueError: if there are no such columns, or no images.
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
        self.label_column = label_column
        self.id2label = None
        if label_column is not None:
            feature = features.get(label_column)
            if not isinstance(feature, datasets.ClassLabel):
                raise ValueError(
                    f"`--label_column` {label_column!r} of a stream must be a column of class labels of the type "
                    f"`datasets.ClassLabel`, but the columns are {features}. Leave out `--streaming`."
                )
            self.id2label = dict(enumerate(feature.names))
        self.rows = dataset
        self.random_flip = random_flip
        self.seed = seed
        self.skip_broken = skip_broken
        self.length: int | None = None
        self._count: int | None = None  # images of an epoch; None until this process has read a whole one
        entries = (self._entry(i, row) for i, row in enumerate(self.rows))
        self.reader = ImageReader.from_images(entries, resolution, mode, center_crop)
        self.mode = self.reader.mode
        self.channels = self.reader.channels

    def statistics(self) -> DataStatistics:
        """Statistics of the first 1,000 images.

        Raises:
            BrokenImageError: at the first broken image, unless `skip_broken`.
            ValueError: if none of them can be read.
        """
        rows = enumerate(itertools.islice(self.rows, STREAM_STATISTICS_IMAGES))
        images = (self._image(position, Row(position, values)) for position, values in rows)
        readable = (image.unsqueeze(0) for image in images if image is not None)
        first = next(readable, None)
        if first is None:
            raise ValueError(
                f"None of the first {STREAM_STATISTICS_IMAGES:,} images of the stream can be read, or it is empty."
            )
        return DataStatistics.of_images(itertools.chain([first], readable))

    def batches(
        self, plan: BatchPlan, first_step: int, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield this process's batches without end: images (B, C, R, R) and labels (B,).

        Args:
            plan: The division of a step's positions.
            first_step: The first step to yield, counted from 0.
            stopped: Called regularly while rows before the first step are skipped, by all processes at the same
                positions. If it returns True, no batches are yielded.
        """
        source = itertools.starmap(Row, enumerate(self._epochs()))
        start = first_step * plan.images_per_step
        for position in tqdm(range(start), "Skipping images of the stream", disable=plan.process > 0 or not start):
            next(source)
            if position % SHUFFLE_BUFFER == SHUFFLE_BUFFER - 1 and stopped():
                return
        rows: list[Row] = []
        for step in itertools.count(first_step):
            rows += itertools.islice(source, max(0, plan.images_per_step - len(rows)))
            is_known = self._count is not None and self._count < (step + 1) * plan.images_per_step
            self.length = self._count if is_known else None
            for part in range(plan.parts):
                first = plan.first(step, part) - step * plan.images_per_step
                pairs = [self._readable(rows, index, source) for index in range(first, first + plan.batch_size)]
                images, labels = zip(*pairs, strict=True)
                yield torch.stack(images), torch.tensor(labels)
            del rows[: plan.images_per_step]

    def _epochs(self) -> Iterator[dict[str, Any]]:
        """The values of all rows of the run, epoch after epoch."""
        shuffled = self.rows.shuffle(seed=splitmix64(self.seed, 0) % 2**32, buffer_size=SHUFFLE_BUFFER)
        self._count = None
        kept: list[dict[str, Any]] = []
        count = 0
        for count, values in enumerate(shuffled, 1):  # noqa: B007
            kept.append(values)
            if len(kept) > SHUFFLE_BUFFER:
                kept.clear()
            yield values
        if count == 0:
            raise ValueError("The stream is empty. Training needs at least one image.")
        self._count = count
        for epoch in itertools.count(1):
            if count > SHUFFLE_BUFFER:
                kept.clear()
                shuffled.set_epoch(epoch)
                yield from shuffled
            else:
                generator = torch.Generator().manual_seed(splitmix64(self.seed, -1 - epoch))
                yield from (kept[index] for index in torch.randperm(count, generator=generator).tolist())

    def _readable(self, rows: list[Row], index: int, source: Iterator[Row]) -> tuple[torch.Tensor, int]:
        """Image and label of `rows[index]`, or of the next row whose image can be read."""
        candidate = index
        while True:
            if candidate == len(rows):
                rows.append(next(source))
            # Any 2 · count consecutive rows contain a whole epoch.
            if self._count is not None and candidate - index > 2 * self._count:
                raise BrokenImageError(f"None of the {self._count:,} images of the stream can be read.")
            row = rows[candidate]
            image = self._image(rows[index].position, row)
            if image is not None:
                return image, self._label(row)
            candidate += 1

    def _label(self, row: Row) -> int:
        if self.id2label is None or self.label_column is None or row.values is None:
            return 0
        label = row.values[self.label_column]
        if label not in self.id2label:
            raise ValueError(
                f"Image {row.position} of the stream has the label {label!r} in {self.label_column!r}, which is not "
                f"one of its {len(self.id2label)} classes. Remove such images, or train without `--class_conditional`."
            )
        return int(label)

    def _entry(self, position: int, values: dict[str, Any]) -> tuple[str, Entry]:
        return f"Image {position} of the stream", values[self.column]

    def _image(self, position: int, row: Row) -> torch.Tensor | None:
        """The image of a row with the random crop and flip of a position of the run; None if the image is skipped."""
        if row.values is None:
            return None
        generator = torch.Generator().manual_seed(splitmix64(self.seed, position))
        try:
            draw_integer = lambda: int(torch.randint(2**31, (), generator=generator))  # noqa: E731
            pixels, _ = self.reader(*self._entry(row.position, row.values), draw_integer)
        except BrokenImageError as error:
            if not self.skip_broken:
                raise BrokenImageError(f"{error} {SKIP_HINT}") from error
            row.values = None
            if self._count is None or row.position < self._count:  # warn in the first epoch only
                warnings.warn(f"An image is replaced by the next one: {error}", stacklevel=2)
            return None
        image = pixels.float() / 127.5 - 1
        return image.flip(-1) if self.random_flip and torch.randint(2, (), generator=generator) else image
