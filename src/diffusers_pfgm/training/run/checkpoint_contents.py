"""The list that closes a checkpoint: its step, the run's settings, and each file with its size and checksum.

The list ends with a checksum of itself, so that one changed byte anywhere in a checkpoint is found.
"""

from __future__ import annotations

import functools
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .finite_weights import non_finite_weight

PREFIX = "checkpoint-"
CONTENTS = "contents.json"
AVERAGE = "average.json"  # the numbers of the averaged weights, beside these in `unet_ema`
SEAL = b',\n "checksum": '


def write_contents(folder: Path, step: int, settings: Mapping[str, Any]) -> None:
    """Put every file of `folder` on the disk, and the list of them last."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            _flush(path)
            files[path.relative_to(folder).as_posix()] = [path.stat().st_size, _checksum(path)]
    contents = json.dumps({"step": step, "settings": dict(settings), "files": files}, indent=1)
    (folder / CONTENTS).write_bytes(_sealed(contents.removesuffix("\n}").encode()))
    _flush(folder / CONTENTS)


def find_new_corruption(path: Path) -> str | None:
    """What is wrong with a checkpoint folder; None if it is whole. Files unchanged since the last call are not reread.

    A training run asks this of every checkpoint that it keeps, each time that it writes another.
    """
    stats = ((file, file.stat()) for file in sorted(path.rglob("*")) if file.is_file())
    return _known_damage(path.resolve(), tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in stats))


@functools.lru_cache(maxsize=256)
def _known_damage(path: Path, files: tuple[tuple[Path, int, int], ...]) -> str | None:
    return find_corruption(path)


def find_corruption(path: Path) -> str | None:
    """What is wrong with a checkpoint folder; None if it is whole."""
    try:
        for name, (size, checksum) in _read_contents(path)["files"].items():
            if (path / name).stat().st_size != size:
                return f"{name} has {(path / name).stat().st_size} bytes instead of {size}"
            if _checksum(path / name) != checksum:
                return f"{name} does not have the contents that were saved"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its {CONTENTS} cannot be read: {error}"
    weight = non_finite_weight(path)
    return None if weight is None else f"{weight} holds NaN or infinity, for its run diverged"


def checkpoint_step(path: str | Path) -> int:
    """Number of optimiser steps after which a checkpoint was written, whatever its folder is named.

    It is read from the checkpoint's contents. The name of the folder counts only where these cannot be read.

    Raises:
        ValueError: if neither the contents nor the name `checkpoint-<number>` say it.
    """
    path = Path(path)
    try:
        contents = _read_contents(path)
        if "step" in contents:
            return int(contents["step"])
        return int(json.loads((path / "unet_ema" / AVERAGE).read_text())["optimization_step"])  # of version 0.1.0
    except (OSError, ValueError, KeyError, TypeError) as error:
        number = path.name.removeprefix(PREFIX)
        if not number.isdecimal():
            raise ValueError(f"{path} is no checkpoint: its {CONTENTS} cannot be read: {error}") from error
        return int(number)


def read_settings(checkpoint: Path) -> dict[str, Any]:
    """The settings of the run that wrote a checkpoint."""
    settings: dict[str, Any] = _read_contents(checkpoint)["settings"]
    return settings


def _read_contents(folder: Path) -> dict[str, Any]:
    raw = (folder / CONTENTS).read_bytes()
    contents: dict[str, Any] = json.loads(raw)
    if set(contents) == {"settings", "files"}:  # of version 0.1.0, without a checksum of itself
        return contents
    if raw != _sealed(raw.rpartition(SEAL)[0]):
        raise ValueError("it does not have the contents that were saved")
    return contents


def _sealed(text: bytes) -> bytes:
    return text + SEAL + str(zlib.crc32(text)).encode() + b"\n}"


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            value = zlib.crc32(block, value)
    return value
