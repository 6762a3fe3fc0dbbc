"""A stream yields the same images at the same positions for any number of processes and from any first step."""

import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_pfgm.training.data.field_batches import FieldWindow
from diffusers_pfgm.training.data.images import ImageTensors
from diffusers_pfgm.training.data.order import BatchPlan
from diffusers_pfgm.training.data.source import load_image_dataset
from diffusers_pfgm.training.data.streams import StreamedImages

COUNT = 23
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable the five seconds that datasets sleeps at each end of a shuffled stream."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


@pytest.fixture
def parquet(tmp_path: Path) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 10, 8), dtype=np.uint8)
    features = datasets.Features({"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b"])})
    rows = {"photo": [Image.fromarray(each) for each in pixels], "kind": [i % 2 for i in range(COUNT)]}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "images.parquet")
    return str(tmp_path / "images.parquet")


def stream(parquet: str, **options: Any) -> StreamedImages:
    return StreamedImages(load_image_dataset(parquet, streaming=True), 8, random_flip=True, **options)


def read_batches(images: StreamedImages, plan: BatchPlan, count: int, step: int = 0) -> torch.Tensor:
    return torch.cat([batch for batch, _ in islice(images.batches(plan, step), count)])


@pytest.mark.parametrize(("processes", "parts"), [(2, 1), (1, 2), (3, 2)])
def test_several_processes_divide_the_stream_of_one(parquet: str, processes: int, parts: int) -> None:
    size = 12 // (processes * parts)
    whole = read_batches(stream(parquet), BatchPlan(12), 6).view(6, parts, processes, size, 1, 8, 8)
    for process in range(processes):
        plan = BatchPlan(size, parts, processes, process)
        assert torch.equal(read_batches(stream(parquet), plan, 6 * parts), whole[:, :, process].flatten(0, 2))


def test_a_stream_can_start_at_any_step(parquet: str) -> None:
    plan = BatchPlan(5, 2)
    assert torch.equal(read_batches(stream(parquet), plan, 8, step=4), read_batches(stream(parquet), plan, 16)[40:])


def test_an_epoch_has_every_image_once_with_its_label(parquet: str) -> None:
    expected = ImageTensors(load_image_dataset(parquet), 8, center_crop=True).plain().flatten(1)
    images = stream(parquet, center_crop=True, label_column="kind")
    assert images.id2label == {0: "a", 1: "b"}
    batches = list(islice(images.batches(BatchPlan(COUNT), 0), 2))
    orders = []
    for pixels, labels in batches:
        straight, mirrored = (torch.cdist(each.flatten(1), expected) for each in (pixels, pixels.flip(-1)))
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
        read_batches(StreamedImages(source, 8), BatchPlan(6), 1)
    with pytest.warns(UserWarning, match=r"An image is replaced by the next one: Image \d of the stream \(3.png\)"):
        images = read_batches(StreamedImages(source, 8, skip_broken=True), BatchPlan(12), 1)
    assert len(images) == 12 and len(images[:, 0, 0, 0].unique()) == 5


GRAY = 10  # image i has the gray value 10 · i and the label i


def numbered(count: int, broken: set[int], folder: Path, labels: list[int] | None = None) -> datasets.IterableDataset:
    """A stream of gray images, some of them broken."""
    names = [str(number) for number in range(count)]
    schema = datasets.Features({"image": datasets.Image(decode=False), "kind": datasets.ClassLabel(names=names)})
    rows = []
    for number in range(count):
        Image.new("L", (8, 8), GRAY * number).save(folder / "x.png")
        data = b"no" if number in broken else (folder / "x.png").read_bytes()
        label = number if labels is None else labels[number]
        rows.append({"image": {"bytes": data, "path": f"{number}.png"}, "kind": label})
    dataset = datasets.Dataset.from_list(rows, schema).cast_column("image", datasets.Image())
    dataset.to_parquet(folder / "numbered.parquet")
    return load_image_dataset(str(folder / "numbered.parquet"), streaming=True)


def pairs(images: StreamedImages, plan: BatchPlan, count: int) -> list[list[tuple[int, int]]]:
    """Number and label of each image, by batch."""
    rows = []
    for batch, labels in islice(images.batches(plan, 0), count):
        numbers = ((batch[:, 0, 0, 0] + 1) * 127.5 / GRAY).round().int().tolist()
        rows.append(list(zip(numbers, labels.tolist(), strict=True)))
    return rows


