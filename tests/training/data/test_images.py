"""Images are resized and cropped as in diffusers' examples, and errors name the image that cannot be read."""

import weakref
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_pfgm.training.data import images as images_module
from diffusers_pfgm.training.data.images import ImageTensors
from diffusers_pfgm.training.data.source import load_image_dataset


def write_images(folder: Path, count: int = 6, size: tuple[int, int] = (12, 9), mode: str = "RGB") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, size[1], size[0], 4), dtype=np.uint8)
    for i in range(count):
        Image.fromarray(pixels[i]).convert(mode).save(folder / f"{i}.png")
    return folder


def as_dataset(images: list[Image.Image]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"image": images}, datasets.Features({"image": datasets.Image()}))


def test_every_source_gives_the_same_images(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "photos")
    dataset = load_image_dataset(data_dir=str(folder))
    dataset.to_parquet(tmp_path / "photos.parquet")
    dataset.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": dataset}).save_to_disk(tmp_path / "saved-dict")
    dataset.with_format("torch", columns=[]).save_to_disk(tmp_path / "saved-format")
    expected = ImageTensors(dataset, 8, center_crop=True).__getitems__(range(6))
    for name in ("photos.parquet", "saved", "saved-dict", "saved-format", "photos"):
        images = ImageTensors(load_image_dataset(name=str(tmp_path / name)), 8, center_crop=True)
        assert torch.equal(images.__getitems__(range(6)), expected)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3), ("P", 3), ("1", 1)])
def test_mode_follows_the_data(tmp_path: Path, mode: str, channels: int) -> None:
    images = ImageTensors(load_image_dataset(data_dir=str(write_images(tmp_path / "x", mode=mode))), 8)
    assert images.channels == channels and images[0].shape == (channels, 8, 8)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4)])
def test_mode_can_be_chosen(tmp_path: Path, mode: str, channels: int) -> None:
    images = ImageTensors(load_image_dataset(data_dir=str(write_images(tmp_path / "x"))), 8, mode=mode)
    assert images[3].shape == (channels, 8, 8)


def test_mixed_sizes_and_modes_are_resized_and_converted() -> None:
    mixed = [
        Image.new("L", (8, 8), 255),
        Image.new("RGB", (20, 10), (255, 0, 0)),
        Image.new("RGBA", (9, 30), (0, 255, 0, 9)),
    ]
    batch = ImageTensors(as_dataset(mixed), 8).__getitems__([0, 1, 2])
    assert batch.shape == (3, 3, 8, 8)
    for image, color in zip(batch, ([1, 1, 1], [1, -1, -1], [-1, 1, -1]), strict=True):
        assert torch.equal(image.mean((1, 2)), torch.tensor(color, dtype=torch.float32))


@pytest.mark.parametrize("cache", [True, False])
def test_pixels_range_from_minus_one_to_one_at_every_read(cache: bool) -> None:
    gradient = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    images = ImageTensors(as_dataset([gradient]), 16, cache=cache)
    for _ in range(2):
        assert torch.allclose(images[0].flatten(), torch.linspace(-1, 1, 256), atol=1e-6)


def test_random_crops_and_flips_differ_between_epochs_despite_the_cache() -> None:
    wide = Image.fromarray(np.tile(np.arange(32, dtype=np.uint8) * 8, (8, 1)))
    images = ImageTensors(as_dataset([wide]), 8)
    assert len({tuple(images[epoch][0, 0].tolist()) for epoch in range(20)}) > 3
    square = ImageTensors(as_dataset([wide.crop((0, 0, 8, 8))]), 8, random_flip=True)
    assert len({tuple(square[epoch][0, 0].tolist()) for epoch in range(20)}) == 2


