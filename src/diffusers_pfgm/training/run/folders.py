"""Moves and replaces folders without losing files.

On most file systems of Linux a reader sees either the old or the new folder at any moment. Elsewhere the folder is
missing for a moment, and `recover_folder` restores it if the process was killed then.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from ...hub.serialization import outdated

SET_ASIDE = "set-aside-"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # constants of Linux's renameat2


def set_aside(folder: Path, paths: Sequence[Path]) -> Path | None:
    """Move files and folders into a new folder `set-aside-<number>`.

    Args:
        folder: The folder in which the new folder is made.
        paths: The files and folders in `folder` to move. They keep their paths relative to it.

    Returns:
        The new folder; None if `paths` is empty.
    """
    if not paths:
        return None
    number = 1
    while (aside := folder / f"{SET_ASIDE}{number}").exists():
        number += 1
    for path in paths:
        target = aside / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():  # a relative link would be broken in another folder
            target.symlink_to(path.parent.resolve() / os.readlink(path))
            path.unlink()
        else:
            shutil.move(path, target)  # unlike rename, works if a link places `path` on another disk
    return aside


def replace_folder(new: Path, target: Path) -> None:
    """Replace the folder `target` by the folder `new`. Other files in `target` are kept.

    Weight files of an earlier save that would be loaded instead of the new ones are removed.

    If the system can exchange two folders at once, as Linux does on most file systems, `target` is the old or the new
    folder at any moment. Otherwise it is missing between two renames, and `recover_folder` restores the old folder if
    the process was killed between them.
    """
    if not target.exists():
        new.rename(target)
        return
    old = new
    if not _exchange(new, target):
        old = _replaced(target)
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        new.rename(target)
    present, written = (
        [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]
        for folder in (old, target)
    )
    stale = outdated(present, written)
    for name in present:
        path, kept = old / name, target / name
        if name not in stale and not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            path.rename(kept)
    shutil.rmtree(old)


def recover_folder(target: Path) -> None:
    """Restore the old folder if `replace_folder` was killed between its two renames."""
    if not target.exists() and _replaced(target).exists():
        _replaced(target).rename(target)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders atomically. Return False if the system cannot."""
    if sys.platform != "linux":
        return False
    with contextlib.suppress(OSError, AttributeError):  # AttributeError: the C library does not have this function
        rename = ctypes.CDLL(None).renameat2
        return rename(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0
    return False


def _replaced(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced")
