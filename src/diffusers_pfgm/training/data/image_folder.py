"""Reads all images of a folder, independent of the names of files and subfolders. Needs the extra `training`."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Sequence
from typing import Any

import datasets
from PIL import Image

from ...utils.messages import reason

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
TABLES = (".parquet", ".arrow", ".tar", ".csv", ".json", ".jsonl")  # files that datasets reads images from
SPLITS = {"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation"}
MAX_NAMED_FILES = 5  # files that a warning lists


def folder_files(folder: str, above: tuple[str, ...] = ()) -> list[str]:
    """Sorted paths of the files in a folder and its subfolders, without hidden ones. Links are followed.

    Args:
        folder: The folder to list.
        above: Resolved paths of its parent folders. A link to one of them is not followed, as it would not end.
    """
    real = os.path.realpath(folder)
    if real in above:
        return []
    files = []
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except PermissionError:
        if not above:
            raise
        warnings.warn(f"{folder} cannot be read (permission denied), so its files are left out.", stacklevel=2)
        return []
    visible.sort(key=lambda entry: entry.name)
    for entry in visible:
        if entry.is_dir():
            files += folder_files(entry.path, (*above, real))
        elif entry.is_file() or entry.is_symlink():
            files.append(entry.path)
    return files


def is_image(path: str) -> bool:
    """Whether Pillow opens files with this suffix, in upper or lower case."""
    return Image.registered_extensions().get(os.path.splitext(path)[1].lower()) in Image.OPEN


def is_table(path: str) -> bool:
    """Whether a file may hold a data set. Image files beside it are then not the data but illustrations."""
    return path.lower().endswith(TABLES) and os.path.basename(path) not in METADATA


def load_image_folder(folder: str, streaming: bool = False, cache_dir: str | None = None) -> Any:
    """Return all images of a folder and its subfolders as a data set with the column "image".

    If all images are in subfolders of the same depth that have at least two names, the column "label" holds the name of
    the subfolder. Metadata files, which name images and add columns, and zip archives are read by datasets'
    ImageFolder. A warning lists files that are left out.

    Args:
        folder: The folder.
        streaming: Whether to return an `IterableDataset`. Its images are in a random order, which is always the same,
            except those of zip archives.
        cache_dir: Where datasets keeps its files.

    Raises:
        ValueError: if the folder holds no image.
    """
    folder = os.path.abspath(folder)
    found = folder_files(folder)
    files = [path for path in found if path.encode(errors="ignore").decode() == path]  # Arrow has no other strings
    _warn("have a name that is not UTF-8", folder, sorted({*found} - {*files}))
    images = [path for path in files if is_image(path)]
    metadata = [path for path in files if os.path.basename(path) in METADATA]
    archives = [path for path in files if path.lower().endswith(".zip")]
    if not (images or archives):
        raise ValueError(f"none of its {len(files):,} files has the suffix of an image")
    _warn("have no suffix of an image", folder, sorted({*files} - {*images, *metadata, *archives}))
    if not metadata:
        _warn_of_splits(folder, images)
    if not (metadata or archives):
        dataset = _from_paths(images)
        return _as_stream(dataset) if streaming else dataset
    try:
        # Each file is named here, since datasets would guess splits from the names of a folder's files.
        dataset = datasets.load_dataset(
            "imagefolder",
            data_files={"train": [glob.escape(path) for path in (*images, *metadata, *archives)]},
            split="train",
            streaming=streaming and bool(archives),
            cache_dir=cache_dir,
        )
    except Exception as error:
        if archives or not images:
            raise
        warnings.warn(f"The metadata files of {folder} are not used: {reason(error)}.", stacklevel=3)
        dataset = _from_paths(images)
    if archives:
        return dataset
    _warn("are not listed in a metadata file", folder, sorted({*images} - _paths(dataset)))
    return _as_stream(dataset) if streaming else dataset


def _as_stream(dataset: datasets.Dataset) -> datasets.IterableDataset:
    """A stream of the images in an order that mixes the folders, since a stream is shuffled only within a buffer."""
    return dataset.shuffle(seed=0).flatten_indices().to_iterable_dataset()


def _from_paths(images: list[str]) -> datasets.Dataset:
    folders = [os.path.dirname(path) for path in images]
    labels = [os.path.basename(folder) for folder in folders]
    same_depth = len({folder.count(os.sep) for folder in folders}) == 1
    columns: dict[str, list[str]] = {"image": images}
    features: dict[str, Any] = {"image": datasets.Image()}
    if same_depth and len({*labels}) > 1:
        columns["label"] = labels
        features["label"] = datasets.ClassLabel(names=sorted({*labels}))
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def _paths(dataset: datasets.Dataset) -> set[str]:
    """Paths of the image files in all columns."""
    paths = set()
    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Image):
            entries = dataset.select_columns(name).cast_column(name, datasets.Image(decode=False))[name]
            paths |= {os.path.abspath(entry["path"]) for entry in entries if entry is not None}
    return paths


def _warn(what: str, folder: str, left_out: Sequence[str]) -> None:
    if left_out:
        names = ", ".join(os.path.relpath(path, folder) for path in left_out[:MAX_NAMED_FILES])
        more = ", ..." if len(left_out) > MAX_NAMED_FILES else ""
        warnings.warn(f"{len(left_out):,} files of {folder} {what} and are left out: {names}{more}", stacklevel=4)


def _warn_of_splits(folder: str, images: list[str]) -> None:
    tops = {os.path.relpath(path, folder).split(os.sep)[0] for path in images if os.path.dirname(path) != folder}
    if len(tops) > 1 and {top.lower() for top in tops} <= SPLITS:
        warnings.warn(
            f"All subfolders of {folder} are read: {', '.join(sorted(tops))}. Pass the path of one subfolder to read "
            "only that.",
            stacklevel=4,
        )
