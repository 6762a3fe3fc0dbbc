"""The images of a data set for an evaluation, in the size that they have."""

from __future__ import annotations

import torch

from ..data.images import ImageTensors
from ..data.source import open_images

BATCH_SIZE = 100  # images that are converted at a time


def read_pixels(
    option: str, place: str, shape: tuple[int, ...] | None = None, resolution: int | None = None
) -> torch.Tensor:
    """Return the images (K, C, R, R) of a data set as uint8.

    Args:
        option: the option that names the data set, for error messages.
        place: a folder, a parquet file, or any other source that `open_images` reads.
        shape: the shape (C, R, R) that the images must have; by default that of the first image. Gray images are
            converted to colour if C is 3, and get an opaque alpha channel if C is 4.
        resolution: the size to which images are resized and cropped; by default they must have the size R already.

    Raises:
        ValueError: if the images cannot be read, or are not of one size and number of channels.
    """
    dataset = open_images(place)
    sizes = ImageTensors(dataset, 1, cache=False)
    first = sizes.original(0).size
    size = (shape[2], shape[1]) if shape is not None else first
    if shape is not None and size[0] != size[1]:
        raise ValueError(
            f"`--model` must make square images, but they have {size[0]} x {size[1]} pixels. Compare them by "
            "`diffusers_pfgm.metrics`."
        )
    if size[0] != size[1]:
        raise ValueError(f"`{option}` must be square images, but the first is {size[0]} x {size[1]} pixels. Crop them.")
    if resolution is None:
        remedy = "Resize or crop them" if shape is None else f"Pass `--resolution {size[0]}` to resize such images"
        for index in range(len(sizes)):
            other = sizes.original(index).size
            if other != size:
                raise ValueError(
                    f"`{option}` {place!r} must be images of {size[0]} x {size[1]} pixels, but image {index} has "
                    f"{other[0]} x {other[1]}. {remedy}."
                )
    elif resolution != size[0]:
        raise ValueError(
            f"`--resolution` must be the size {size[0]} of the evaluated images, but is {resolution}. Leave it out if "
            "the reference images have this size."
        )
    mode = {3: "RGB", 4: "RGBA"}.get(0 if shape is None else shape[0])
    images = ImageTensors(dataset, size[0], mode=mode, center_crop=True, cache=False)
    if shape is not None and images.channels != shape[0]:
        raise ValueError(
            f"`{option}` {place!r} has images of {images.channels} channels, but the evaluated images have {shape[0]}. "
            "Convert one of them."
        )
    pixels = torch.empty(len(images), images.channels, size[0], size[0], dtype=torch.uint8)
    for rows in torch.arange(len(images)).split(BATCH_SIZE):  # as float32 they would need four times the memory
        pixels[rows] = ((images.__getitems__(rows.tolist()) + 1) * 127.5).round().to(torch.uint8)
    return pixels
