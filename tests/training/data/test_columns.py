"""Images are read from columns of every type that can hold them."""

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_pfgm.training.data.columns import with_image_files
from diffusers_pfgm.training.data.images import ImageTensors
from diffusers_pfgm.training.data.order import BatchPlan
from diffusers_pfgm.training.data.streams import StreamedImages

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)


def as_bytes(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def column(kind: str, folder: Path) -> tuple[list[Any], Any]:
    """The values of a column and its feature; None for a feature that datasets infers."""
    files = [as_bytes(pixels) for pixels in PIXELS]
    for number, data in enumerate(files):
        (folder / f"{number}.png").write_bytes(data)
    paths = [str(folder / f"{number}.png") for number in range(len(files))]
    return {
        "bytes": (files, None),
        "large bytes": (files, datasets.Value("large_binary")),
        "struct": ([{"bytes": data, "path": None} for data in files], None),
        "struct of bytes": ([{"bytes": data} for data in files], None),
        "paths": (paths, None),
        "lists": ([pixels.tolist() for pixels in PIXELS], None),
        "arrays": (list(PIXELS), datasets.Array3D((6, 6, 3), "uint8")),
        "channels first": (list(PIXELS.transpose(0, 3, 1, 2)), datasets.Array3D((3, 6, 6), "uint8")),
    }[kind]


KINDS = ["bytes", "large bytes", "struct", "struct of bytes", "paths", "lists", "arrays", "channels first"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_column_gives_the_same_images(kind: str, tmp_path: Path) -> None:
    values, feature = column(kind, tmp_path)
    dataset = datasets.Dataset.from_dict({"number": list(range(4)), "image": values})
    if feature is not None:
        dataset = dataset.cast_column("image", feature)
    expected = torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 127.5 - 1
    assert torch.equal(ImageTensors(dataset, 6).plain(), expected)
    images, _ = next(StreamedImages(dataset.to_iterable_dataset(), 6).batches(BatchPlan(4), 0))
    nearest = torch.cdist(images.flatten(1), expected.flatten(1)).min(1)
    assert sorted(nearest.indices.tolist()) == [0, 1, 2, 3] and torch.equal(images, expected[nearest.indices])


def test_two_dimensional_arrays_are_gray_images() -> None:
    dataset = datasets.Dataset.from_dict({"pixels": PIXELS[..., 0].tolist()})
    images = ImageTensors(dataset, 6)
    assert images.mode == "L" and torch.equal(images[2][0], torch.from_numpy(PIXELS[2, ..., 0]) / 127.5 - 1)


@pytest.mark.parametrize("values", [(PIXELS / 255).tolist(), (PIXELS.astype(int) + 256).tolist(), [[1, 2], [3]]])
def test_arrays_that_are_not_pixels_are_errors(values: Any) -> None:
    with pytest.raises(ValueError, match=r"No image can be read: Image 0 .* is an array of .* integers from 0 to 255"):
        ImageTensors(datasets.Dataset.from_dict({"image": values}), 6)


def test_the_default_column() -> None:
    files = [as_bytes(pixels) for pixels in PIXELS]
    features = datasets.Features({"image": datasets.Value("binary"), "photo": datasets.Image()})
    both = datasets.Dataset.from_dict({"image": files, "photo": files}, features)
    assert with_image_files(both, None)[1] == "photo"
    assert with_image_files(both, "image")[1] == "image"
    assert with_image_files(both.remove_columns("photo").rename_column("image", "x"), None)[1] == "x"
    words = datasets.Dataset.from_dict({"image": ["a.png"], "text": ["a"]})
    assert with_image_files(words, None)[1] == "image"
    for columns in ({"text": ["a"]}, {"a": files, "b": files}):
        with pytest.raises(ValueError, match=r"`--image_column` is None, but .* by `dataset.cast_column\("):
            with_image_files(datasets.Dataset.from_dict(columns), None)


def test_columns_of_a_stream_are_inferred_if_it_does_not_declare_them() -> None:
    def rows() -> Any:
        yield from ({"image": as_bytes(pixels)} for pixels in PIXELS)

    stream = datasets.IterableDataset.from_generator(rows)
    assert stream.features is None and StreamedImages(stream, 6).channels == 3
