"""Checks and locks the output folder of a run: it must be writable, hold no other model, and have no other writer."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

from ..data.source import is_image_folder
from .checkpoints import LATEST, locate_checkpoint
from .folders import SET_ASIDE
from .run_files import LOCK, has_saved_nothing


def check_output_dir(
    path: str | Path, overwrite: bool = False, resume_from: str | None = None, logging_dir: str = "logs"
) -> None:
    """Check that an output folder is empty, unless the run overwrites it or resumes from a checkpoint in it.

    A folder that holds only the records of a run that stopped before it saved a model or a checkpoint counts as empty.

    Args:
        path: The value of `--output_dir`.
        overwrite: Whether `--overwrite_output_dir` is set.
        resume_from: The value of `--resume_from_checkpoint`.
        logging_dir: The trackers' folder, relative to `path`.

    Raises:
        ValueError: if the folder is not empty, so that no model is overwritten by mistake, or if `path` is a file.
    """
    path = Path(path)
    if path.is_file():
        raise ValueError(f"`--output_dir` {str(path)!r} is a file. Name a folder.")
    resumes = resume_from is not None and is_inside(resume_from, path)
    if not (overwrite or resumes) and path.is_dir() and not has_saved_nothing(path, logging_dir):
        raise ValueError(
            f"`--output_dir` {str(path)!r} is not empty and may hold another model. Choose a new folder, or pass "
            "`--resume_from_checkpoint latest` to resume its run, or `--overwrite_output_dir` to write into it anyway."
        )


def check_outside_data(path: str | Path, **folders: str | None) -> None:
    """Check that an output folder is not in the folder of the data: later runs would train on the files of the run.

    Hidden folders are allowed, since they are not read, and so are folders that `save_to_disk` has written.

    Args:
        path: The value of `--output_dir`.
        **folders: Options of the data by name, whose values may be folders.

    Raises:
        ValueError: if one of the folders is the output folder or holds it.
    """
    output = Path(path).resolve()
    for option, folder in folders.items():
        if not folder or not is_image_folder(folder):
            continue
        data = Path(folder).resolve()
        if output.is_relative_to(data) and not any(part.startswith(".") for part in output.relative_to(data).parts):
            raise ValueError(
                f"`--output_dir` {str(path)!r} is in the folder of `--{option}` {folder!r}, so that the run's own "
                "pictures would become training images. Choose a folder outside of it."
            )


def is_inside(resume_from: str, output_dir: str | Path) -> bool:
    """Whether `--resume_from_checkpoint` names a checkpoint in the output folder or in its `set-aside-<number>`."""
    if resume_from == LATEST:
        return True
    parent = locate_checkpoint(resume_from, output_dir).parent.resolve()
    return Path(output_dir).resolve() in (parent, parent.parent if parent.name.startswith(SET_ASIDE) else parent)


def lock_output_dir(path: str | Path) -> FileLock:
    """Create the folder if necessary, and lock it against other runs until the lock is released or the process ends.

    Raises:
        ValueError: if the folder cannot be written to, or another process has locked it.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(
            f"`--output_dir` {str(path)!r} cannot be written to: {error.strerror}. Choose a folder that you may write "
            "to, on a disk with space left."
        ) from error
    file = path / LOCK
    lock = FileLock(file)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        owner = ""
        with contextlib.suppress(OSError):
            owner = file.read_text(errors="replace").strip()
        raise ValueError(
            f"`--output_dir` {str(path)!r} is in use by a running process{owner and f' ({owner})'}. Wait for it, stop "
            "it, or choose another folder."
        ) from error
    except OSError as error:  # the lock file belongs to another user, or is a folder or a broken link
        raise ValueError(
            f"`--output_dir` {str(path)!r} cannot be locked: its file {LOCK}, left there by an earlier run, cannot be "
            f"opened ({error.strerror}). If no run uses the folder, remove that file; else choose another folder."
        ) from error
    # Windows refuses to read and write a locked file, also in the process that has locked it.
    with contextlib.suppress(OSError):
        file.write_text(f"process {os.getpid()}")
    return lock
