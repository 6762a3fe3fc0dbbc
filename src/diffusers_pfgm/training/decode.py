"""One image of a data set as pixels: opened, turned, converted, resized and cropped. Needs the extra `training`."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

LOOKED_AT = 100  # images that tell whether all are gray
SKIP = "Repair or remove it, or leave out all such images by `--broken_images skip`."
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")

Entry = dict[str, Any] | None  # `bytes` and `path` of an image file, as datasets has them undecoded


class BrokenImageError(ValueError):
    """An image that cannot be read; it says which and why."""


@dataclass(frozen=True)
class ImageReader:
    """Reads images as they are wanted.

    Attributes:
        resolution: R, in pixels.
        mode: "L", "RGB" or "RGBA".
        center_crop: crop the middle rather than anywhere.
        only_gray: refuse an image in colour, whose colours nobody chose to lose.
    """

    resolution: int
    mode: str
    center_crop: bool
    only_gray: bool

    @classmethod
    def of(
        cls, images: Iterable[tuple[str, Entry]], resolution: int, mode: str | None, center_crop: bool
    ) -> ImageReader:
        """One for these names and entries, of the mode that the first hundred have: "L" if all are gray, else "RGB".

        Raises:
            BrokenImageError: if none of the hundred can be read.
        """
        if mode is not None:
            return cls(resolution, mode, center_crop, only_gray=False)
        gray, error = [], None
        for name, entry in itertools.islice(images, LOOKED_AT):
            try:
                gray.append(is_gray(open_image(name, entry)))
            except BrokenImageError as broken:  # raised again when it is read
                error = broken
        if not gray and error is not None:
            raise error
        return cls(resolution, "L" if all(gray) else "RGB", center_crop, all(gray))

    @property
    def channels(self) -> int:
        return len(Image.new(self.mode, (1, 1)).getbands())

    def __call__(self, name: str, entry: Entry, number: Callable[[], int]) -> tuple[torch.Tensor, bool]:
        """uint8 (C, R, R), and whether that is the whole image.

        Args:
            name: for errors.
            entry: of the image.
            number: draws a large whole number for a crop at random.

        Raises:
            ValueError: if it cannot be read, or is in colour unlike the first ones.
        """
        image, size = open_image(name, entry), self.resolution
        if self.only_gray and not is_gray(image):
            raise ValueError(
                f"{_named(name, entry)} is in colour, unlike the first ones. Pass `--image_mode RGB` or L."
            )
        image = image.convert(self.mode)
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        whole = self.center_crop or width == height
        if not whole:  # one side fits, the other is longer
            chosen = number() % (max(width, height) - size + 1)
            left, top = (chosen, 0) if width > height else (0, chosen)
        array = np.array(image.crop((left, top, left + size, top + size)))
        return torch.from_numpy(array).view(size, size, self.channels).permute(2, 0, 1), whole


def open_image(name: str, entry: Entry) -> Image.Image:
    """The image of an entry, upright.

    Raises:
        BrokenImageError: if it is missing, cannot be read, or has more than 8 bits per channel.
    """
    if entry is None:
        raise BrokenImageError(f"{name} is missing. {SKIP}")
    try:
        file = Image.open(io.BytesIO(entry["bytes"]) if entry["bytes"] is not None else entry["path"])
        image = ImageOps.exif_transpose(file)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise BrokenImageError(f"{_named(name, entry)} cannot be read: {error}. {SKIP}") from error
    if image.mode not in EIGHT_BIT_MODES:
        raise BrokenImageError(
            f"{_named(name, entry)} has pixels of mode {image.mode!r}, not of 8 bits per channel. {SKIP}"
        )
    return image


def is_gray(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA")


def _named(name: str, entry: Entry) -> str:
    return name + (f" ({entry['path']})" if entry and entry["path"] else "")
