"""Files that are complete or not there, whenever a process is killed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A hidden path beside `path` to write to, which is renamed to `path` at the end."""
    partial = partial_path(path)
    yield partial
    partial.replace(path)


def partial_path(path: Path) -> Path:
    """Where `atomic_file` writes before it renames."""
    return path.with_name(f".{path.name}.partial")
