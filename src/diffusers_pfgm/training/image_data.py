"""Images of a data set as tensors. Needs the extra `training`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

CACHE_BYTES = 2**30  # decoded images are kept in memory up to this size
NORM_IMAGES = 10_000  # the mean data norm is taken from at most so many images
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")


def load_image_dataset(
    name: str | None = None,
    config_name: str | None = None,
    data_dir: str | None = None,
    cache_dir: str | None = None,
) -> datasets.Dataset:
    """The "train" split of a data set of images.

    Args:
        name: a Hub id, a parquet file, a folder written by `save_to_disk`, or any folder that `load_dataset` reads.
        config_name: configuration of a Hub data set.
        data_dir: a folder of image files, in place of `name`.
        cache_dir: where `datasets` keeps its files.

    Raises:
        ValueError: if not exactly one source is given, or it is empty, missing or broken.
    """
    if (name is None) == (data_dir is None):
        raise ValueError(
            f"Pass exactly one of `--dataset_name` and `--train_data_dir`, but got {name!r} and {data_dir!r}."
        )
    if name is None:
        source = Path(str(data_dir))
        if not source.is_dir() or not any(path.is_file() for path in source.rglob("*")):
            raise ValueError(f"`--train_data_dir` {data_dir!r} is missing or holds no files. Put image files there.")
        try:
            return datasets.load_dataset("imagefolder", data_dir=data_dir, cache_dir=cache_dir, split="train")
        except (datasets.exceptions.DatasetsError, FileNotFoundError, ValueError) as error:
            raise ValueError(f"`--train_data_dir` {data_dir!r} holds no images that can be read: {error}") from error
    source = Path(name)
    if source.suffix == ".parquet" and not source.is_file():
        raise ValueError(f"`--dataset_name` {name!r} is no file. Check the path.")
    if source.is_file():
        try:
            return datasets.load_dataset("parquet", data_files=name, cache_dir=cache_dir, split="train")
        except (datasets.exceptions.DatasetsError, ValueError) as error:
            raise ValueError(f"`--dataset_name` {name!r} cannot be read as parquet: {error}") from error
    if (source / "state.json").is_file() or (source / "dataset_dict.json").is_file():
        loaded = datasets.load_from_disk(name)
        if isinstance(loaded, datasets.Dataset):
            return loaded
        if "train" not in loaded:
            raise ValueError(f"`--dataset_name` {name!r} has no split 'train', but {list(loaded)}.")
        return loaded["train"]
    return datasets.load_dataset(name, config_name, cache_dir=cache_dir, split="train")


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
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("The data set is empty. Training needs at least one image.")
        features: dict[str, Any] = dataset.features
        columns = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
        column = image_column or (columns[0] if columns else None)
        if column not in columns:
            raise ValueError(
                f"`--image_column` is {image_column!r}, but the data set's columns of images are {columns} "
                f"(all columns: {list(features)})."
            )
        self.column: str = column
        self.files = dataset.select_columns(column).cast_column(column, datasets.Image(decode=False))
        self.resolution, self.center_crop, self.random_flip = resolution, center_crop, random_flip
        if resolution < 1:
            raise ValueError(f"`--resolution` must be at least 1, but is {resolution}.")
        self.only_gray = mode is None and all(self._is_gray(self._open(i)) for i in range(min(100, len(self.files))))
        if mode is None:
            mode = "L" if self.only_gray else "RGB"
        self.mode, self.channels = mode, len(Image.new(mode, (1, 1)).getbands())
        shape = (len(self.files), self.channels, resolution, resolution)
        fits = cache and np.prod(shape) <= CACHE_BYTES
        self._cache = torch.empty(shape, dtype=torch.uint8) if fits else None
        self._cached = torch.zeros(len(self.files), dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> torch.Tensor:
        """Images (len(indices), C, R, R); called by the loader once a batch."""
        if self._cache is None:
            pixels = torch.stack([self._pixels(index)[0] for index in indices])
        else:
            order = torch.as_tensor(indices)
            pixels = self._cache[order]
            for row in (~self._cached[order]).nonzero().flatten().tolist():
                pixels[row], whole = self._pixels(indices[row])
                if whole:
                    self._cache[indices[row]] = pixels[row]
                    self._cached[indices[row]] = True
        images = pixels.float() / 127.5 - 1
        if self.random_flip:
            flip = torch.rand(len(images)) < 0.5
            images[flip] = images[flip].flip(-1)
        return images

    def mean_norm(self) -> float:
        """Mean Euclidean norm of an image, over at most 10,000 of them, evenly spaced."""
        count = min(len(self), NORM_IMAGES)
        indices = torch.linspace(0, len(self) - 1, count).round().long().tolist()
        parts = [self.__getitems__(indices[i : i + 512]) for i in range(0, count, 512)]
        return torch.cat([part.flatten(1).norm(dim=1) for part in parts]).double().mean().item()

    def _pixels(self, index: int) -> tuple[torch.Tensor, bool]:
        """uint8 (C, R, R), and whether that is the whole image, so that it may be cached despite random crops."""
        image, size = self._open(index), self.resolution
        if self.only_gray and not self._is_gray(image):
            raise ValueError(f"{self._name(index)} is in colour, unlike the first ones. Pass `--image_mode RGB` or L.")
        image = image.convert(self.mode)
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        if not self.center_crop:
            left, top = (int(torch.randint(side - size + 1, ())) for side in (width, height))
        array = np.array(image.crop((left, top, left + size, top + size)))
        pixels = torch.from_numpy(array).view(size, size, self.channels).permute(2, 0, 1)
        return pixels, self.center_crop or width == height

    def _open(self, index: int) -> Image.Image:
        entry = self.files[index][self.column]
        if entry is None:
            raise ValueError(f"{self._name(index)} is missing. Remove its row.")
        try:
            file = Image.open(io.BytesIO(entry["bytes"]) if entry["bytes"] is not None else entry["path"])
            image = ImageOps.exif_transpose(file)
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
            raise ValueError(f"{self._name(index)} cannot be read: {error}. Repair or remove it.") from error
        if image.mode not in EIGHT_BIT_MODES:
            raise ValueError(
                f"{self._name(index)} has pixels of mode {image.mode!r}. Convert it to 8 bits per channel first."
            )
        return image

    def _name(self, index: int) -> str:
        entry = self.files[index][self.column]
        return f"Image {index} of the data set" + (f" ({entry['path']})" if entry and entry["path"] else "")

    @staticmethod
    def _is_gray(image: Image.Image) -> bool:
        return image.mode in ("1", "L", "LA")
