"""Images of a data set as tensors. Needs the extra `training`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import datasets
import numpy as np
import torch
from PIL import Image

from .columns import with_image_files
from .decoding import SKIP_HINT, BrokenImageError, Entry, ImageReader, open_image
from .order import evenly_spaced, splitmix64
from .statistics import DataStatistics

CACHE_BYTES = 2**30  # decoded images of at most this total size are kept in memory
MAX_STATISTICS_IMAGES = 10_000  # the statistics are computed from at most this many images


class RandomCropError(ValueError):
    """Images that must be the same in every epoch would be cropped at random."""


class ImageTensors(torch.utils.data.Dataset[torch.Tensor]):
    """The images of a data set as float tensors (C, R, R) in [-1, 1], resized and cropped as in diffusers' examples.

    The shorter side is resized to R by bilinear interpolation, the longer side is cropped, and all images are converted
    to one mode. Decoded images are kept in memory if all of them fit into 1 GiB, so that the large field batch of each
    step needs no decoding.

    Images are indexed by a key, epoch · length + index. Crop and flip of an image depend only on the seed and the key,
    so they are the same on every process, in any batch and order.

    Args:
        dataset: A data set with a column of images.
        resolution: Height and width R of the images, in pixels.
        image_column: The name of the column; the first column of images by default.
        mode: Pillow's mode "L", "RGB" or "RGBA". The default is "L" if the first hundred images are all gray,
            otherwise "RGB". With the default "L" a later image in colour raises an error instead of losing its colours.
        center_crop: Whether to crop the middle of an image instead of a random part.
        random_flip: Whether to mirror each image with probability 1/2, independently in each epoch.
        cache: Whether to keep decoded images in memory. With loader processes, each would keep its own copy.
        seed: The seed of crops and flips.

    Raises:
        ValueError: if the data set is empty, has no such column, `resolution` is below 1, or no image can be read.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        resolution: int,
        image_column: str | None = None,
        mode: str | None = None,
        center_crop: bool = False,
        random_flip: bool = False,
        cache: bool = True,
        seed: int = 0,
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("The data set is empty. Training needs at least one image.")
        dataset, self.column = with_image_files(dataset, image_column)
        self.files = dataset.select_columns(self.column)
        self.resolution = resolution
        self.center_crop = center_crop
        self.random_flip = random_flip
        self.seed = seed
        if resolution < 1:
            raise ValueError(f"`--resolution` must be at least 1, but is {resolution}.")
        self.reader = ImageReader.from_images(map(self._entry, range(len(self.files))), resolution, mode, center_crop)
        self.mode = self.reader.mode
        self.channels = self.reader.channels
        shape = (len(self.files), self.channels, resolution, resolution)
        fits = cache and np.prod(shape) <= CACHE_BYTES
        self._cache = torch.empty(shape, dtype=torch.uint8) if fits else None
        self._cached = torch.zeros(len(self.files), dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: int) -> torch.Tensor:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int]) -> torch.Tensor:
        """Return the images (len(keys), C, R, R) of these keys. A loader calls this once a batch.

        Raises:
            ValueError: if an image cannot be read. The message names it.
        """
        images = self._read(keys, lambda key: int(torch.randint(2**31, (), generator=self._generator(key, 0))))
        if self.random_flip:
            flip = torch.tensor([bool(torch.randint(2, (), generator=self._generator(key, 1))) for key in keys])
            images[flip] = images[flip].flip(-1)
        return images

    def original(self, index: int) -> Image.Image:
        """Return an image in its own size and mode.

        Raises:
            BrokenImageError: if the image cannot be read.
        """
        return open_image(*self._entry(index))

    def plain(self) -> torch.Tensor:
        """Return all images (len(self), C, R, R) without random flips.

        Raises:
            RandomCropError: if an image would be cropped at random.
            BrokenImageError: if an image cannot be read.
        """

        def refuse(index: int) -> int:
            raise RandomCropError(
                f"Image {index} of the data set is not square, so its random crop changes every epoch. Pass "
                "`--center_crop`, or choose another kind of `--charges`."
            )

        return self._read(range(len(self)), refuse)

    def broken(self, indices: Iterable[int] | None = None) -> dict[int, str]:
        """Return the images that cannot be read, as a dictionary from index to reason.

        Args:
            indices: The images to try; all by default.
        """
        reasons = {}
        for index in range(len(self)) if indices is None else indices:
            try:
                self.reader(*self._entry(index), lambda: 0)
            except BrokenImageError as error:
                reasons[index] = str(error)
        return reasons

    def statistics(self) -> DataStatistics:
        """Statistics of the images, computed from at most 10,000 of them, evenly spaced."""
        indices = evenly_spaced(len(self), MAX_STATISTICS_IMAGES).tolist()
        return DataStatistics.of_images(self.__getitems__(indices[i : i + 16]) for i in range(0, len(indices), 16))

    def _generator(self, key: int, purpose: int) -> torch.Generator:
        return torch.Generator().manual_seed(splitmix64(self.seed, 2 * key + purpose))

    def _read(self, keys: Sequence[int], draw_integer: Callable[[int], int]) -> torch.Tensor:
        """Return images without flips. `draw_integer(key)` returns a random integer for the crop of an image."""
        indices = [key % len(self) for key in keys]
        if self._cache is None:
            pixels = torch.stack([self._pixels(i, key, draw_integer)[0] for i, key in zip(indices, keys, strict=True)])
        else:
            order = torch.as_tensor(indices)
            pixels = self._cache[order]
            for row in (~self._cached[order]).nonzero().flatten().tolist():
                pixels[row], is_fixed = self._pixels(indices[row], keys[row], draw_integer)
                if is_fixed:  # a random crop is different for the next key
                    self._cache[indices[row]] = pixels[row]
                    self._cached[indices[row]] = True
        return pixels.float().div_(127.5).sub_(1)

    def _pixels(self, index: int, key: int, draw_integer: Callable[[int], int]) -> tuple[torch.Tensor, bool]:
        try:
            return self.reader(*self._entry(index), lambda: draw_integer(key))
        except BrokenImageError as error:
            raise BrokenImageError(f"{error} {SKIP_HINT}") from error

    def _entry(self, index: int) -> tuple[str, Entry]:
        return f"Image {index} of the data set", self.files[index][self.column]
