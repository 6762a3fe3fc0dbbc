"""A stream gives the same images at the same positions to any number of processes, and from any step on."""

from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_pfgm.training.data_source import load_image_dataset
from diffusers_pfgm.training.image_data import ImageTensors
from diffusers_pfgm.training.stream import BatchPlan
from diffusers_pfgm.training.streamed_images import StreamedImages

COUNT = 23


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """datasets sleeps five seconds at each end of a shuffled stream, for threads that outlive their process."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


@pytest.fixture
def parquet(tmp_path: Path) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 10, 8), dtype=np.uint8)
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b"])})
    rows = {"picture": [Image.fromarray(each) for each in pixels], "kind": [i % 2 for i in range(COUNT)]}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "images.parquet")
    return str(tmp_path / "images.parquet")


def stream(parquet: str, **options: Any) -> StreamedImages:
    return StreamedImages(load_image_dataset(parquet, streaming=True), 8, random_flip=True, **options)


def first(images: StreamedImages, plan: BatchPlan, count: int, step: int = 0) -> torch.Tensor:
    return torch.cat([batch for batch, _ in islice(images.batches(plan, step), count)])


@pytest.mark.parametrize(("processes", "parts"), [(2, 1), (1, 2), (3, 2)])
def test_processes_share_the_stream_of_one(parquet: str, processes: int, parts: int) -> None:
    size = 12 // (processes * parts)
    whole = first(stream(parquet), BatchPlan(12), 6).view(6, parts, processes, size, 1, 8, 8)
    for process in range(processes):
        plan = BatchPlan(size, parts, processes, process)
        assert torch.equal(first(stream(parquet), plan, 6 * parts), whole[:, :, process].flatten(0, 2))


def test_it_goes_on_at_any_step(parquet: str) -> None:
    plan = BatchPlan(5, 2)
    assert torch.equal(first(stream(parquet), plan, 8, step=4), first(stream(parquet), plan, 16)[40:])


def test_an_epoch_has_every_image_once_with_its_label(parquet: str) -> None:
    known = ImageTensors(load_image_dataset(parquet), 8, center_crop=True).plain().flatten(1)
    images = stream(parquet, center_crop=True, label_column="kind")
    assert images.id2label == {0: "a", 1: "b"}
    batches = list(islice(images.batches(BatchPlan(COUNT), 0), 2))
    orders = []
    for pixels, labels in batches:
        straight, mirrored = (torch.cdist(each.flatten(1), known) for each in (pixels, pixels.flip(-1)))
        order = torch.minimum(straight, mirrored).argmin(1)
        assert sorted(order.tolist()) == list(range(COUNT)) and torch.equal(labels, order % 2)
        orders.append(order)
    assert not torch.equal(*orders)


def test_a_broken_image_is_named_or_replaced(tmp_path: Path) -> None:
    schema = datasets.Features({"image": datasets.Image(decode=False)})
    rows = []
    for i in range(6):
        Image.new("L", (8, 8), 10 * i).save(tmp_path / "x.png")
        rows.append({"image": {"bytes": b"no" if i == 3 else (tmp_path / "x.png").read_bytes(), "path": f"{i}.png"}})
    written = datasets.Dataset.from_list(rows, schema).cast_column("image", datasets.Image())
    written.to_parquet(tmp_path / "broken.parquet")
    source = load_image_dataset(str(tmp_path / "broken.parquet"), streaming=True)
    with pytest.raises(ValueError, match=r"of the stream \(3.png\) cannot be read"):
        first(StreamedImages(source, 8), BatchPlan(6), 1)
    with pytest.warns(UserWarning, match=r"The image before takes its place: Image \d of the stream \(3.png\)"):
        found = first(StreamedImages(source, 8, skip_broken=True), BatchPlan(12), 1)
    assert len(found) == 12 and len(found[:, 0, 0, 0].unique()) == 5


def test_what_a_stream_cannot_do_is_said(parquet: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`--label_column` 'picture' of a stream must be a column of class labels"):
        stream(parquet, label_column="picture")
    with pytest.raises(ValueError, match=r"`--image_column` is 'kind', but the stream's columns of images"):
        stream(parquet, image_column="kind")
    load_image_dataset(parquet).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="`--streaming` does not read folders of `save_to_disk`"):
        load_image_dataset(str(tmp_path / "saved"), streaming=True)


def test_the_mean_norm_is_the_data_sets(parquet: str) -> None:
    expected = ImageTensors(load_image_dataset(parquet), 8, center_crop=True).mean_norm()
    assert stream(parquet, center_crop=True).mean_norm() == pytest.approx(expected, rel=1e-6)
