"""One image of a data set as pixels: opened, turned, converted, resized and cropped. Needs the extra `training`."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets.utils.file_utils import is_local_path, xopen
from PIL import ExifTags, Image, UnidentifiedImageError

from .metadata import without_metadata

LOOKED_AT = 100  # readable images that tell whether all are gray
MAX_RESIZED = 2**24  # pixels of an image that is resized as a whole before it is cropped
SKIP = "Repair or remove it, or leave out all such images by `--broken_images skip`."
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
UPRIGHT = {  # how an image of each EXIF orientation is turned
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# The `bytes` and `path` of an image file, as datasets has them undecoded, or numbers (H, W), (H, W, C) or (C, H, W)
Entry = dict[str, Any] | list[Any] | None


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
        """One for these names and entries, of the mode of the first hundred that can be read.

        That is "L" if all of them are gray, else "RGB". Broken images are raised again when they are read.

        Raises:
            BrokenImageError: if there are images and none can be read.
            ValueError: if there are none.
        """
        if mode is not None:
            return cls(resolution, mode, center_crop, only_gray=False)
        gray: list[bool] = []
        errors: list[BrokenImageError] = []
        for name, entry in images:
            try:
                gray.append(is_gray(open_image(name, entry)))
            except BrokenImageError as error:
                errors.append(error)
            if len(gray) == LOOKED_AT:
                break
        if errors and not gray:
            others = f" The same holds for the other {len(errors) - 1:,}." if len(errors) > 1 else ""
            raise BrokenImageError(f"No image can be read: {errors[0]}{others}") from errors[0]
        if not gray:
            raise ValueError("The data set is empty. Training needs at least one image.")
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
            BrokenImageError: if it cannot be read.
            ValueError: if it is in colour unlike the first ones.
        """
        image, size = open_image(name, entry), self.resolution
        if self.only_gray and not is_gray(image):
            raise ValueError(
                f"{_named(name, entry)} is in colour, unlike the first ones. Pass `--image_mode RGB` or L."
            )
        with _broken(name, entry):
            image = image.convert(self.mode)
            scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        whole = self.center_crop or width == height
        if not whole:  # one side fits, the other is longer
            chosen = number() % (max(width, height) - size + 1)
            left, top = (chosen, 0) if width > height else (0, chosen)
        with _broken(name, entry):
            array = np.array(_resized(image, (width, height), (left, top, left + size, top + size)))
        return torch.from_numpy(array).view(size, size, self.channels).permute(2, 0, 1), whole


def open_image(name: str, entry: Entry) -> Image.Image:
    """The image of an entry, upright; without its metadata if only these cannot be read.

    Its file is whatever datasets opens: bytes, a path, a URL, or a file inside an archive.

    Raises:
        BrokenImageError: if it is missing, cannot be read, or has more than 8 bits per channel.
        ConnectionError: if the server that it is on cannot be reached.
    """
    if entry is None or (isinstance(entry, dict) and entry["bytes"] is None and entry["path"] is None):
        raise BrokenImageError(f"{name} is missing.")
    with _broken(name, entry), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of metadata and of images that are merely large
        image = _decoded(read_file(entry)) if isinstance(entry, dict) else _of_pixels(entry)
    if image.mode not in EIGHT_BIT_MODES:
        raise BrokenImageError(
            f"{_named(name, entry)} has pixels of mode {image.mode!r}, not of 8 bits per channel. Convert it to 8 bits."
        )
    return image


def is_gray(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA")


def read_file(entry: dict[str, Any]) -> bytes:
    """The encoded image of an entry, from wherever datasets opens it."""
    if entry["bytes"] is not None:
        return bytes(entry["bytes"])
    path = entry["path"]
    with open(path, "rb") if is_local_path(path) else xopen(path, "rb") as file:
        data: bytes = file.read()
    return data


def _of_pixels(entry: Any) -> Image.Image:
    array = np.asarray(entry)
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    whole = array.dtype.kind in "iu" and array.size > 0 and array.min() >= 0 and array.max() <= 255
    if not whole or array.ndim not in (2, 3):
        raise ValueError(
            f"it is an array of the shape {array.shape} and type {array.dtype}, where whole numbers from 0 to 255 of "
            "the shape (H, W), (H, W, C) or (C, H, W) are needed"
        )
    array = np.ascontiguousarray(array.astype(np.uint8))
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)


def _decoded(data: bytes) -> Image.Image:
    """The image of a file, upright. Pillow's decoders raise errors of every kind."""
    try:
        image = _loaded(data)
        exif = None
    except Exception:
        bare = without_metadata(data)
        if bare is None:
            raise
        image, exif = _loaded(bare[0]), bare[1]
    with contextlib.suppress(Exception):  # an orientation that cannot be read is none
        tags = image.getexif()
        if exif:
            tags.load(exif)
        method = UPRIGHT.get(tags.get(ExifTags.Base.Orientation, 1))
        return image if method is None else image.transpose(method)
    return image


def _loaded(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@contextlib.contextmanager
def _broken(name: str, entry: Entry) -> Iterator[None]:
    """Any error but that of a server becomes a BrokenImageError with the image's name."""
    try:
        yield
    except (ConnectionError, TimeoutError) as error:
        raise ConnectionError(f"{_named(name, entry)} cannot be fetched: {_reason(error)}. Try again.") from error
    except Exception as error:
        raise BrokenImageError(f"{_named(name, entry)} cannot be read: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    """One line."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no image of a kind that Pillow knows"
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _named(name: str, entry: Entry) -> str:
    return name + (f" ({entry['path']})" if isinstance(entry, dict) and entry["path"] else "")


def _resized(image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """The part `box` of the image resized to `size`, bilinear."""
    if size[0] * size[1] <= MAX_RESIZED:
        return image.resize(size, Image.Resampling.BILINEAR).crop(box)
    # A long image is resized where it is wanted only. Both agree but for rounding.
    across, down = image.width / size[0], image.height / size[1]
    region = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
    return image.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.BILINEAR, region)
