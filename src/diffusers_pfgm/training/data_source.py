"""Where images come from: the Hub, parquet files, saved data sets, folders. Needs the extra `training`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets


def open_images(place: str) -> datasets.Dataset:
    """The images at a place that a command names: a folder of image files, else what `load_image_dataset` reads."""
    is_folder = Path(place).is_dir()
    return load_image_dataset(None if is_folder else place, data_dir=place if is_folder else None)


def load_image_dataset(
    name: str | None = None,
    config_name: str | None = None,
    data_dir: str | None = None,
    cache_dir: str | None = None,
    streaming: bool = False,
) -> datasets.Dataset | datasets.IterableDataset:
    """The "train" split of a data set of images.

    Args:
        name: a Hub id, a parquet file, a folder written by `save_to_disk`, or any folder that `load_dataset` reads.
        config_name: configuration of a Hub data set.
        data_dir: a folder of image files, in place of `name`.
        cache_dir: where `datasets` keeps its files.
        streaming: read while training, without a copy on disk.

    Raises:
        ValueError: if not exactly one source is given, or it is empty, missing, broken or out of reach.
    """
    options: dict[str, Any] = {"cache_dir": cache_dir, "streaming": streaming, "split": "train"}
    if (name is None) == (data_dir is None):
        raise ValueError(
            f"Pass exactly one of `--dataset_name` and `--train_data_dir`, but got {name!r} and {data_dir!r}."
        )
    if name is None:
        source = Path(str(data_dir))
        if not source.is_dir() or not any(path.is_file() for path in source.rglob("*")):
            raise ValueError(f"`--train_data_dir` {data_dir!r} is missing or holds no files. Put image files there.")
        try:
            return datasets.load_dataset("imagefolder", data_dir=data_dir, **options)
        except (datasets.exceptions.DatasetsError, FileNotFoundError, ValueError) as error:
            raise ValueError(f"`--train_data_dir` {data_dir!r} holds no images that can be read: {error}") from error
    source = Path(name)
    if source.suffix == ".parquet" and not source.is_file():
        raise ValueError(f"`--dataset_name` {name!r} is no file. Check the path.")
    if source.is_file():
        try:
            return datasets.load_dataset("parquet", data_files=name, **options)
        except (datasets.exceptions.DatasetsError, ValueError) as error:
            raise ValueError(f"`--dataset_name` {name!r} cannot be read as parquet: {error}") from error
    if (source / "state.json").is_file() or (source / "dataset_dict.json").is_file():
        if streaming:
            raise ValueError(
                f"`--streaming` does not read folders of `save_to_disk`, as `--dataset_name` {name!r} is one. Leave it "
                "out: such a folder is not copied."
            )
        loaded = datasets.load_from_disk(name)
        if isinstance(loaded, datasets.Dataset):
            return loaded
        if "train" not in loaded:
            raise ValueError(f"`--dataset_name` {name!r} has no split 'train', but {list(loaded)}.")
        return loaded["train"]
    try:
        return datasets.load_dataset(name, config_name, **options)
    except (datasets.exceptions.DatasetsError, FileNotFoundError, ConnectionError, ValueError) as error:
        raise ValueError(
            f"`--dataset_name` {name!r} is no data set that can be read here, on this disk or on the Hub: {error}. "
            "Check its name, and for a private one log in by `hf auth login`."
        ) from error
