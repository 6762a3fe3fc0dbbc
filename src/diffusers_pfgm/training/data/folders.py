"""Every image of a folder, whatever its files and subfolders are called. Needs the extra `training`."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Sequence
from typing import Any

import datasets
from PIL import Image

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
TABLES = (".parquet", ".arrow", ".tar", ".csv", ".json", ".jsonl")  # files that datasets reads images from
SPLITS = {"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation"}
NAMED = 5  # files that a warning names


def folder_files(folder: str, above: tuple[str, ...] = ()) -> list[str]:
    """Paths of the files in a folder and its subfolders, in order, without hidden ones. Links are followed.

    Args:
        folder: to look into.
        above: real paths of the folders that hold it, to which a link inside is not followed.
    """
    real = os.path.realpath(folder)
    if real in above:
        return []
    found = []
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except PermissionError:
        if not above:
            raise
        warnings.warn(f"{folder} may not be read, so its files are left out.", stacklevel=2)
        return []
    visible.sort(key=lambda entry: entry.name)
    for entry in visible:
        if entry.is_dir():
            found += folder_files(entry.path, (*above, real))
        elif entry.is_file() or entry.is_symlink():
            found.append(entry.path)
    return found


def is_image(path: str) -> bool:
    """Whether Pillow opens files of this suffix, in upper or lower case."""
    return Image.registered_extensions().get(os.path.splitext(path)[1].lower()) in Image.OPEN


def is_table(path: str) -> bool:
    """Whether a file may hold a data set of its own, beside which single images are no more than illustrations."""
    return path.lower().endswith(TABLES) and os.path.basename(path) not in METADATA


def load_image_folder(folder: str, streaming: bool = False, cache_dir: str | None = None) -> Any:
    """All images of a folder and its subfolders, as a data set with the column "image".

    If all lie in subfolders of the same depth and of several names, "label" is the name of the subfolder. A metadata
    file, which names images and adds columns, and zip archives are read by datasets' ImageFolder. Files that are left
    out are told by a warning.

    Raises:
        ValueError: if there is no image.
    """
    folder = os.path.abspath(folder)
    files = folder_files(folder)
    images = [path for path in files if is_image(path)]
    metadata = [path for path in files if os.path.basename(path) in METADATA]
    archives = [path for path in files if path.lower().endswith(".zip")]
    if not (images or archives):
        raise ValueError(f"none of its {len(files):,} files has the suffix of an image")
    _warn("are no images by their suffix", folder, sorted({*files} - {*images, *metadata, *archives}))
    if not metadata:
        _warn_of_splits(folder, images)
    if not (metadata or archives):
        dataset = _from_paths(images)
        return dataset.to_iterable_dataset() if streaming else dataset
    try:
        # By their names one by one, since datasets takes the names of a folder's files for those of splits.
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
        warnings.warn(f"The metadata files of {folder} are not used: {' '.join(str(error).split())}", stacklevel=3)
        dataset = _from_paths(images)
    if archives:
        return dataset
    _warn("are named by no metadata file", folder, sorted({*images} - _paths(dataset)))
    return dataset.to_iterable_dataset() if streaming else dataset


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
    """Paths of the files in all columns of images."""
    found = set()
    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Image):
            entries = dataset.select_columns(name).cast_column(name, datasets.Image(decode=False))[name]
            found |= {os.path.abspath(entry["path"]) for entry in entries if entry is not None}
    return found


def _warn(why: str, folder: str, left_out: Sequence[str]) -> None:
    if left_out:
        names = ", ".join(os.path.relpath(path, folder) for path in left_out[:NAMED])
        more = ", ..." if len(left_out) > NAMED else ""
        warnings.warn(f"{len(left_out):,} files of {folder} {why} and left out: {names}{more}", stacklevel=4)


def _warn_of_splits(folder: str, images: list[str]) -> None:
    tops = {os.path.relpath(path, folder).split(os.sep)[0] for path in images if os.path.dirname(path) != folder}
    if len(tops) > 1 and {top.lower() for top in tops} <= SPLITS:
        warnings.warn(
            f"All subfolders of {folder} are read: {', '.join(sorted(tops))}. Pass the path of one to read it alone.",
            stacklevel=4,
        )