@pytest.mark.filterwarnings("ignore:An image is replaced by the next one")
@pytest.mark.parametrize("broken", [{0}, {3, 7}, {0, 1, 2, 3, 4, 5, 6, 7, 8}, set(range(11))])
@pytest.mark.parametrize("processes", [2, 3])
def test_a_broken_image_is_replaced_with_its_label_on_any_number_of_processes(
    broken: set[int], processes: int, tmp_path: Path
) -> None:
    source = numbered(12, broken, tmp_path)
    options = {"mode": "L", "label_column": "kind", "skip_broken": True}
    for seed in range(3):  # some of these orders begin with a broken image
        whole = pairs(StreamedImages(source, 8, seed=seed, **options), BatchPlan(6), 10)
        assert all(number == label and number not in broken for batch in whole for number, label in batch)
        shares = [
            pairs(StreamedImages(source, 8, seed=seed, **options), BatchPlan(6 // processes, 1, processes, rank), 10)
            for rank in range(processes)
        ]
        assert [[pair for share in batch for pair in share] for batch in zip(*shares, strict=True)] == whole


@pytest.mark.filterwarnings("ignore:An image is replaced by the next one")
def test_a_stream_without_readable_images_is_an_error(tmp_path: Path) -> None:
    images = StreamedImages(numbered(5, set(range(5)), tmp_path), 8, mode="L", skip_broken=True)
    with pytest.raises(ValueError, match="None of the 5 images of the stream can be read"):
        next(images.batches(BatchPlan(2), 0))
    with pytest.raises(ValueError, match="None of the first 1,000 images of the stream can be read"):
        images.statistics()
    with pytest.raises(ValueError, match=r"No image can be read: .*\.$"):
        StreamedImages(numbered(5, set(range(5)), tmp_path), 8, skip_broken=True)


def test_an_invalid_label_is_named(tmp_path: Path) -> None:
    images = StreamedImages(numbered(4, set(), tmp_path, [0, 1, -1, 3]), 8, label_column="kind")
    with pytest.raises(
        ValueError, match=r"Image \d of the stream has the label -1 in 'kind', which is not one of its 4"
    ):
        next(images.batches(BatchPlan(4), 0))


def test_an_empty_stream_is_an_error() -> None:
    features = datasets.Features({"image": datasets.Image()})
    empty = datasets.IterableDataset.from_generator(lambda: iter(()), features)
    with pytest.raises(ValueError, match="The data set is empty"):
        StreamedImages(empty, 8)
    images = StreamedImages(empty, 8, mode="L")
    with pytest.raises(ValueError, match="The stream is empty"):
        next(images.batches(BatchPlan(4), 0))


def test_a_short_stream_is_read_once_and_its_length_limits_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []

    def rows() -> Iterator[dict[str, Any]]:
        reads.append(None)
        yield from ({"image": [[GRAY * number] * 8] * 8} for number in range(6))

    images = StreamedImages(datasets.IterableDataset.from_generator(rows), 8)
    before = len(reads)
    window = FieldWindow(images.batches(BatchPlan(4), 0), BatchPlan(4), 2048, None, CPU, lambda: images.length)
    steps = list(islice(((step.charges.shape[0], step.parts[0][0].clone()) for step in window), 9))
    assert len(reads) == before + 1 and all(count == 6 for count, _ in steps)
    numbers = ((torch.cat([part for _, part in steps])[:, 0, 0, 0] + 1) * 127.5 / GRAY).round().int().view(6, 6)
    assert all(sorted(epoch) == list(range(6)) for epoch in numbers.tolist())
    assert len({*map(tuple, numbers.tolist())}) > 1


@pytest.mark.parametrize("batch", [1, 5, 6, 7])
def test_the_length_is_known_after_the_same_step_on_every_process(batch: int, tmp_path: Path) -> None:
    source = numbered(11, {9, 10}, tmp_path)
    lengths = []
    for rank in range(3):
        images = StreamedImages(source, 8, mode="L", skip_broken=True)
        with warnings.catch_warnings(record=True):
            lengths.append([images.length for _ in islice(images.batches(BatchPlan(batch, 1, 3, rank), 0), 9)])
    assert lengths[0] == lengths[1] == lengths[2] and {*lengths[0]} <= {None, 11} and lengths[0][-1] == 11


def test_skipping_images_can_be_stopped(tmp_path: Path) -> None:
    answers = iter([False, True])
    images = StreamedImages(numbered(4, set(), tmp_path), 8)
    assert list(images.batches(BatchPlan(4), 10_000, lambda: next(answers))) == []


def test_options_that_a_stream_does_not_support_are_errors(parquet: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`--label_column` 'photo' of a stream must be a column of class labels"):
        stream(parquet, label_column="photo")
    with pytest.raises(ValueError, match=r"`--image_column` is 'kind', but the stream's columns of images"):
        stream(parquet, image_column="kind")
    load_image_dataset(parquet).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="`--streaming` does not read folders written by `save_to_disk`"):
        load_image_dataset(str(tmp_path / "saved"), streaming=True)


def test_the_mean_norm_equals_that_of_the_data_set(parquet: str) -> None:
    expected = ImageTensors(load_image_dataset(parquet), 8, center_crop=True).statistics().mean_norm
    assert stream(parquet, center_crop=True).statistics().mean_norm == pytest.approx(expected, rel=1e-6)
