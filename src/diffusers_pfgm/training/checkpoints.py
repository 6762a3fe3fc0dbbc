"""Checkpoints of a training run that are whole or not there.

A checkpoint is written into a hidden folder, closed by a list of its files with sizes and checksums, and renamed. So a
folder `checkpoint-<step>` is whole unless something damaged it later, which the list tells. It holds accelerate's state
(optimiser, schedule, loss scale, the random states of each process), the weights and their average as safetensors
folders, and the settings that a run must share to go on from it. Order and noise of the data follow from the step.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel

PREFIX = "checkpoint-"
CONTENTS = "contents.json"  # the list of files, written last
AVERAGE = "average.json"  # the average's numbers beside its weights
PARTIAL, REPLACED = ".partial", ".replaced"


def checkpoint_step(path: str | Path) -> int:
    """Number of optimiser steps that a checkpoint folder's name tells.

    Raises:
        ValueError: if its name is not `checkpoint-<number>`.
    """
    number = Path(path).name.removeprefix(PREFIX)
    if not number.isdigit():
        raise ValueError(f"`--resume_from_checkpoint` {str(path)!r} must be named {PREFIX}<number of steps>.")
    return int(number)


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """Checkpoint folders in `output_dir`, oldest first, damaged ones too."""
    found = [path for path in Path(output_dir).glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=checkpoint_step)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder; None if it is whole."""
    try:
        contents = json.loads((path / CONTENTS).read_text())
        for name, (size, checksum) in contents["files"].items():
            if (path / name).stat().st_size != size:
                return f"{name} has {(path / name).stat().st_size} bytes instead of {size}"
            if _checksum(path / name) != checksum:
                return f"{name} does not have the contents that were saved"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its {CONTENTS} cannot be read: {error}"
    return None


def find_checkpoint(name: str, output_dir: str | Path) -> Path:
    """The folder that `--resume_from_checkpoint` names: a path, or "latest", the newest whole one in `output_dir`.

    Damaged ones are passed over with a warning.

    Raises:
        ValueError: if there is none, or the one that was named is damaged.
    """
    if name != "latest":
        path = Path(name)
        if not path.is_dir():
            raise ValueError(f"`--resume_from_checkpoint` {name!r} is no folder. Use a path, or 'latest'.")
        checkpoint_step(path)
        wrong = damage(path)
        if wrong is not None:
            raise ValueError(
                f"`--resume_from_checkpoint` {name!r} is damaged: {wrong}. Use another, or 'latest' for the newest "
                "whole one."
            )
        return path
    for path in reversed(list_checkpoints(output_dir)):
        wrong = damage(path)
        if wrong is None:
            return path
        warnings.warn(f"{path} is passed over, for it is damaged: {wrong}.", stacklevel=2)
    raise ValueError(
        f"`--resume_from_checkpoint` 'latest': there is no {PREFIX}* folder that is whole in {str(output_dir)!r}. "
        "Leave it out to start anew."
    )


def read_settings(checkpoint: Path) -> dict[str, Any]:
    """The settings of the run that wrote a checkpoint."""
    settings: dict[str, Any] = json.loads((checkpoint / CONTENTS).read_text())["settings"]
    return settings


