"""Decodes one image of a data set: open, rotate upright, convert, resize and crop. Needs the extra `training`."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets.utils.file_utils import is_local_path, xopen
from PIL import ExifTags, Image, UnidentifiedImageError

from ...utils.messages import reason
from .metadata import without_metadata

MODE_IMAGES = 100  # number of readable images that decide whether the data set is gray
MAX_RESIZED_PIXELS = 2**24  # a resized image that would be larger is cropped before it is resized
SKIP_HINT = (
    "Repair or remove it. The training scripts leave out all such images by `--broken_images skip`. A run that has "
    "begun resumes with the same images only: put a readable image in its place."
)
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
UPRIGHT_TRANSPOSE = {  # from the EXIF orientation to the operation that makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# An undecoded image: `bytes` and `path` of its file, as datasets returns them, or pixels (H, W), (H, W, C) or (C, H, W)
Entry = dict[str, Any] | list[Any] | None


class BrokenImageError(ValueError):
    """An image cannot be read. The message names the image and the reason."""


@dataclass(frozen=True)
class ImageReader:
    """Decodes images to a common size and mode.

    Attributes:
        resolution: Height and width R of the decoded images, in pixels.
        mode: Pillow's mode of the decoded images, "L", "RGB" or "RGBA".
        center_crop: Whether to crop the middle of an image instead of a random part.
        only_gray: Whether an image in colour is an error. It is when the mode "L" was not chosen by the user but
            inferred from the first images.
    """

    resolution: int
    mode: str
    center_crop: bool
    only_gray: bool

    @classmethod
    def from_images(
        cls, images: Iterable[tuple[str, Entry]], resolution: int, mode: str | None, center_crop: bool
    ) -> ImageReader:
        """Return a reader whose mode, unless `mode` sets it, follows from the images.

        The mode is "L" if the first hundred images that can be read are all gray, otherwise "RGB". Broken images are
        ignored here; they raise an error when they are read.

        Args:
            images: Name and undecoded image of each image of the data set.
            resolution: Height and width R of the decoded images, in pixels.
            mode: "L", "RGB" or "RGBA"; inferred from the images by default.
            center_crop: Whether to crop the middle of an image instead of a random part.

        Raises:
            BrokenImageError: if no image can be read.
            ValueError: if there are no images.
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
            if len(gray) == MODE_IMAGES:
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

    def __call__(self, name: str, entry: Entry, draw_integer: Callable[[], int]) -> tuple[torch.Tensor, bool]:
        """Return the pixels, uint8 (C, R, R), and whether they are the same at every call (no random crop).

        Args:
            name: The name of the image in error messages.
            entry: The undecoded image.
            draw_integer: Returns a random integer much larger than the image, which selects a random crop.

        Raises:
            BrokenImageError: if the image cannot be read.
            ValueError: if `only_gray` is set and the image is in colour.
        """
        size = self.resolution
        image = open_image(name, entry)
        if self.only_gray and not is_gray(image):
            raise ValueError(
                f"{_label(name, entry)} is in colour, unlike the first {MODE_IMAGES} images. Convert it to gray, "
                "or all images to RGB. The training scripts do so by `--image_mode L` and `--image_mode RGB`."
            )
        with _broken_image_errors(name, entry):
            image = image.convert(self.mode)
            scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        is_fixed = self.center_crop or width == height
        if not is_fixed:  # one side equals `size`, the other is longer
            offset = draw_integer() % (max(width, height) - size + 1)
            left, top = (offset, 0) if width > height else (0, offset)
        with _broken_image_errors(name, entry):
            array = np.array(_resize_and_crop(image, (width, height), (left, top, left + size, top + size)))
        return torch.from_numpy(array).view(size, size, self.channels).permute(2, 0, 1), is_fixed