@pytest.mark.parametrize("cache", [True, False])
def test_crops_and_flips_depend_only_on_seed_and_key(tmp_path: Path, cache: bool) -> None:
    dataset = load_image_dataset(data_dir=str(write_images(tmp_path / "x", count=5)))
    state = torch.get_rng_state()
    whole = ImageTensors(dataset, 8, random_flip=True, cache=cache).__getitems__(range(20))
    again = ImageTensors(dataset, 8, random_flip=True)
    for keys in ([19, 3, 3], [7], list(range(20))[::-1]):
        assert torch.equal(again.__getitems__(keys), whole[keys])
    assert not torch.equal(ImageTensors(dataset, 8, random_flip=True, seed=1).__getitems__(range(20)), whole)
    assert torch.equal(state, torch.get_rng_state())


def test_plain_images_are_not_mirrored_and_never_cropped_at_random(tmp_path: Path) -> None:
    dataset = load_image_dataset(data_dir=str(write_images(tmp_path / "x")))
    expected = ImageTensors(dataset, 8, center_crop=True).__getitems__(range(6))
    assert torch.equal(ImageTensors(dataset, 8, center_crop=True, random_flip=True).plain(), expected)
    with pytest.raises(
        ValueError, match=r"Image 0 .* is not square, so its random crop changes.* Pass `--center_crop`"
    ):
        ImageTensors(dataset, 8).plain()


def test_broken_images_are_listed(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "x", size=(8, 8))
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:60])
    (folder / "4.png").write_text("no image")
    Image.fromarray(np.zeros((8, 8), dtype=np.uint16)).save(folder / "5.png")
    broken = ImageTensors(load_image_dataset(data_dir=str(folder)), 8, mode="RGB").broken()
    assert list(broken) == [3, 4, 5] and all(f"{i}.png" in reason for i, reason in broken.items())
    assert not ImageTensors(as_dataset([Image.new("L", (8, 8))]), 8).broken()


def test_mean_norm_is_that_of_all_images(digits: torch.Tensor) -> None:
    pixels = ((digits[:700] + 1) * 127.5).round()
    images = ImageTensors(as_dataset([Image.fromarray(image.numpy().astype("uint8")[0]) for image in pixels]), 8)
    expected = (pixels / 127.5 - 1).flatten(1).norm(dim=1).mean().item()
    assert images.statistics().mean_norm == pytest.approx(expected, rel=1e-6)


def test_the_statistics_of_a_very_large_data_set_read_its_last_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageTensors, "__len__", lambda self: 20_000_001)  # float32 does not have all of these numbers
    images = ImageTensors(as_dataset([Image.new("L", (8, 8), 200)]), 8)
    indices: list[int] = []

    def record(keys: Sequence[int]) -> torch.Tensor:
        indices.extend(keys)
        return torch.ones(len(keys), 1, 8, 8)

    monkeypatch.setattr(images, "__getitems__", record)
    images.statistics()
    assert indices == [round(i * 20_000_000 / 9_999) for i in range(10_000)]


def test_the_mean_norm_keeps_few_images_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    images = ImageTensors(as_dataset([Image.new("L", (8, 8), 200)] * 300), 8)
    read = images.__getitems__
    references: list[weakref.ref] = []
    largest = 0

    def record(keys: Sequence[int]) -> torch.Tensor:
        nonlocal largest
        alive = sum(len(batch) for reference in references if (batch := reference()) is not None)
        largest = max(largest, alive + len(keys))
        batch = read(keys)
        references.append(weakref.ref(batch))
        return batch

    monkeypatch.setattr(images, "__getitems__", record)
    assert images.statistics().mean_norm == pytest.approx(8 * (200 / 127.5 - 1), rel=1e-6)
    assert largest <= 64


def test_broken_files_are_named(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "x", size=(8, 8))
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:60])
    (folder / "4.png").write_text("no image")
    images = ImageTensors(load_image_dataset(data_dir=str(folder)), 8, mode="RGB")
    for index in (3, 4):
        with pytest.raises(
            ValueError, match=rf"Image {index} of the data set \(.*{index}\.png\) cannot .*_images skip"
        ):
            images[index]


