"""Checkpoints of a training run that are whole or not there.

A checkpoint is written into a hidden folder, closed by a list of its files with sizes and checksums, and renamed. So a
folder `checkpoint-<step>` is whole unless something damaged it later, which the list tells. It holds accelerate's state
(optimiser, schedule, loss scale, the random states of each process), the weights and their average as safetensors
folders, and the settings that a run must share to go on from it. Order and noise of the data follow from the step.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel

from .checkpoint_contents import AVERAGE, PREFIX, checkpoint_step, find_corruption, find_new_corruption, write_contents
from .folders import set_aside
from .random_states import restore_random_states

LATEST = "latest"
PARTIAL = ".partial"


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """Everything in `output_dir` that is named `checkpoint-<number>`, damaged or not, by the step that it tells."""
    found = [path for path in Path(output_dir).glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]
    return sorted(found, key=checkpoint_step)


def newer_checkpoints(output_dir: str | Path, checkpoint: Path, step: int) -> list[Path]:
    """Those in `output_dir` of a later step than a checkpoint's, which a run that goes on from it abandons."""
    others = [path for path in list_checkpoints(output_dir) if path.resolve() != checkpoint.resolve()]
    return [path for path in others if checkpoint_step(path) > step]


def locate_checkpoint(name: str, output_dir: str | Path) -> Path:
    """The path that `--resume_from_checkpoint` names, there or not: a plain name is looked up in `output_dir` first."""
    inside = Path(output_dir) / name
    return inside if len(Path(name).parts) == 1 and inside.exists() else Path(name)


def find_checkpoint(name: str, output_dir: str | Path) -> Path:
    """The folder that `--resume_from_checkpoint` names.

    Args:
        name: the name of a checkpoint in `output_dir`, the path of one, or "latest" for the newest whole one in
            `output_dir`. Damaged ones are then passed over with a warning.
        output_dir: of the run.

    Raises:
        ValueError: if there is none, or the one that was named is damaged.
    """
    if name != LATEST:
        path = locate_checkpoint(name, output_dir)
        if not path.is_dir():
            found = [each.name for each in list_checkpoints(output_dir)]
            raise ValueError(
                f"`--resume_from_checkpoint` {name!r} is no folder. Use a path, the name of a checkpoint in "
                f"{str(output_dir)!r} ({', '.join(found) or 'there are none'}), or 'latest'."
            )
        wrong = find_corruption(path)
        if wrong is not None:
            raise ValueError(
                f"`--resume_from_checkpoint` {name!r} is damaged: {wrong}. Use another, or 'latest' for the newest "
                "whole one."
            )
        return path
    newest = newest_whole_checkpoint(output_dir)
    if newest is not None:
        return newest
    raise ValueError(
        f"`--resume_from_checkpoint` 'latest': there is no {PREFIX}* folder that is whole in {str(output_dir)!r}. "
        "To start anew, choose a new `--output_dir`, or leave it out and pass `--overwrite_output_dir`."
    )


