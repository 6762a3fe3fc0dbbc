"""Moving folders so that nothing in them is lost, and so that a reader finds the old or the new one at any moment."""

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
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux


def set_aside(folder: Path, paths: Sequence[Path]) -> Path | None:
    """Move files and folders out of the way, into a new folder `set-aside-<number>`.

    Args:
        folder: where the new folder is made.
        paths: what is moved, inside `folder`; each keeps its place relative to it.

    Returns:
        The new folder; None if there was nothing to move.
    """
    if not paths:
        return None
    number = 1
    while (aside := folder / f"{SET_ASIDE}{number}").exists():
        number += 1
    for path in paths:
        target = aside / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():  # a relative one would no longer lead anywhere from another folder
            target.symlink_to(path.parent.resolve() / os.readlink(path))
            path.unlink()
        else:
            shutil.move(path, target)  # `path` may be on another disk, by a link to its folder
    return aside


def replace_folder(new: Path, target: Path) -> None:
    """Put the folder `new` in the place of `target`, whose other files, if it has any, are kept in it.

    Weights of an earlier save that would be loaded in the place of the new ones are not kept.

    Where the system exchanges two folders at once, as Linux does on most file systems, `target` is the old or the new
    folder at any moment. Elsewhere it is missing between two renames, after which `recover_folder` finds the old one.
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
    """Put the old folder back where `replace_folder` was killed between its two renames."""
    if not target.exists() and _replaced(target).exists():
        _replaced(target).rename(target)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; whether the system could."""
    if sys.platform != "linux":
        return False
    with contextlib.suppress(OSError, AttributeError):  # a C library without this function
        rename = ctypes.CDLL(None).renameat2
        return rename(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0
    return False


def _replaced(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced")
