"""The column of a data set that holds its images. Needs the extra `training`."""

from __future__ import annotations

from typing import Any

import datasets

ARRAY_FEATURES = (datasets.List, datasets.LargeList, datasets.Array2D, datasets.Array3D, list)


def with_image_files(dataset: Any, column: str | None, source: str = "data set") -> tuple[Any, str]:
    """Return the data set with its images undecoded (`decoding.Entry`), and the name of their column.

    Args:
        dataset: A data set or a stream with a column of images. The column holds `datasets.Image`, encoded bytes,
            structs of `bytes` and `path`, paths, or arrays of pixels.
        column: The name of that column. By default the first column of type `datasets.Image`; if there is none, the
            column "image", or else the only column of bytes, structs or arrays.
        source: The name of the data set in error messages.

    Raises:
        ValueError: if the data set has no such column.
    """
    if dataset.features is None:  # the format of a stream may not declare its columns: infer them from the first rows
        dataset = dataset._resolve_features()
    features: dict[str, Any] = dataset.features
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    others = [name for name, feature in features.items() if _is_array(feature) or _is_file(feature)]
    likely = [name for name in others if not _is_text(features[name])]
    default = images or [name for name in others if name == "image"] or (likely if len(likely) == 1 else [])
    name = column or (default[0] if default else None)
    if name is None or name not in (*images, *others):
        raise ValueError(
            f"`--image_column` is {column!r}, but the {source}'s columns of images are {images} (all columns: "
            f"{list(features)}). Convert a column of bytes or paths by `dataset.cast_column(name, datasets.Image())`."
        )
    if not _is_array(features[name]):
        dataset = dataset.cast_column(name, datasets.Image(decode=False))
    return dataset, name


def _is_array(feature: Any) -> bool:
    return isinstance(feature, ARRAY_FEATURES)


def _is_text(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _is_file(feature: Any) -> bool:
    if isinstance(feature, dict):
        return bool(feature) and {"bytes", "path"} >= {*feature}
    return _is_text(feature) or (isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary"))