def sweep(output_dir: str | Path, everything: bool = False) -> None:
    """Remove half-written checkpoints, and put back one whose replacement was cut off.

    Args:
        output_dir: of the run.
        everything: also whole ones, lest an overwritten run's be taken for the new run's latest.
    """
    for path in Path(output_dir).glob(f".{PREFIX}*{REPLACED}"):
        target = path.with_name(path.name.removeprefix(".").removesuffix(REPLACED))
        if target.exists():
            shutil.rmtree(path)
        else:
            path.rename(target)
    for path in Path(output_dir).glob(f".{PREFIX}*{PARTIAL}"):
        shutil.rmtree(path)
    for path in list_checkpoints(output_dir) if everything else []:
        _discard(path)


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: str | Path,
    step: int,
    settings: Mapping[str, Any],
    total_limit: int | None = None,
) -> Path:
    """Write `checkpoint-<step>` and remove the oldest beyond `total_limit`. To be called by every process.

    Raises:
        OSError: if it cannot be written, a full disk for instance; older checkpoints are left as they are.
    """
    target = Path(output_dir) / f"{PREFIX}{step}"
    partial = target.with_name(f".{target.name}{PARTIAL}")
    try:
        accelerator.save_state(str(partial))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _close(partial, settings)
            _swap(partial, target)
    except Exception as error:  # torch, safetensors and accelerate each have their own for a full disk
        shutil.rmtree(partial, ignore_errors=True)
        last = [str(path) for path in list_checkpoints(output_dir)][-1:] or ["none yet"]
        free = shutil.disk_usage(output_dir).free / 1e6
        raise OSError(
            f"{target} could not be written, with {free:,.0f} MB free on its disk: {error}. The last good checkpoint, "
            f"{last[0]}, is untouched. Make room and go on by `--resume_from_checkpoint latest`."
        ) from error
    if accelerator.is_main_process and total_limit is not None:
        whole = [path for path in list_checkpoints(output_dir) if (path / CONTENTS).exists()]
        for old in whole[:-total_limit]:
            _discard(old)
    accelerator.wait_for_everyone()
    return target


def _close(folder: Path, settings: Mapping[str, Any]) -> None:
    """Put everything on the disk, the list of contents last."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            _flush(path)
            files[path.relative_to(folder).as_posix()] = [path.stat().st_size, _checksum(path)]
    (folder / CONTENTS).write_text(json.dumps({"settings": dict(settings), "files": files}, indent=1))
    _flush(folder / CONTENTS)


def _swap(partial: Path, target: Path) -> None:
    """Rename; one of that name, as a run that went on from an older checkpoint meets it, stays until then."""
    replaced = target.with_name(f".{target.name}{REPLACED}")
    if target.exists():
        target.rename(replaced)
    partial.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)


def _discard(checkpoint: Path) -> None:
    """Remove it under another name, so that no half of it is ever taken for a whole."""
    hidden = checkpoint.with_name(f".{checkpoint.name}{PARTIAL}")
    checkpoint.rename(hidden)
    shutil.rmtree(hidden)


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            value = zlib.crc32(block, value)
    return value


def keep_average_with_state(accelerator: Accelerator, ema: EMAModel) -> None:
    """Make accelerate's states hold the network as `unet` and its average as `unet_ema`, both in safetensors."""

    def save(models: list[torch.nn.Module], weights: list[dict[str, torch.Tensor]], folder: str) -> None:
        if accelerator.is_main_process:
            unet = accelerator.unwrap_model(models[0])
            unet.save_pretrained(Path(folder) / "unet")
            ema.store(unet.parameters())
            ema.copy_to(unet.parameters())
            unet.save_pretrained(Path(folder) / "unet_ema")
            ema.restore(unet.parameters())
            numbers = {name: value for name, value in ema.state_dict().items() if name != "shadow_params"}
            (Path(folder) / "unet_ema" / AVERAGE).write_text(json.dumps(numbers))
        weights.clear()  # what is left here accelerate would write again

    def load(models: list[torch.nn.Module], folder: str) -> None:
        saved, average = (UNet2DModel.from_pretrained(folder, subfolder=name) for name in ("unet", "unet_ema"))
        for model in models:  # none where DeepSpeed loads its own
            accelerator.unwrap_model(model).load_state_dict(saved.state_dict())
        models.clear()
        numbers = json.loads((Path(folder) / "unet_ema" / AVERAGE).read_text())
        ema.load_state_dict(numbers | {"shadow_params": [weight.detach() for weight in average.parameters()]})
        ema.to(accelerator.device)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)
