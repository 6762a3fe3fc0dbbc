"""Images of a data set that is read while it trains, in an order that depends on seed and epoch alone.

Every process reads the same stream and decodes only its own batches of it, so that a run is the same on any number of
processes. A run that goes on reads past what it has seen, without decoding it: exact, but not at once. A stream that is
no longer than the buffer from which the next image is drawn is read once and kept, undecoded.
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
from .decoding import SKIP, BrokenImageError, Entry, ImageReader
from .order import BatchPlan, splitmix64

BUFFER = 1000  # images from which the next one is drawn
NORM_IMAGES = 1000  # the mean data norm is taken from the first so many images


@dataclass
class Row:
    """A row of the stream, not decoded.

    Attributes:
        position: in the run.
        values: of its columns; None once its image is known to be broken.
    """

    position: int
    values: dict[str, Any] | None


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
        skip_broken: put the next image that can be read, with its label, in the place of one that cannot, with a
            warning that names it. Which one it is depends on the stream alone, so it is the same for any process.

    Attributes:
        length: images of an epoch, once the steps that were read go beyond the first; None until then. It is the same
            on every process after the same step.

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
        self.length: int | None = None
        self._count: int | None = None  # images of an epoch, once this process has read them
        entries = (self._entry(i, row) for i, row in enumerate(self.rows))
        self.reader = ImageReader.of(entries, resolution, mode, center_crop)
        self.mode, self.channels = self.reader.mode, self.reader.channels

    def mean_norm(self) -> float:
        """Mean Euclidean norm of the first images.

        Raises:
            ValueError: if none of them can be read.
        """
        norms: list[float] = []
        for position, values in enumerate(itertools.islice(self.rows, NORM_IMAGES)):
            image = self._image(position, Row(position, values))
            norms += [] if image is None else [image.norm().item()]
        if not norms:
            raise ValueError(f"None of the first {NORM_IMAGES:,} images of the stream can be read, or it is empty.")
        return sum(norms) / len(norms)

    def batches(
        self, plan: BatchPlan, first_step: int, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """This process's batches from a step on, for ever: images (B, C, R, R) and labels (B,).

        Args:
            plan: who takes which positions.
            first_step: where to begin.
            stopped: asked now and then, by all processes at the same positions, while rows before the first step are
                read past. The batches end when it is true.
        """
        source = self._stream()
        start = first_step * plan.images_per_step
        for position in tqdm(range(start), "Reading past images of the stream", disable=plan.process > 0 or not start):
            next(source)
            if position % BUFFER == BUFFER - 1 and stopped():
                return
        rows: list[Row] = []
        for step in itertools.count(first_step):
            rows += itertools.islice(source, max(0, plan.images_per_step - len(rows)))
            known = self._count is not None and self._count < (step + 1) * plan.images_per_step
            self.length = self._count if known else None
            for part in range(plan.parts):
                first = plan.first(step, part) - step * plan.images_per_step
                pairs = [self._readable(rows, index, source) for index in range(first, first + plan.batch_size)]
                images, labels = zip(*pairs, strict=True)
                yield torch.stack(images), torch.tensor(labels)
            del rows[: plan.images_per_step]

    def _stream(self) -> Iterator[Row]:
        """Every row of the run, epoch after epoch."""
        return itertools.starmap(Row, enumerate(self._epochs()))

    def _epochs(self) -> Iterator[dict[str, Any]]:
        shuffled = self.rows.shuffle(seed=splitmix64(self.seed, 0) % 2**32, buffer_size=BUFFER)
        self._count = None
        kept: list[dict[str, Any]] = []
        count = 0
        for count, values in enumerate(shuffled, 1):  # noqa: B007
            kept.append(values)
            if len(kept) > BUFFER:
                kept.clear()
            yield values
        if count == 0:
            raise ValueError("The stream is empty. Training needs at least one image.")
        self._count = count
        for epoch in itertools.count(1):
            if count > BUFFER:
                kept.clear()
                shuffled.set_epoch(epoch)
                yield from shuffled
            else:
                generator = torch.Generator().manual_seed(splitmix64(self.seed, -1 - epoch))
                yield from (kept[index] for index in torch.randperm(count, generator=generator).tolist())

    def _readable(self, rows: list[Row], index: int, source: Iterator[Row]) -> tuple[torch.Tensor, int]:
        """Image and label for the place of rows[index]: its own, or those of the next row that can be read."""
        for ahead in itertools.count(index):
            if ahead == len(rows):
                rows.append(next(source))
            if self._count is not None and ahead - index > 2 * self._count:  # so many hold a whole epoch
                raise BrokenImageError(f"None of the {self._count:,} images of the stream can be read.")
            row = rows[ahead]
            image = self._image(rows[index].position, row)
            if image is not None:
                return image, self._label(row)
        raise AssertionError("the stream has no end")

    def _label(self, row: Row) -> int:
        if self.id2label is None or self.label_column is None or row.values is None:
            return 0
        label = row.values[self.label_column]
        if label not in self.id2label:
            raise ValueError(
                f"Image {row.position} of the stream has the label {label!r} in {self.label_column!r}, which is none "
                f"of its {len(self.id2label)} classes. Leave such images out, or train without `--class_conditional`."
            )
        return int(label)

    def _entry(self, position: int, values: dict[str, Any]) -> tuple[str, Entry]:
        return f"Image {position} of the stream", values[self.column]

    def _image(self, position: int, row: Row) -> torch.Tensor | None:
        """The image of a row, cropped and mirrored as belongs to a position of the run; None if it is skipped."""
        if row.values is None:
            return None
        generator = torch.Generator().manual_seed(splitmix64(self.seed, position))
        try:
            number = lambda: int(torch.randint(2**31, (), generator=generator))  # noqa: E731
            pixels, _ = self.reader(*self._entry(row.position, row.values), number)
        except BrokenImageError as error:
            if not self.skip_broken:
                raise BrokenImageError(f"{error} {SKIP}") from error
            row.values = None
            if self._count is None or row.position < self._count:  # once, not in every epoch
                warnings.warn(f"The next image takes its place: {error}", stacklevel=2)
            return None
        image = pixels.float() / 127.5 - 1
        return image.flip(-1) if self.random_flip and torch.randint(2, (), generator=generator) else image
