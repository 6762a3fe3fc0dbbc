"""The folder that a run writes to: nobody else's model in it, nobody else writing, and room to write."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"


def check_output_dir(path: str | Path, overwrite: bool = False, resume_from: str | None = None) -> None:
    """Refuse a folder that is not empty, unless asked to overwrite it or to resume from a checkpoint in it.

    Raises:
        ValueError: so that no model is overwritten unasked.
    """
    path = Path(path)
    if path.is_file():
        raise ValueError(f"`--output_dir` {str(path)!r} is a file. Name a folder.")
    resumes = resume_from == "latest" or (
        resume_from is not None and Path(resume_from).resolve().parent == path.resolve()
    )
    if not (overwrite or resumes) and path.is_dir() and any(each.name != LOCK for each in path.iterdir()):
        raise ValueError(
            f"`--output_dir` {str(path)!r} is not empty and may hold another model. Choose a new folder, or pass "
            "`--resume_from_checkpoint latest` to go on, or `--overwrite_output_dir` to write over it."
        )


def claim_output_dir(path: str | Path) -> FileLock:
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
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        owner = (path / LOCK).read_text().strip()
        raise ValueError(
            f"`--output_dir` {str(path)!r} is in use by a running process{owner and f' ({owner})'}. Wait for it, stop "
            "it, or choose another folder."
        ) from error
    (path / LOCK).write_text(f"process {os.getpid()}")
    return lock