def newest_whole_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest checkpoint in `output_dir` that is whole; None if there is none. It warns of damaged newer ones."""
    for path in reversed(list_checkpoints(output_dir)):
        wrong = find_new_corruption(path)
        if wrong is None:
            return path
        warnings.warn(f"{path} is passed over, for it is damaged: {wrong}.", stacklevel=3)
    return None


def remove_incomplete_checkpoints(output_dir: str | Path) -> None:
    """Remove checkpoints that a kill has left half-written or half-removed."""
    for path in Path(output_dir).glob(f".{PREFIX}*{PARTIAL}"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: str | Path,
    step: int,
    settings: Mapping[str, Any],
    total_limit: int | None = None,
    resumed_from: Path | None = None,
) -> Path:
    """Write `checkpoint-<step>` and remove the oldest beyond `total_limit`. To be called by every process.

    The main process returns later than the others: it lists, checks and removes files alone.

    Damaged checkpoints and links do not count and are left alone. Neither the checkpoint that was just written nor
    the one that the run went on from is removed.

    Args:
        accelerator: of the run.
        output_dir: of the run.
        step: number of optimiser steps made.
        settings: of the run.
        total_limit: number of checkpoints that are kept; all by default.
        resumed_from: the checkpoint that the run went on from.

    Raises:
        OSError: if it cannot be written, a full disk for instance; older checkpoints are left as they are.
    """
    output_dir = Path(output_dir)
    target = output_dir / f"{PREFIX}{step}"
    partial = target.with_name(f".{target.name}{PARTIAL}")
    try:
        accelerator.save_state(str(partial))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_contents(partial, step, settings)
            if target.exists() or target.is_symlink():
                accelerator.print(f"{target} was there already and is now in {set_aside(output_dir, [target])}.")
            partial.rename(target)
    except Exception as error:  # torch, safetensors and accelerate each have their own for a full disk
        shutil.rmtree(partial, ignore_errors=True)
        last = newest_whole_checkpoint(output_dir) or "none yet"
        free = shutil.disk_usage(output_dir).free / 1e6
        raise OSError(
            f"{target} could not be written, with {free:,.0f} MB free on its disk: {error}. The last good checkpoint, "
            f"{last}, is untouched. Make room and go on by `--resume_from_checkpoint latest`."
        ) from error
    if accelerator.is_main_process and total_limit is not None:
        _rotate(output_dir, total_limit, [target] if resumed_from is None else [target, resumed_from])
    return target


def _rotate(output_dir: Path, total_limit: int, kept: list[Path]) -> None:
    """Remove the oldest whole checkpoints beyond a number."""
    whole = []
    for path in list_checkpoints(output_dir):
        wrong = None if path.is_symlink() else find_new_corruption(path)
        if wrong is not None:
            warnings.warn(f"{path} does not count for the total limit, for it is damaged: {wrong}.", stacklevel=3)
        elif not path.is_symlink():
            whole.append(path)
    kept = [path.resolve() for path in kept]
    for path in whole[:-total_limit]:
        if path.resolve() not in kept:
            _discard(path)


def _discard(checkpoint: Path) -> None:
    """Remove it under another name, so that no half of it is ever taken for a whole."""
    hidden = checkpoint.with_name(f".{checkpoint.name}{PARTIAL}")
    try:
        checkpoint.rename(hidden)
        shutil.rmtree(hidden)
    except OSError as error:  # the new checkpoint is whole, so the run goes on
        warnings.warn(f"{checkpoint} is beyond the total limit but could not be removed: {error}.", stacklevel=4)


def register_ema_hooks(accelerator: Accelerator, ema: EMAModel) -> None:
    """Make accelerate's states hold the network as `unet` and its average as `unet_ema`, both in safetensors."""

    def save(models: list[torch.nn.Module], weights: list[dict[str, torch.Tensor]], folder: str) -> None:
        if accelerator.is_main_process:
            unet = accelerator.unwrap_model(models[0])
            unet.save_pretrained(Path(folder) / "unet")
            ema.store(unet.parameters())
            try:
                ema.copy_to(unet.parameters())
                unet.save_pretrained(Path(folder) / "unet_ema")
            finally:
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


def restore_checkpoint(accelerator: Accelerator, checkpoint: Path, seed: int) -> int:
    """Load every state of a checkpoint. To be called by every process, after `keep_average_with_state`.

    The number of processes and of accumulated parts may be another than that of the run that wrote it.

    Args:
        accelerator: of the run.
        checkpoint: the folder.
        seed: of the run, for the random states of processes that the other run did not have.

    Returns:
        The step after which it was written.
    """
    step = checkpoint_step(checkpoint)
    accelerator.load_state(str(checkpoint))
    # accelerate counts accumulated parts and restores that number, whose meaning depends on the accumulation. A
    # checkpoint is always at the end of a step, where none is accumulated.
    accelerator.step = 0
    restore_random_states(accelerator, checkpoint, seed, step)
    return step
