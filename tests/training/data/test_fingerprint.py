"""The fingerprint of a data set depends on its images, not on where they are stored."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_pfgm import PoissonFlowScheduler
from diffusers_pfgm.training.data.fingerprint import data_settings, fingerprint
from diffusers_pfgm.training.data.images import ImageTensors
from diffusers_pfgm.training.data.source import load_image_dataset
from diffusers_pfgm.training.data.streams import StreamedImages

SCHEDULER = PoissonFlowScheduler(sigma_max=17.0, M=261, max_norm=300.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(5):
        (tmp_path / "images").mkdir(exist_ok=True)
        pixels = np.full((8, 8), 40 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    return tmp_path / "images"


def settings(dataset: datasets.Dataset, labels: torch.Tensor | None = None, names: list[str] | None = None) -> dict:
    id2label = None if names is None else dict(enumerate(names))
    return data_settings(ImageTensors(dataset, 8), labels, id2label, SCHEDULER)


def test_place_and_file_format_do_not_matter(folder: Path, tmp_path: Path) -> None:
    images = load_image_dataset(data_dir=str(folder))
    expected = settings(images)
    assert expected["data.sigma_max"] == 17.0 and expected["data.M"] == 261
    folder.rename(tmp_path / "moved")
    moved = load_image_dataset(data_dir=str(tmp_path / "moved"))
    moved.to_parquet(tmp_path / "images.parquet")
    moved.save_to_disk(tmp_path / "saved")
    places = [tmp_path / "images.parquet", tmp_path / "saved"]
    assert all(settings(each) == expected for each in (moved, *(load_image_dataset(str(place)) for place in places)))
    stream = load_image_dataset(str(tmp_path / "images.parquet"), streaming=True)
    assert data_settings(StreamedImages(stream, 8), None, None, SCHEDULER) == expected


def test_images_order_labels_and_class_names_matter(folder: Path) -> None:
    images = load_image_dataset(data_dir=str(folder))
    labels = torch.tensor([0, 1, 0, 1, 0])
    orders = [None, [0, 1, 2, 4, 3], [0, 1, 2, 3, 3]]
    variants = [settings(images if order is None else images.select(order)) for order in orders]
    assert len({variant["data.images"] for variant in variants}) == 3
    variants = [
        settings(images, labels, ["a", "b"]),
        settings(images, labels, ["b", "a"]),
        settings(images, 1 - labels, ["a", "b"]),
    ]
    assert len({variant["data.classes"] for variant in variants}) == 3


def test_one_bit_of_one_image_changes_the_fingerprint(tmp_path: Path) -> None:
    one, other = [{"bytes": b"abc", "path": None}], [{"bytes": b"abb", "path": None}]
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint([{"bytes": b"ab", "path": None}, {"bytes": b"c", "path": None}]) != fingerprint(one)
    assert fingerprint([None]) == fingerprint([{"bytes": None, "path": str(tmp_path / "missing")}])
    assert len({fingerprint([pixels]) for pixels in ([[1, 2]], [[1], [2]], [[1, 3]])}) == 3
