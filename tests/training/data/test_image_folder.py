"""All images of a folder are read, whatever their names, or a warning lists those that are left out."""

import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from diffusers_pfgm.training.data.images import ImageTensors
from diffusers_pfgm.training.data.source import load_image_dataset, open_images


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # an unexpected warning about files that are left out is a failure
        yield


def write(folder: Path, *names: str) -> Path:
    """Write images whose gray value is their number."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), number).save(folder / name, "PNG")
    return folder


def grays(dataset: datasets.Dataset) -> list[int]:
    return sorted(row["image"].getpixel((0, 0)) for row in dataset)


NAMES = ["train.png", "test.png", "val-1.png", "dev/x.png", "validation/a b.png", "data/train-00000-of-00001.png"]
ODD = ["UPPER.PNG", "a[1].png", "b*.png", "c?.png", "d::e.png", "100%#.png", "ü.png", "__x__/y.png", "y.jpeg"]


@pytest.mark.parametrize("names", [NAMES, ODD, NAMES + ODD])
@pytest.mark.parametrize("folder", ["photos", "train", "test [x]*?", "a::b"])
def test_images_of_any_name_are_read(tmp_path: Path, names: list[str], folder: str) -> None:
    place = str(write(tmp_path / folder, *names))
    for dataset in (load_image_dataset(data_dir=place), load_image_dataset(place), open_images(place)):
        assert grays(dataset) == list(range(len(names)))
    stream = load_image_dataset(data_dir=place, streaming=True)
    assert grays(stream) == list(range(len(names)))
    assert len(ImageTensors(dataset, 4).plain()) == len(names)


def test_a_stream_of_a_folder_mixes_its_classes(tmp_path: Path) -> None:
    names = [f"{kind}/{i}.png" for kind in ("a", "b") for i in range(40)]
    place = str(write(tmp_path / "x", *names))
    streams = [load_image_dataset(data_dir=place, streaming=True) for _ in range(2)]
    labels, again = ([row["label"] for row in stream] for stream in streams)
    assert labels == again and sorted(labels) == [0] * 40 + [1] * 40
    assert 5 < sum(labels[:20]) < 15  # the first images, which give the statistics, are of both classes


def test_subfolders_of_any_name_are_classes(tmp_path: Path) -> None:
    names = [f"{kind}/{i}.png" for kind in ("car", "train", "bus", "test") for i in range(3)]
    dataset = load_image_dataset(data_dir=str(write(tmp_path / "x", *names)))
    assert dataset.features["label"].names == ["bus", "car", "test", "train"]
    classes = {row["image"].getpixel((0, 0)): dataset.features["label"].int2str(row["label"]) for row in dataset}
    assert classes == {number: name.split("/")[0] for number, name in enumerate(names)}


def test_subfolders_named_like_splits_are_read_with_a_warning(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", "train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "test/dog/1.png")
    with pytest.warns(
        UserWarning, match=r"All subfolders of .*x are read: test, train. Pass the path of one subfolder"
    ):
        dataset = load_image_dataset(data_dir=str(folder))
    assert len(dataset) == 4 and dataset.features["label"].names == ["cat", "dog"]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "1.png", "deep/2.png")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "link").symlink_to(tmp_path / "elsewhere")
    assert grays(load_image_dataset(data_dir=str(tmp_path / "x"))) == [0, 1]
    (tmp_path / "elsewhere" / "deep" / "back").symlink_to(tmp_path / "x")
    assert grays(load_image_dataset(data_dir=str(tmp_path / "x"))) == [0, 1]
    (tmp_path / "x" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    images = ImageTensors(load_image_dataset(data_dir=str(tmp_path / "x")), 4, mode="L")
    assert [("gone.png" in reason) for reason in images.broken().values()] == [True]


def test_files_whose_names_are_not_utf8_are_listed(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", "1.png", "2.png", "3.png")
    try:
        (folder / "3.png").rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))  # as old archives have them
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    with pytest.warns(UserWarning, match=r"1 files of .* have a name that is not UTF-8 and are left out: caf"):
        assert grays(load_image_dataset(data_dir=str(folder))) == [0, 1]


def test_files_that_are_not_images_are_listed(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", "1.png", "2.png")
    for name in ("notes.txt", "3.heic7", "deep/4", ".hidden.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("no image")
    with pytest.warns(
        UserWarning, match=r"3 files of .*x have no suffix of an image and are left out: 3.heic7, deep/4, notes.txt$"
    ):
        assert len(load_image_dataset(data_dir=str(folder))) == 2


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_metadata_add_columns_and_unnamed_images_are_listed(tmp_path: Path, kind: str, streaming: bool) -> None:
    folder = write(tmp_path / "x [1]", *(f"{name}.png" for name in ("train", "test", "a", "b", "c")))
    rows = {"train": 7, "test": 8, "a": 9}
    lines = [f"{name}.png,{value}" for name, value in rows.items()]
    if kind == "jsonl":
        lines = [f'{{"file_name": "{name}.png", "price": {value}}}' for name, value in rows.items()]
    (folder / f"metadata.{kind}").write_text("\n".join(["file_name,price"][: kind == "csv"] + lines))
    with pytest.warns(
        UserWarning, match=r"2 files of .* are not listed in a metadata file and are left out: b.png, c.png"
    ):
        dataset = load_image_dataset(data_dir=str(folder), streaming=streaming)
    assert {row["image"].getpixel((0, 0)): row["price"] for row in dataset} == {0: 7, 1: 8, 2: 9}


def test_archives_in_a_folder_are_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", "train.png")
    shutil.make_archive(str(folder / "test"), "zip", write(tmp_path / "packed", "1.png", "2.png", "3.png"))
    assert grays(load_image_dataset(data_dir=str(folder))) == [0, 0, 1, 2]


def test_files_and_saved_folders_may_have_special_characters_in_their_names(tmp_path: Path) -> None:
    dataset = load_image_dataset(data_dir=str(write(tmp_path / "x", "1.png", "2.png")))
    for name in ("a[1]", "b*", "c?"):
        dataset.to_parquet(tmp_path / f"{name}.parquet")
        dataset.save_to_disk(tmp_path / name)
        for source in (f"{name}.parquet", name):
            assert grays(load_image_dataset(str(tmp_path / source))) == [0, 1]
        assert len(open_images(str(tmp_path / name))) == 2


def test_files_of_other_splits_are_listed(tmp_path: Path) -> None:
    dataset = load_image_dataset(data_dir=str(write(tmp_path / "x", "1.png", "2.png")))
    (tmp_path / "copy").mkdir()
    for name in ("train", "test"):
        dataset.to_parquet(tmp_path / "copy" / f"{name}.parquet")
    with pytest.warns(UserWarning, match=r"only 'train' is read. Left out .*: \{'test': 1\}"):
        assert len(load_image_dataset(str(tmp_path / "copy"))) == 2


@pytest.mark.parametrize("name", ["none", "none.parquet", "damaged.parquet", "no-images"])
def test_errors_of_open_images_name_no_option_that_its_callers_do_not_have(tmp_path: Path, name: str) -> None:
    (tmp_path / "damaged.parquet").write_text("garbage")
    (tmp_path / "no-images").mkdir()
    (tmp_path / "no-images" / "notes.txt").write_text("garbage")
    with pytest.raises(ValueError, match=f"The (data set|folder) '.*{name}' ") as error:
        open_images(str(tmp_path / name))
    assert "--dataset_name" not in str(error.value) and "--train_data_dir" not in str(error.value)


def test_empty_names_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write(tmp_path / "x", "1.png"))
    with pytest.raises(ValueError, match=r"The name of the data set is ''\. Pass a path or a Hub id"):
        load_image_dataset("")
    with pytest.raises(ValueError, match="The folder '' is missing or holds no files"):
        load_image_dataset(data_dir="")


@pytest.mark.parametrize("damaged", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
@pytest.mark.parametrize("content", ["", "garbage", "[]", "{}", None])
def test_a_damaged_saved_folder_gives_a_one_line_error(tmp_path: Path, damaged: str, content: str | None) -> None:
    load_image_dataset(data_dir=str(write(tmp_path / "x", "1.png"))).save_to_disk(tmp_path / "saved")
    if content is None:
        (tmp_path / "saved" / damaged).unlink()
    else:
        (tmp_path / "saved" / damaged).write_text(content)
    try:
        loaded = load_image_dataset(str(tmp_path / "saved"))
    except ValueError as error:
        assert "The data set '" in str(error) and "\n" not in str(error)
    else:
        assert grays(loaded) == [0]


def test_an_image_beside_tables_does_not_hide_them(tmp_path: Path) -> None:
    folder = write(tmp_path / "mirror", "preview.png")
    images = {"image": [str(write(tmp_path / "source", f"{i}.png") / f"{i}.png") for i in range(5)]}
    table = datasets.Dataset.from_dict(images, datasets.Features({"image": datasets.Image()}))
    (folder / "data").mkdir()
    table.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    assert len(load_image_dataset(str(folder))) == 5


def test_a_subfolder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "disk", "a.png", "lost+found/b.png")
    scandir = os.scandir

    def refusing(path: str) -> Any:
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.warns(UserWarning, match=r"lost\+found cannot be read \(permission denied\)"):
        assert len(load_image_dataset(data_dir=str(folder))) == 1


def test_unrelated_metadata_files_do_not_exclude_images(tmp_path: Path) -> None:
    folder = write(tmp_path / "photos", "a.png", "b.png")
    (folder / "metadata.csv").write_text("camera,lens\nx,y\n")
    with pytest.warns(UserWarning, match=r"metadata files of .* are not used.*file_name"):
        assert len(load_image_dataset(data_dir=str(folder))) == 2
