"""Checkpoints of a training run, written atomically.

A checkpoint is written into a hidden folder, completed by contents.json with sizes and checksums of its files, and
renamed to `checkpoint-<step>`. A folder of this name is therefore complete; later damage is detected by its checksums.
It holds accelerate's state (optimizer, learning-rate schedule, loss scale, the random states of each process), the
weights and the EMA weights as safetensors, and the settings of the run. Order and noise of the data follow from the
step: resuming needs only the step count.
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

from .checkpoint_contents import (
    CHECKPOINT_PREFIX,
    EMA_STATE,
    checkpoint_step,
    find_corruption,
    find_corruption_cached,
    write_contents,
)
from .folders import set_aside
from .random_states import restore_random_states

LATEST = "latest"
PARTIAL = ".partial"
NETWORKS = ("unet", "critic")  # folders of the networks in the order in which accelerate has prepared them


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """Return everything in `output_dir` that is named `checkpoint-<number>`, damaged or not, sorted by step."""
    paths = Path(output_dir).glob(f"{CHECKPOINT_PREFIX}*")
    return sorted(
        (path for path in paths if path.name.removeprefix(CHECKPOINT_PREFIX).isdecimal()), key=checkpoint_step
    )


def locate_checkpoint(name: str, output_dir: str | Path) -> Path:
    """Return the path that `--resume_from_checkpoint` names, whether it exists or not.

    A name without a folder is looked up in `output_dir` first.
    """
    inside = Path(output_dir) / name
    return inside if len(Path(name).parts) == 1 and inside.exists() else Path(name)


def find_checkpoint(name: str, output_dir: str | Path) -> Path:
    """Return the folder that `--resume_from_checkpoint` names.

    Args:
        name: The name of a checkpoint in `output_dir`, the path of a checkpoint, or "latest" for the newest undamaged
            one in `output_dir`. With "latest" a warning lists damaged ones that are skipped.
        output_dir: The output folder of the run.

    Raises:
        ValueError: if there is no such checkpoint, or the named one is damaged.
    """
    if name != LATEST:
        path = locate_checkpoint(name, output_dir)
        if not path.is_dir():
            names = [checkpoint.name for checkpoint in list_checkpoints(output_dir)]
            raise ValueError(
                f"`--resume_from_checkpoint` {name!r} is not a folder. Use a path, the name of a checkpoint in "
                f"{str(output_dir)!r} ({', '.join(names) or 'there are none'}), or 'latest'."
            )
        damage = find_corruption(path)
        if damage is not None:
            raise ValueError(
                f"`--resume_from_checkpoint` {name!r} is damaged: {damage}. Use another checkpoint, or 'latest' for "
                "the newest undamaged one."
            )
        return path
    newest = newest_whole_checkpoint(output_dir)
    if newest is not None:
        return newest
    raise ValueError(
        f"`--resume_from_checkpoint` 'latest': there is no undamaged {CHECKPOINT_PREFIX}* folder in "
        f"{str(output_dir)!r}. To start a new run, choose a new `--output_dir`, or pass `--overwrite_output_dir` "
        "without `--resume_from_checkpoint`."
    )


def newest_whole_checkpoint(output_dir: str | Path) -> Path | None:
    """Return the newest undamaged checkpoint in `output_dir`; None if there is none. Warn about damaged newer ones."""
    for path in reversed(list_checkpoints(output_dir)):
        damage = find_corruption_cached(path)
        if damage is None:
            return path
        warnings.warn(f"{path} is skipped because it is damaged: {damage}.", stacklevel=3)
    return None


def remove_incomplete_checkpoints(output_dir: str | Path) -> None:
    """Remove hidden folders of checkpoints that a killed run has only partly written or partly removed."""
    for path in Path(output_dir).glob(f".{CHECKPOINT_PREFIX}*{PARTIAL}"):
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
    """Write `checkpoint-<step>` and remove the oldest checkpoints beyond `total_limit`. Every process must call this.

    The main process returns later than the others, since it alone lists, checks and removes files.

    Damaged checkpoints and links are not counted and not removed. Neither the new checkpoint nor the one that the run
    resumed from is removed.

    Args:
        accelerator: accelerate's `Accelerator` of the run.
        output_dir: The output folder of the run.
        step: Number of optimizer steps done.
        settings: The settings of the run (`run_settings`).
        total_limit: Number of checkpoints to keep; all by default.
        resumed_from: The checkpoint that the run resumed from, if any.

    Returns:
        The folder of the checkpoint.

    Raises:
        OSError: if the checkpoint cannot be written, for example because the disk is full. Older checkpoints are not
            changed.
    """
    output_dir = Path(output_dir)
    target = output_dir / f"{CHECKPOINT_PREFIX}{step}"
    partial = target.with_name(f".{target.name}{PARTIAL}")
    try:
        accelerator.save_state(str(partial))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_contents(partial, step, settings)
            if target.exists() or target.is_symlink():
                accelerator.print(f"{target} existed already and was moved to {set_aside(output_dir, [target])}.")
            partial.rename(target)
    except Exception as error:  # torch, safetensors and accelerate each raise their own error for a full disk
        shutil.rmtree(partial, ignore_errors=True)
        last = newest_whole_checkpoint(output_dir) or "none yet"
        free = shutil.disk_usage(output_dir).free / 1e6
        raise OSError(
            f"{target} could not be written, with {free:,.0f} MB free on its disk: {error}. The last good checkpoint, "
            f"{last}, is unchanged. Free some space and resume by `--resume_from_checkpoint latest`."
        ) from error
    if accelerator.is_main_process and total_limit is not None:
        _rotate(output_dir, total_limit, [target] if resumed_from is None else [target, resumed_from])
    return target


def _rotate(output_dir: Path, total_limit: int, kept: list[Path]) -> None:
    """Remove the oldest undamaged checkpoints beyond `total_limit`, except those in `kept`."""
    whole = []
    for path in list_checkpoints(output_dir):
        damage = None if path.is_symlink() else find_corruption_cached(path)
        if damage is not None:
            warnings.warn(
                f"{path} is not counted by `--checkpoints_total_limit` because it is damaged: {damage}.", stacklevel=3
            )
        elif not path.is_symlink():
            whole.append(path)
    kept = [path.resolve() for path in kept]
    for path in whole[:-total_limit]:
        if path.resolve() not in kept:
            _discard(path)


def _discard(checkpoint: Path) -> None:
    """Rename a checkpoint and remove it, so that a partly removed one is never mistaken for a whole one."""
    hidden = checkpoint.with_name(f".{checkpoint.name}{PARTIAL}")
    try:
        checkpoint.rename(hidden)
        shutil.rmtree(hidden)
    except OSError as error:  # the new checkpoint is whole, so the run continues
        warnings.warn(
            f"{checkpoint} is beyond `--checkpoints_total_limit` but could not be removed: {error}.", stacklevel=4
        )


def register_ema_hooks(accelerator: Accelerator, ema: EMAModel) -> None:
    """Make accelerate save and load the network as `unet` and its EMA weights as `unet_ema`, both as safetensors.

    If a second network was prepared after the first, it is the `critic` of distribution matching.

    Args:
        accelerator: accelerate's `Accelerator` of the run.
        ema: The EMA weights of the network.
    """

    def save(models: list[torch.nn.Module], weights: list[dict[str, torch.Tensor]], folder: str) -> None:
        if accelerator.is_main_process:
            unet = accelerator.unwrap_model(models[0])
            for name, model in zip(NETWORKS, models, strict=False):
                accelerator.unwrap_model(model).save_pretrained(Path(folder) / name)
            ema.store(unet.parameters())
            try:
                ema.copy_to(unet.parameters())
                unet.save_pretrained(Path(folder) / "unet_ema")
            finally:
                ema.restore(unet.parameters())
            ema_state = {name: value for name, value in ema.state_dict().items() if name != "shadow_params"}
            (Path(folder) / "unet_ema" / EMA_STATE).write_text(json.dumps(ema_state))
        weights.clear()  # accelerate would write the weights in this list again

    def load(models: list[torch.nn.Module], folder: str) -> None:
        for name, model in zip(NETWORKS, models, strict=False):  # no models if DeepSpeed loads the weights itself
            saved = UNet2DModel.from_pretrained(folder, subfolder=name)
            accelerator.unwrap_model(model).load_state_dict(saved.state_dict())
        models.clear()
        unet_ema = UNet2DModel.from_pretrained(folder, subfolder="unet_ema")
        ema_state = json.loads((Path(folder) / "unet_ema" / EMA_STATE).read_text())
        ema.load_state_dict(ema_state | {"shadow_params": [weight.detach() for weight in unet_ema.parameters()]})
        ema.to(accelerator.device)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def restore_checkpoint(accelerator: Accelerator, checkpoint: Path, seed: int) -> int:
    """Load a checkpoint. Every process must call this, after `register_ema_hooks`.

    The numbers of processes and of micro-batches may differ from those of the run that wrote it.

    Args:
        accelerator: accelerate's `Accelerator` of the run.
        checkpoint: The folder of the checkpoint.
        seed: The seed of the run, which sets the random states of processes that the checkpoint does not have.

    Returns:
        The step after which the checkpoint was written.
    """
    step = checkpoint_step(checkpoint)
    accelerator.load_state(str(checkpoint))
    # accelerate counts the micro-batches of a step and restores this count, but a step may now have another number of
    # them. A checkpoint is written at the end of a step, where the count is zero.
    accelerator.step = 0
    restore_random_states(accelerator, checkpoint, seed, step)
    return step
