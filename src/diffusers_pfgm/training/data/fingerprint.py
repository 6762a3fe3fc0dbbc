"""A fingerprint of a data set: it depends on the images, their order and classes, not on where they are stored."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any

import datasets
import numpy as np
import torch

from ...schedulers.scheduling_poisson_flow import PoissonFlowScheduler
from ..run.settings import DATA_PREFIX
from .decoding import Entry, read_file
from .images import ImageTensors
from .order import evenly_spaced
from .streams import StreamedImages

MAX_FINGERPRINT_IMAGES = 1000  # evenly spaced in the data set
STREAM_FINGERPRINT_IMAGES = 100  # the first images of a stream


def data_settings(
    images: ImageTensors | StreamedImages,
    labels: torch.Tensor | None,
    id2label: Mapping[int, str] | None,
    scheduler: PoissonFlowScheduler,
) -> dict[str, Any]:
    """Return the settings of a run that follow from its data. Their names begin with "data.".

    Args:
        images: The training images.
        labels: Class labels (count,) of the images; None without classes or for a stream.
        id2label: Names of the classes by label; None without classes.
        scheduler: The scheduler of the run, some of whose options follow from the images.
    """
    if isinstance(images, StreamedImages):
        rows = itertools.islice(images.rows, STREAM_FINGERPRINT_IMAGES)
        checksum = fingerprint(row[images.column] for row in rows)
    else:
        checksum = dataset_fingerprint(images.files, images.column)
    settings = {"images": checksum, "M": scheduler.config.M}
    settings |= {name: scheduler.config[name] for name in ("sigma_max", "sigma_data", "data_mean", "mean_square_std")}
    if id2label is not None:
        numbers = [] if labels is None else labels.tolist()
        settings["classes"] = _digest([json.dumps([*id2label.values()]).encode(), json.dumps(numbers).encode()])
    return {f"{DATA_PREFIX}{name}": value for name, value in settings.items()}


def dataset_fingerprint(dataset: datasets.Dataset, column: str) -> str:
    """The fingerprint of at most 1,000 images of a data set, evenly spaced. Its column holds undecoded images."""
    indices = evenly_spaced(len(dataset), MAX_FINGERPRINT_IMAGES).tolist()
    return fingerprint(dataset[index][column] for index in indices)


def fingerprint(entries: Iterable[Entry]) -> str:
    """A checksum of the undecoded images in their order. Names and folders of their files do not matter."""
    return _digest(map(_to_bytes, entries))


def _to_bytes(entry: Entry) -> bytes:
    if isinstance(entry, list):
        pixels = np.asarray(entry)
        return json.dumps([pixels.shape, pixels.dtype.str]).encode() + pixels.tobytes()
    try:
        return b"" if entry is None else read_file(entry)
    except Exception:  # the error is reported when the image is read for training
        return b""


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]
