"""The folder that a run writes to: nobody else's model in it, nobody else writing, and room to write."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

from .checkpoints import LATEST, locate_checkpoint
from .folders import SET_ASIDE
from .run_files import LOCK, has_saved_nothing


def check_output_dir(
    path: str | Path, overwrite: bool = False, resume_from: str | None = None, logging_dir: str = "logs"
) -> None:
    """Refuse a folder that holds something, unless asked to overwrite it or to resume from a checkpoint in it.

    The first records of a run that was stopped before it saved a model or a checkpoint do not count.

    Raises:
        ValueError: so that no model is overwritten unasked.
    """
    path = Path(path)
    if path.is_file():
        raise ValueError(f"`--output_dir` {str(path)!r} is a file. Name a folder.")
    resumes = resume_from is not None and is_inside(resume_from, path)
    if not (overwrite or resumes) and path.is_dir() and not has_saved_nothing(path, logging_dir):
        raise ValueError(
            f"`--output_dir` {str(path)!r} is not empty and may hold another model. Choose a new folder, or pass "
            "`--resume_from_checkpoint latest` to go on, or `--overwrite_output_dir` to write over it."
        )


def is_inside(resume_from: str, output_dir: str | Path) -> bool:
    """Whether `--resume_from_checkpoint` names a checkpoint of the run in the output folder, set aside or not."""
    if resume_from == LATEST:
        return True
    parent = locate_checkpoint(resume_from, output_dir).parent.resolve()
    return Path(output_dir).resolve() in (parent, parent.parent if parent.name.startswith(SET_ASIDE) else parent)


def lock_output_dir(path: str | Path) -> FileLock:
    """Make the folder if need be and keep other runs out of it, until this process ends, however it ends.

    Raises:
        ValueError: if nothing can be written there, or another process has claimed it.
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
        file.write_text(f"process {os.getpid()}")
    except Timeout as error:
        owner = file.read_text(errors="replace").strip()
        raise ValueError(
            f"`--output_dir` {str(path)!r} is in use by a running process{owner and f' ({owner})'}. Wait for it, stop "
            "it, or choose another folder."
        ) from error
    except OSError as error:  # another user's file, a folder, a link
        raise ValueError(
            f"`--output_dir` {str(path)!r} cannot be locked: its file {LOCK}, left there by an earlier run, cannot be "
            f"opened ({error.strerror}). If no run uses the folder, remove that file; else choose another folder."
        ) from error
    return lock
