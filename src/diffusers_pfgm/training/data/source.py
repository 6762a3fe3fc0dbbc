"""Loads data sets of images from the Hub, parquet files, saved data sets or folders. Needs the extra `training`."""

from __future__ import annotations

import glob
import os
import warnings
from pathlib import Path
from typing import Any

import datasets

from ...utils.messages import reason
from .image_folder import folder_files, is_image, is_table, load_image_folder


def open_images(place: str) -> datasets.Dataset:
    """Load images from a folder of image files, or from any other source that `load_image_dataset` reads by name."""
    is_folder = is_image_folder(place)
    return load_image_dataset(None if is_folder else place, data_dir=place if is_folder else None)


def is_image_folder(place: str) -> bool:
    """Whether `open_images` reads a place as a folder of image files."""
    return Path(place).is_dir() and not _is_saved(Path(place))


def load_image_dataset(
    name: str | None = None,
    config_name: str | None = None,
    data_dir: str | None = None,
    cache_dir: str | None = None,
    streaming: bool = False,
) -> datasets.Dataset | datasets.IterableDataset:
    """Load the "train" split of a data set of images, or all images of a folder.

    Args:
        name: A Hub id, a parquet file, a folder written by `save_to_disk`, or any folder that `load_dataset` reads.
        config_name: The configuration of a Hub data set.
        data_dir: A folder of image files, instead of `name`.
        cache_dir: Where datasets keeps its files.
        streaming: Whether to return an `IterableDataset`, which is read during training without a copy on disk.

    Raises:
        ValueError: if not exactly one of `name` and `data_dir` is passed, or if the source is empty, missing, damaged
            or cannot be reached.
    """
    if (name is None) == (data_dir is None):
        raise ValueError(
            f"Pass exactly one of `--dataset_name` and `--train_data_dir`, but got {name!r} and {data_dir!r}."
        )
    if name is None:
        return _from_folder(str(data_dir), streaming, cache_dir)
    if not name.strip():
        raise ValueError(f"The name of the data set is {name!r}. Pass a path or a Hub id, or leave the option out.")
    source = Path(name)
    if source.suffix == ".parquet" and not source.is_file():
        raise ValueError(f"The data set {name!r} is not a file. Check the path.")
    options: dict[str, Any] = {"cache_dir": cache_dir, "streaming": streaming, "split": "train"}
    if source.is_file():
        try:
            return datasets.load_dataset("parquet", data_files=glob.escape(name), **options)
        except Exception as error:  # datasets, Arrow and the disk raise errors of many classes
            raise ValueError(f"The data set {name!r} cannot be read as parquet: {reason(error)}.") from error
    if _is_saved(source):
        if streaming:
            raise ValueError(
                f"`--streaming` does not read folders written by `save_to_disk`, but `--dataset_name` {name!r} is such "
                "a folder. Leave out `--streaming`: such a folder is not copied."
            )
        return _load_saved(name)
    if source.is_dir():
        files = folder_files(name)
        if any(map(is_image, files)) and not any(map(is_table, files)) and not _has_card(source):
            return _from_folder(name, streaming, cache_dir)
    try:
        _warn_of_other_splits(name, config_name, cache_dir)
        return datasets.load_dataset(name, config_name, **options)
    except Exception as error:  # datasets, the Hub, the network and the disk raise errors of many classes
        raise ValueError(
            f"The data set {name!r} cannot be read, neither from this disk nor from the Hub: "
            f"{reason(error)}. Check the name, and log in by `hf auth login` if the data set is private."
        ) from error


def _from_folder(folder: str, streaming: bool, cache_dir: str | None) -> Any:
    if not (folder and os.path.isdir(folder) and folder_files(folder)):
        raise ValueError(f"The folder {folder!r} is missing or holds no files. Put image files there.")
    try:
        return load_image_folder(folder, streaming, cache_dir)
    except Exception as error:  # datasets, Arrow and the disk raise errors of many classes
        raise ValueError(f"The folder {folder!r} holds no images that can be read: {reason(error)}.") from error


def _is_saved(source: Path) -> bool:
    return (source / "state.json").is_file() or (source / "dataset_dict.json").is_file()


def _has_card(source: Path) -> bool:
    """Whether a folder is a copy of a Hub data set, whose card (README.md) defines its splits."""
    card = source / "README.md"
    return card.is_file() and card.read_text(errors="replace").startswith("---")


def _load_saved(name: str) -> datasets.Dataset:
    try:
        loaded = datasets.load_from_disk(name)
        if isinstance(loaded, datasets.DatasetDict) and "train" in loaded:
            loaded = loaded["train"]
        if isinstance(loaded, datasets.Dataset):
            # Arrow does not check the offsets in a file: with damaged ones it would read anywhere in memory.
            loaded.data.validate(full=True)
            return loaded.with_format(None)  # a saved format would hide columns, or make tensors of labels
    except Exception as error:  # datasets, Arrow and JSON raise errors of many classes
        raise ValueError(
            f"The data set {name!r} is a folder written by `save_to_disk`, but cannot be read: {reason(error)}. "
            "Save it again."
        ) from error
    raise ValueError(f"The data set {name!r} has no split 'train'. Its splits are {list(loaded)}.")


def _warn_of_other_splits(name: str, config_name: str | None, cache_dir: str | None) -> None:
    """Warn of files in a local folder that datasets assigns to other splits because of their names."""
    if not Path(name).is_dir():
        return
    files = datasets.load_dataset_builder(name, config_name, cache_dir=cache_dir).config.data_files or {}
    others = {str(split): len(paths) for split, paths in files.items() if split != "train"}
    if others:
        warnings.warn(
            f"The data set {name!r} is split by the names of its files, and only 'train' is read. Left out (number "
            f"of files by split): {others}.",
            stacklevel=3,
        )
