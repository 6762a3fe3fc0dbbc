"""Images of a data set as tensors. Needs the extra `training`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import datasets
import numpy as np
import torch

from .columns import with_image_files
from .decoding import SKIP, BrokenImageError, Entry, ImageReader
from .order import splitmix64

CACHE_BYTES = 2**30  # decoded images are kept in memory up to this size
NORM_IMAGES = 10_000  # the mean data norm is taken from at most so many images


class RandomCropError(ValueError):
    """An image that is cropped anew each epoch, where it should stay the same."""


class ImageTensors(torch.utils.data.Dataset[torch.Tensor]):
    """A data set's images as float tensors (C, R, R) in [-1, 1], resized and cropped as in diffusers' examples.

    The shorter side is resized to R, bilinear, and the longer cropped; all are converted to one mode. Decoded images
    are kept in memory if all of them fit into 1 GiB, so that the large field batch of each step costs no decoding.

    Args:
        dataset: with a column of images.
        resolution: R, in pixels.
        image_column: its name; the first column of images by default.
        mode: "L", "RGB" or "RGBA"; by default "L" where the first hundred images are all gray, else "RGB". A later
            image in colour is then an error rather than made gray.
        center_crop: crop the middle rather than anywhere.
        random_flip: mirror each image with probability 1/2, each time anew.
        cache: keep decoded images, best without loader processes.
        seed: of crops and flips.

    An image is asked for by a key, epoch · length + index. Its crop and flip depend on the seed and the key alone, so
    they are the same on any process, in any batch and order.

    Raises:
        ValueError: if the data set is empty or has no such column; from reading an image, with its name.
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
        self.resolution, self.center_crop, self.random_flip, self.seed = resolution, center_crop, random_flip, seed
        if resolution < 1:
            raise ValueError(f"`--resolution` must be at least 1, but is {resolution}.")
        self.reader = ImageReader.of(map(self._entry, range(len(self.files))), resolution, mode, center_crop)
        self.mode, self.channels = self.reader.mode, self.reader.channels
        shape = (len(self.files), self.channels, resolution, resolution)
        fits = cache and np.prod(shape) <= CACHE_BYTES
        self._cache = torch.empty(shape, dtype=torch.uint8) if fits else None
        self._cached = torch.zeros(len(self.files), dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: int) -> torch.Tensor:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int]) -> torch.Tensor:
        """Images (len(keys), C, R, R); called by the loader once a batch.

        Raises:
            ValueError: if one cannot be read (it is named).
        """
        images = self._read(keys, lambda key: int(torch.randint(2**31, (), generator=self._generator(key, 0))))
        if self.random_flip:
            flip = torch.tensor([bool(torch.randint(2, (), generator=self._generator(key, 1))) for key in keys])
            images[flip] = images[flip].flip(-1)
        return images

    def plain(self) -> torch.Tensor:
        """All images (len(self), C, R, R) as they are every epoch, not mirrored.

        Raises:
            RandomCropError: if they are cropped at random.
            BrokenImageError: if one cannot be read.
        """

        def refuse(index: int) -> int:
            raise RandomCropError(
                f"Image {index} of the data set is not square, so crops of it change. Pass `--center_crop`, or choose "
                "another kind of `--charges`."
            )

        return self._read(range(len(self)), refuse)

    def broken(self, indices: Iterable[int] | None = None) -> dict[int, str]:
        """Which of these images, all by default, cannot be read, and why."""
        found = {}
        for index in range(len(self)) if indices is None else indices:
            try:
                self.reader(*self._entry(index), lambda: 0)
            except BrokenImageError as error:
                found[index] = str(error)
        return found

    def mean_norm(self) -> float:
        """Mean Euclidean norm of an image, over at most 10,000 of them, evenly spaced."""
        count = min(len(self), NORM_IMAGES)
        indices = torch.linspace(0, len(self) - 1, count).round().long().tolist()
        norms = [self.__getitems__(indices[i : i + 16]).flatten(1).norm(dim=1) for i in range(0, count, 16)]
        return torch.cat(norms).double().mean().item()

    def _generator(self, key: int, purpose: int) -> torch.Generator:
        return torch.Generator().manual_seed(splitmix64(self.seed, 2 * key + purpose))

    def _read(self, keys: Sequence[int], number: Callable[[int], int]) -> torch.Tensor:
        """Images, not mirrored; `number` draws one for the crop of an image that is larger than a square."""
        indices = [key % len(self) for key in keys]
        if self._cache is None:
            pixels = torch.stack([self._pixels(i, key, number)[0] for i, key in zip(indices, keys, strict=True)])
        else:
            order = torch.as_tensor(indices)
            pixels = self._cache[order]
            for row in (~self._cached[order]).nonzero().flatten().tolist():
                pixels[row], whole = self._pixels(indices[row], keys[row], number)
                if whole:
                    self._cache[indices[row]] = pixels[row]
                    self._cached[indices[row]] = True
        return pixels.float().div_(127.5).sub_(1)

    def _pixels(self, index: int, key: int, number: Callable[[int], int]) -> tuple[torch.Tensor, bool]:
        try:
            return self.reader(*self._entry(index), lambda: number(key))
        except BrokenImageError as error:
            raise BrokenImageError(f"{error} {SKIP}") from error

    def _entry(self, index: int) -> tuple[str, Entry]:
        return f"Image {index} of the data set", self.files[index][self.column]
