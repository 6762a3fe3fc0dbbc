"""Where images come from: the Hub, parquet files, saved data sets, folders. Needs the extra `training`."""

from __future__ import annotations

import glob
import os
import warnings
from pathlib import Path
from typing import Any

import datasets

from .folders import folder_files, is_image, is_table, load_image_folder


def open_images(place: str) -> datasets.Dataset:
    """The images at a place that a command names: a folder of image files, else what `load_image_dataset` reads."""
    is_folder = Path(place).is_dir() and not _is_saved(Path(place))
    return load_image_dataset(None if is_folder else place, data_dir=place if is_folder else None)


def load_image_dataset(
    name: str | None = None,
    config_name: str | None = None,
    data_dir: str | None = None,
    cache_dir: str | None = None,
    streaming: bool = False,
) -> datasets.Dataset | datasets.IterableDataset:
    """The "train" split of a data set of images, and of a folder of image files all of them.

    Args:
        name: a Hub id, a parquet file, a folder written by `save_to_disk`, or any folder that `load_dataset` reads.
        config_name: configuration of a Hub data set.
        data_dir: a folder of image files, in place of `name`.
        cache_dir: where `datasets` keeps its files.
        streaming: read while training, without a copy on disk.

    Raises:
        ValueError: if not exactly one source is given, or it is empty, missing, broken or out of reach.
    """
    if (name is None) == (data_dir is None):
        raise ValueError(
            f"Pass exactly one of `--dataset_name` and `--train_data_dir`, but got {name!r} and {data_dir!r}."
        )
    if name is None:
        return _from_folder("--train_data_dir", str(data_dir), streaming, cache_dir)
    if not name.strip():
        raise ValueError(f"`--dataset_name` is {name!r}. Pass the name of a data set, or leave the option out.")
    source = Path(name)
    if source.suffix == ".parquet" and not source.is_file():
        raise ValueError(f"`--dataset_name` {name!r} is no file. Check the path.")
    options: dict[str, Any] = {"cache_dir": cache_dir, "streaming": streaming, "split": "train"}
    if source.is_file():
        try:
            return datasets.load_dataset("parquet", data_files=glob.escape(name), **options)
        except Exception as error:  # of datasets, Arrow or the disk
            raise ValueError(f"`--dataset_name` {name!r} cannot be read as parquet: {_line(error)}") from error
    if _is_saved(source):
        if streaming:
            raise ValueError(
                f"`--streaming` does not read folders of `save_to_disk`, as `--dataset_name` {name!r} is one. Leave it "
                "out: such a folder is not copied."
            )
        return _saved(name)
    if source.is_dir():
        files = folder_files(name)
        if any(map(is_image, files)) and not any(map(is_table, files)) and not _has_card(source):
            return _from_folder("--dataset_name", name, streaming, cache_dir)
    try:
        _warn_of_other_splits(name, config_name, cache_dir)
        return datasets.load_dataset(name, config_name, **options)
    except Exception as error:  # of datasets, the Hub, the network or the disk
        raise ValueError(
            f"`--dataset_name` {name!r} is no data set that can be read here, on this disk or on the Hub: "
            f"{_line(error)}. Check its name, and for a private one log in by `hf auth login`."
        ) from error


def _from_folder(option: str, folder: str, streaming: bool, cache_dir: str | None) -> Any:
    if not (folder and os.path.isdir(folder) and folder_files(folder)):
        raise ValueError(f"`{option}` {folder!r} is missing or holds no files. Put image files there.")
    try:
        return load_image_folder(folder, streaming, cache_dir)
    except Exception as error:  # of datasets, Arrow or the disk
        raise ValueError(f"`{option}` {folder!r} holds no images that can be read: {_line(error)}") from error


def _is_saved(source: Path) -> bool:
    return (source / "state.json").is_file() or (source / "dataset_dict.json").is_file()


def _has_card(source: Path) -> bool:
    """Whether it is a copy of a data set of the Hub, whose card says how it is split."""
    card = source / "README.md"
    return card.is_file() and card.read_text(errors="replace").startswith("---")


def _saved(name: str) -> datasets.Dataset:
    try:
        loaded = datasets.load_from_disk(name)
        if isinstance(loaded, datasets.DatasetDict) and "train" in loaded:
            loaded = loaded["train"]
        if isinstance(loaded, datasets.Dataset):
            loaded.data.validate(full=True)  # Arrow trusts the offsets in a file, and reads anywhere in memory by them
            return loaded
    except Exception as error:  # of datasets or Arrow, or of JSON
        raise ValueError(
            f"`--dataset_name` {name!r} is a folder of `save_to_disk` that cannot be read: {_line(error)}. Save it "
            "again."
        ) from error
    raise ValueError(f"`--dataset_name` {name!r} has no split 'train', but {list(loaded)}.")


def _warn_of_other_splits(name: str, config_name: str | None, cache_dir: str | None) -> None:
    """Say which files of a local folder datasets takes, by their names, for those of other splits."""
    if not Path(name).is_dir():
        return
    files = datasets.load_dataset_builder(name, config_name, cache_dir=cache_dir).config.data_files or {}
    others = {str(split): len(paths) for split, paths in files.items() if split != "train"}
    if others:
        warnings.warn(
            f"`--dataset_name` {name!r} is split by the names of its files, and only 'train' is read. Left out are, by "
            f"split, so many files: {others}.",
            stacklevel=3,
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