def open_image(name: str, entry: Entry) -> Image.Image:
    """Open an image and rotate it upright. Metadata that cannot be read are ignored.

    Args:
        name: The name of the image in error messages.
        entry: The undecoded image. Its file may be anything that datasets opens: bytes, a path, a URL, or a file inside
            an archive.

    Raises:
        BrokenImageError: if the image is missing, cannot be read, or has more than 8 bits per channel.
        ConnectionError: if its server cannot be reached.
    """
    if entry is None or (isinstance(entry, dict) and entry["bytes"] is None and entry["path"] is None):
        raise BrokenImageError(f"{name} is missing.")
    with _broken_image_errors(name, entry), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata and of images that are merely large
        image = _decode(read_file(entry)) if isinstance(entry, dict) else _from_pixels(entry)
    if image.mode not in EIGHT_BIT_MODES:
        raise BrokenImageError(
            f"{_label(name, entry)} has pixels of mode {image.mode!r}, not of 8 bits per channel. Convert it to 8 bits."
        )
    return image


def is_gray(image: Image.Image) -> bool:
    """Whether the mode of an image has no colours."""
    return image.mode in ("1", "L", "LA")


def read_file(entry: dict[str, Any]) -> bytes:
    """The encoded bytes of an image, read from memory, disk, an archive or a URL as datasets does."""
    if entry["bytes"] is not None:
        return bytes(entry["bytes"])
    path = entry["path"]
    with open(path, "rb") if is_local_path(path) else xopen(path, "rb") as file:
        data: bytes = file.read()
    return data


def _from_pixels(entry: Any) -> Image.Image:
    array = np.asarray(entry)
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    is_uint8 = array.dtype.kind in "iu" and array.size > 0 and array.min() >= 0 and array.max() <= 255
    if not is_uint8 or array.ndim not in (2, 3):
        raise ValueError(
            f"it is an array of shape {array.shape} and type {array.dtype}, but must hold integers from 0 to 255 and "
            "have the shape (H, W), (H, W, C) or (C, H, W)"
        )
    array = np.ascontiguousarray(array.astype(np.uint8))
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)


def _decode(data: bytes) -> Image.Image:
    """Decode the bytes of an image file and rotate the image upright."""
    try:
        image = _load(data)
        exif = None
    except Exception:  # Pillow's decoders raise errors of many classes
        parts = without_metadata(data)
        if parts is None:
            raise
        stripped, exif = parts
        image = _load(stripped)
    with contextlib.suppress(Exception):  # if the orientation cannot be read, the image stays as it is
        tags = image.getexif()
        if exif:
            tags.load(exif)
        method = UPRIGHT_TRANSPOSE.get(tags.get(ExifTags.Base.Orientation, 1))
        return image if method is None else image.transpose(method)
    return image


def _load(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    # Pillow drops the lower 8 bits of such colours. The mode does not show them, but the name of their encoding does.
    if image.mode in EIGHT_BIT_MODES and any(re.search(";16[BLN]", str(tile[3])) for tile in image.tile):
        raise ValueError("its colours have 16 bits per channel. Convert it to 8 bits")
    image.load()
    return image


@contextlib.contextmanager
def _broken_image_errors(name: str, entry: Entry) -> Iterator[None]:
    """Convert errors to a `BrokenImageError` that names the image, and failed connections to a `ConnectionError`."""
    try:
        yield
    except (ConnectionError, TimeoutError) as error:
        raise ConnectionError(f"{_label(name, entry)} cannot be fetched: {_reason(error)}. Try again.") from error
    except Exception as error:
        raise BrokenImageError(f"{_label(name, entry)} cannot be read: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "Pillow does not recognize its format"
    return reason(error)


def _label(name: str, entry: Entry) -> str:
    return name + (f" ({entry['path']})" if isinstance(entry, dict) and entry["path"] else "")


def _resize_and_crop(image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """Resize an image to `size` by bilinear interpolation, and return its part `box`."""
    if size[0] * size[1] <= MAX_RESIZED_PIXELS:
        return image.resize(size, Image.Resampling.BILINEAR).crop(box)
    # To save memory only the part `box` of a long image is resized. The results agree up to rounding.
    x_scale = image.width / size[0]
    y_scale = image.height / size[1]
    region = (box[0] * x_scale, box[1] * y_scale, box[2] * x_scale, box[3] * y_scale)
    return image.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.BILINEAR, region)
