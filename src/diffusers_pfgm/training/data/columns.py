"""The column of a data set that holds its images. Needs the extra `training`."""

from __future__ import annotations

from typing import Any

import datasets

KINDS_OF_ARRAYS = ("List", "LargeList", "Sequence", "Array2D", "Array3D")  # not all of them in every release
ARRAYS = tuple(kind for name in KINDS_OF_ARRAYS if isinstance(kind := getattr(datasets, name, None), type))


def with_image_files(dataset: Any, column: str | None, source: str = "data set") -> tuple[Any, str]:
    """A data set or a stream whose images are as `decode.Entry` has them, and the name of their column.

    Args:
        dataset: with a column of images: of the feature `datasets.Image`, or of encoded bytes, of structs of `bytes`
            and `path`, of paths, or of arrays of pixels.
        column: its name. By default the first column of `datasets.Image`; without one the column "image", or else the
            only one of bytes, structs or arrays.
        source: what the data set is called in errors.

    Raises:
        ValueError: if there is no such column.
    """
    if dataset.features is None:  # of a stream whose format does not tell them: from its first rows
        dataset = dataset._resolve_features()
    features: dict[str, Any] = dataset.features
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    others = [name for name, feature in features.items() if _is_array(feature) or _is_file(feature)]
    likely = [name for name in others if not _is_text(features[name])]
    default = images or [name for name in others if name == "image"] or (likely if len(likely) == 1 else [])
    found = column or (default[0] if default else None)
    if found not in (*images, *others):
        raise ValueError(
            f"`--image_column` is {column!r}, but the {source}'s columns of images are {images} (all columns: "
            f"{list(features)}). Make a column of bytes or paths one by `dataset.cast_column(name, datasets.Image())`."
        )
    if not _is_array(features[found]):
        dataset = dataset.cast_column(found, datasets.Image(decode=False))
    return dataset, found


def _is_array(feature: Any) -> bool:
    return isinstance(feature, (*ARRAYS, list))


def _is_text(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _is_file(feature: Any) -> bool:
    if isinstance(feature, dict):
        return bool(feature) and {"bytes", "path"} >= {*feature}
    return _is_text(feature) or (isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary"))