def test_unusable_data_are_errors(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "both")
    deep = Image.fromarray(np.zeros((8, 8), dtype=np.uint16))
    for call, message in [
        (lambda: load_image_dataset(), "exactly one of `--dataset_name` and `--train_data_dir`"),
        (lambda: load_image_dataset(name="a", data_dir="b"), "exactly one of"),
        (lambda: load_image_dataset(data_dir=str(tmp_path / "empty")), "'.*empty' is missing or holds no files"),
        (lambda: load_image_dataset(data_dir=str(tmp_path / "none")), "'.*none' is missing or holds no files"),
        (lambda: load_image_dataset(name=str(tmp_path / "none.parquet")), "is not a file"),
        (lambda: ImageTensors(as_dataset([]), 8), "The data set is empty"),
        (lambda: ImageTensors(as_dataset([None]), 8), "Image 0 of the data set is missing"),
        (lambda: ImageTensors(as_dataset([deep]), 0), "`--resolution` must be at least 1, but is 0"),
        (lambda: ImageTensors(as_dataset([deep]), 8), "Image 0 .* has pixels of mode 'I;16'"),
        (lambda: ImageTensors(as_dataset([deep]), 8, "label"), r"`--image_column` is 'label', but .* are \['image'\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    last_in_colour = as_dataset([Image.new("L", (8, 8))] * 100 + [Image.new("RGB", (8, 8))])
    with pytest.raises(ValueError, match="Image 100 of the data set is in colour, unlike the first 100 images"):
        ImageTensors(last_in_colour, 8)[100]
    assert ImageTensors(last_in_colour, 8, mode="L")[100].shape == (1, 8, 8)
    (tmp_path / "broken.parquet").write_text("no parquet")
    datasets.DatasetDict({"test": last_in_colour}).save_to_disk(tmp_path / "untrained")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        load_image_dataset(name=str(tmp_path / "broken.parquet"))
    with pytest.raises(ValueError, match=r"has no split 'train'. Its splits are \['test'\]"):
        load_image_dataset(name=str(tmp_path / "untrained"))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("no images here")
    with pytest.raises(ValueError, match="holds no images that can be read"):
        load_image_dataset(data_dir=str(tmp_path / "notes"))


def test_center_crop_takes_the_middle() -> None:
    wide = Image.fromarray(np.tile(np.arange(32, dtype=np.uint8), (8, 1)))
    image = ImageTensors(as_dataset([wide]), 8, center_crop=True)[0]
    assert torch.allclose((image[0, 0] + 1) * 127.5, torch.arange(12.0, 20.0), atol=1e-4)


def test_every_crop_occurs() -> None:
    wide = Image.fromarray(np.tile(np.arange(9, dtype=np.uint8), (8, 1)))
    images = ImageTensors(as_dataset([wide]), 8)
    assert {round((images[key][0, 0, 0].item() + 1) * 127.5) for key in range(40)} == {0, 1}


def test_resizing_is_bilinear() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20), dtype=np.uint8))
    expected = torch.from_numpy(np.array(image.resize((8, 8), Image.Resampling.BILINEAR))) / 127.5 - 1
    assert torch.allclose(ImageTensors(as_dataset([image]), 8)[0][0], expected)


def test_a_rotated_photo_is_turned_upright(tmp_path: Path) -> None:
    pixels = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    pixels.save(tmp_path / "rotated.png", exif=exif)
    upright = ImageTensors(load_image_dataset(data_dir=str(tmp_path)), 8)[0][0]
    assert torch.equal(upright, ImageTensors(as_dataset([pixels]), 8)[0][0].flip(0, 1))


def test_cached_images_equal_decoded_ones(tmp_path: Path) -> None:
    dataset = load_image_dataset(data_dir=str(write_images(tmp_path / "x")))
    images = ImageTensors(dataset, 8, center_crop=True)
    expected = ImageTensors(dataset, 8, center_crop=True, cache=False).__getitems__(range(6))
    for order in ([4, 2, 0], [5, 1, 2, 3], [0, 1, 2, 3, 4, 5]):
        assert torch.equal(images.__getitems__(order), expected[order])


def test_images_above_the_limit_are_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "CACHE_BYTES", 63)
    assert ImageTensors(as_dataset([Image.new("L", (8, 8))]), 8)._cache is None
