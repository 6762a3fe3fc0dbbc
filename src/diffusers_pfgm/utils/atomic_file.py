"""Files that are never incomplete, even if the process is killed while it writes them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a hidden path in the same folder to write to, and rename it to `path` at the end.

    If the body of the `with` statement raises, `path` is unchanged.
    """
    partial = partial_path(path)
    yield partial
    partial.replace(path)


def partial_path(path: Path) -> Path:
    """Return the path that `atomic_file` writes to before it renames it."""
    return path.with_name(f".{path.name}.partial")
