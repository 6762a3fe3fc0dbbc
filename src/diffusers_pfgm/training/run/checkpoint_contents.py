"""contents.json of a checkpoint: its step, the run's settings, and size and checksum of each file.

It is written last and ends with a checksum of itself, so that one changed byte anywhere in a checkpoint is detected.
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

CHECKPOINT_PREFIX = "checkpoint-"
CONTENTS = "contents.json"
EMA_STATE = "average.json"  # the state of the EMA, such as its step, beside the EMA weights in `unet_ema`
CHECKSUM_KEY = b',\n "checksum": '


def write_contents(folder: Path, step: int, settings: Mapping[str, Any]) -> None:
    """Flush every file of `folder` to disk, then write and flush contents.json."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            _flush(path)
            files[path.relative_to(folder).as_posix()] = [path.stat().st_size, _checksum(path)]
    contents = json.dumps({"step": step, "settings": dict(settings), "files": files}, indent=1)
    (folder / CONTENTS).write_bytes(_with_checksum(contents.removesuffix("\n}").encode()))
    _flush(folder / CONTENTS)


def find_corruption_cached(path: Path) -> str | None:
    """`find_corruption` with a cache: a checkpoint whose files have not changed since the last call is not read again.

    A training run checks all its checkpoints each time it writes another one.
    """
    stats = ((file, file.stat()) for file in sorted(path.rglob("*")) if file.is_file())
    return _find_corruption(path.resolve(), tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in stats))


@functools.lru_cache(maxsize=256)
def _find_corruption(path: Path, files: tuple[tuple[Path, int, int], ...]) -> str | None:
    return find_corruption(path)


def find_corruption(path: Path) -> str | None:
    """Return a phrase that says how a checkpoint is damaged; None if it is not.

    All files must have the recorded size and checksum, and all weights must be finite.
    """
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
    return None if weight is None else f"{weight} holds NaN or infinity, since its run diverged"


def checkpoint_step(path: str | Path) -> int:
    """The number of optimizer steps after which a checkpoint was written.

    It is read from the checkpoint's contents. Only if these cannot be read, the name of the folder is used.

    Raises:
        ValueError: if the contents cannot be read and the folder is not named `checkpoint-<number>`.
    """
    path = Path(path)
    try:
        contents = _read_contents(path)
        if "step" in contents:
            return int(contents["step"])
        return int(json.loads((path / "unet_ema" / EMA_STATE).read_text())["optimization_step"])  # version 0.1.0
    except (OSError, ValueError, KeyError, TypeError) as error:
        number = path.name.removeprefix(CHECKPOINT_PREFIX)
        if not number.isdecimal():
            raise ValueError(f"{path} is not a checkpoint: its {CONTENTS} cannot be read: {error}") from error
        return int(number)


def read_settings(checkpoint: Path) -> dict[str, Any]:
    """The settings of the run that wrote a checkpoint."""
    settings: dict[str, Any] = _read_contents(checkpoint)["settings"]
    return settings


def _read_contents(folder: Path) -> dict[str, Any]:
    raw = (folder / CONTENTS).read_bytes()
    contents: dict[str, Any] = json.loads(raw)
    if set(contents) == {"settings", "files"}:  # version 0.1.0 wrote no checksum of the contents
        return contents
    if raw != _with_checksum(raw.rpartition(CHECKSUM_KEY)[0]):
        raise ValueError("it does not have the contents that were saved")
    return contents


def _with_checksum(text: bytes) -> bytes:
    return text + CHECKSUM_KEY + str(zlib.crc32(text)).encode() + b"\n}"


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            value = zlib.crc32(block, value)
    return value
