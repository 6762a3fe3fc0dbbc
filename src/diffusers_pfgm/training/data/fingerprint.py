"""What tells one data set from another of the same size, wherever it is kept."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from ...schedulers.scheduling_poisson_flow import PoissonFlowScheduler
from ..run.settings import DATA
from .decoding import Entry, read_file
from .images import ImageTensors
from .streams import StreamedImages

MOST_IMAGES = 1000  # that are read, evenly spaced
FIRST_IMAGES = 100  # that are read of a stream


def data_settings(
    images: ImageTensors | StreamedImages,
    labels: torch.Tensor | None,
    id2label: Mapping[int, str] | None,
    scheduler: PoissonFlowScheduler,
) -> dict[str, Any]:
    """Settings that are found from the data, by names that begin with "data.".

    Args:
        images: to train on.
        labels: (count,), of their classes; None without classes or for a stream.
        id2label: names of the classes by number; None without classes.
        scheduler: whose numbers the statistics of the images may have set.
    """
    if isinstance(images, StreamedImages):
        entries = (row[images.column] for row in itertools.islice(images.rows, FIRST_IMAGES))
    else:
        count = min(len(images), MOST_IMAGES)
        indices = torch.linspace(0, len(images) - 1, count, dtype=torch.float64).round().long().tolist()
        entries = (images.files[index][images.column] for index in indices)
    facts = {"images": fingerprint(entries), "sigma_max": scheduler.config.sigma_max, "M": scheduler.config.M}
    if id2label is not None:
        numbers = [] if labels is None else labels.tolist()
        facts["classes"] = _digest([json.dumps([*id2label.values()]).encode(), json.dumps(numbers).encode()])
    return {f"{DATA}{name}": value for name, value in facts.items()}


def fingerprint(entries: Iterable[Entry]) -> str:
    """A checksum of images as they are stored, in their order; the names and places of their files do not matter."""
    return _digest(map(_encoded, entries))


def _encoded(entry: Entry) -> bytes:
    if isinstance(entry, list):
        pixels = np.asarray(entry)
        return json.dumps([pixels.shape, pixels.dtype.str]).encode() + pixels.tobytes()
    try:
        return b"" if entry is None else read_file(entry)
    except Exception:  # whatever it is, it is reported where the image is read to train on it
        return b""


def _digest(parts: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(hashlib.sha256(part).digest())
    return found.hexdigest()[:16]
