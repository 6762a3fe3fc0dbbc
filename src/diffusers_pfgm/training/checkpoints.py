"""Checkpoints of a training run: accelerate's state, with the weights and their average as safetensors folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel

PREFIX = "checkpoint-"


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """Checkpoint folders in `output_dir`, oldest first."""
    found = [path for path in Path(output_dir).glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=checkpoint_step)


def checkpoint_step(path: str | Path) -> int:
    """Number of optimiser steps that a checkpoint folder's name tells.

    Raises:
        ValueError: if its name is not `checkpoint-<number>`.
    """
    number = Path(path).name.removeprefix(PREFIX)
    if not number.isdigit():
        raise ValueError(f"`--resume_from_checkpoint` {str(path)!r} must be named {PREFIX}<number of steps>.")
    return int(number)


def find_checkpoint(name: str, output_dir: str | Path) -> Path:
    """The folder that `--resume_from_checkpoint` names: a path, or "latest" in `output_dir`.

    Raises:
        ValueError: if there is none.
    """
    if name != "latest":
        path = Path(name)
        if not path.is_dir():
            raise ValueError(f"`--resume_from_checkpoint` {name!r} is no folder. Use a path, or 'latest'.")
        return path
    found = list_checkpoints(output_dir)
    if not found:
        raise ValueError(f"`--resume_from_checkpoint` 'latest': there is no {PREFIX}* folder in {str(output_dir)!r}.")
    return found[-1]


def remove_checkpoints(output_dir: str | Path) -> None:
    """Remove what an overwritten run has left, lest it be taken for the new run's latest."""
    for old in list_checkpoints(output_dir):
        shutil.rmtree(old)


def save_checkpoint(accelerator: Accelerator, output_dir: str | Path, step: int, total_limit: int | None) -> None:
    """Write `checkpoint-<step>` and remove the oldest beyond `total_limit`. To be called by every process."""
    accelerator.save_state(str(Path(output_dir) / f"{PREFIX}{step}"))
    if accelerator.is_main_process and total_limit is not None:
        for old in list_checkpoints(output_dir)[:-total_limit]:
            shutil.rmtree(old)


def keep_average_with_state(accelerator: Accelerator, ema: EMAModel) -> None:
    """Make accelerate's states hold the network as `unet` and its average as `unet_ema`, both in safetensors."""

    def save(models: list[torch.nn.Module], weights: list[dict[str, torch.Tensor]], folder: str) -> None:
        if accelerator.is_main_process:
            accelerator.unwrap_model(models[0]).save_pretrained(Path(folder) / "unet")
            with torch.random.fork_rng(devices=[]):  # it makes a network of random weights first
                ema.save_pretrained(str(Path(folder) / "unet_ema"))
        weights.clear()  # what is left here accelerate would write again

    def load(models: list[torch.nn.Module], folder: str) -> None:
        saved = UNet2DModel.from_pretrained(folder, subfolder="unet")
        accelerator.unwrap_model(models.pop()).load_state_dict(saved.state_dict())
        ema.load_state_dict(EMAModel.from_pretrained(str(Path(folder) / "unet_ema"), UNet2DModel).state_dict())
        ema.to(accelerator.device)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)
