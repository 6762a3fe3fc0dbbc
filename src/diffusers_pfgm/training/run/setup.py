"""The set-up of a training run: the accelerator, the seed, the resume point and the output folder."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration
from filelock import FileLock

from .broadcast import broadcast_from_main
from .checkpoints import LATEST, find_checkpoint, list_checkpoints, remove_incomplete_checkpoints
from .folders import set_aside
from .output_folder import check_output_dir, check_outside_data, is_inside, lock_output_dir
from .run_files import files_after, files_of_a_run, is_of_the_run, is_run_without_checkpoint

SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "TP")  # accelerate's backends that split the weights
Result = TypeVar("Result")


def uses_several_cpus() -> bool:
    """Whether processes on CPUs were launched. Without `cpu=True` accelerate would start them as independent runs."""
    return "WORLD_SIZE" in os.environ and not torch.accelerator.is_available()


def make_accelerator(args: argparse.Namespace) -> Accelerator:
    """Return accelerate's `Accelerator` for the options of train_pfgm.py.

    Raises:
        ValueError: if the device does not support `--mixed_precision`, or if accelerate is configured to split weights.
    """
    try:
        accelerator = Accelerator(
            cpu=uses_several_cpus(),
            # Batches are endless, and the end of a data loader must not end an accumulation.
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=args.gradient_accumulation_steps, sync_with_dataloader=False
            ),
            mixed_precision=args.mixed_precision,
            log_with=None if args.logger == "none" else args.logger,
            project_config=ProjectConfiguration(
                args.output_dir, logging_dir=str(Path(args.output_dir) / args.logging_dir)
            ),
            step_scheduler_with_optimizer=False,  # otherwise the schedule advances once a step for each process
        )
    except (ValueError, ImportError) as error:
        if args.mixed_precision not in (None, "no") and "precision" in str(error):
            raise ValueError(
                f"`--mixed_precision {args.mixed_precision}` is not supported by this device: {error}. Use bf16, or no."
            ) from error
        raise
    if accelerator.distributed_type.value in SHARDING:
        raise ValueError(
            f"accelerate is configured for {accelerator.distributed_type.value}, which splits weights over devices, "
            "but the EMA weights are kept whole on each device. Configure plain data parallelism (`--multi_gpu`): "
            "networks for images fit on one device, if necessary with `--gradient_checkpointing`."
        )
    return accelerator


def agree_on_seed(args: argparse.Namespace, saved: dict[str, Any]) -> int:
    """Return the seed of the run, the same on every process.

    It is the seed of the checkpoint, or else the value of `--seed`, or else a random one.

    Args:
        args: The options of train_pfgm.py.
        saved: The settings of the checkpoint that the run resumes from; empty for a new run.
    """
    seed = broadcast_from_main(secrets.randbelow(2**31) if args.seed is None else args.seed)
    return int(broadcast_from_main(saved.get("seed", seed)))


@contextlib.contextmanager
def locked_output_dir(args: argparse.Namespace, accelerator: Accelerator) -> Iterator[None]:
    """A context that checks the output folder, locks it against other runs and removes incomplete checkpoints.

    Raises:
        ValueError: if the folder holds another model, is in the folder of the data, is locked by another run, or cannot
            be written to.
    """

    def lock() -> None:
        check_outside_data(args.output_dir, train_data_dir=args.train_data_dir, dataset_name=args.dataset_name)
        check_output_dir(args.output_dir, args.overwrite_output_dir, args.resume_from_checkpoint, args.logging_dir)
        locks.append(lock_output_dir(args.output_dir))
        remove_incomplete_checkpoints(args.output_dir)

    locks: list[FileLock] = []  # on the main process
    on_main_process(accelerator, lock)
    try:
        yield
    finally:
        for file_lock in locks:
            file_lock.release()


def find_resume_point(args: argparse.Namespace, accelerator: Accelerator) -> Path | None:
    """Return the checkpoint to resume from; None to start a new run.

    Raises:
        ValueError: if `--resume_from_checkpoint` names no undamaged checkpoint. With "latest" a folder in which no
            checkpoint was written yet is not an error: the run then starts from the beginning.
    """
    name = args.resume_from_checkpoint
    folder = Path(args.output_dir)

    def find() -> Path | None:
        if name is None:
            return None
        may_start = args.overwrite_output_dir and not list_checkpoints(folder)
        if name == LATEST and (may_start or is_run_without_checkpoint(folder, args.logging_dir)):
            accelerator.print(f"There is no checkpoint in {folder} yet, so the run starts from the beginning.")
            return None
        return find_checkpoint(name, folder)

    return on_main_process(accelerator, find)


def clear_output_dir(
    args: argparse.Namespace, accelerator: Accelerator, checkpoint: Path | None, first_step: int
) -> None:
    """Move the files of another run, or those after `checkpoint` of this run, to a folder `set-aside-<number>`.

    Args:
        args: The options of train_pfgm.py.
        accelerator: accelerate's `Accelerator` of the run.
        checkpoint: The checkpoint that the run resumes from; None for a new run.
        first_step: The step of that checkpoint.
    """
    folder = Path(args.output_dir)

    def clear() -> None:
        if (
            checkpoint is not None
            and is_inside(args.resume_from_checkpoint, folder)
            and is_of_the_run(checkpoint, folder)
        ):
            paths = files_after(folder, first_step)
            description = f"Files after step {first_step:,}"
        else:
            paths = files_of_a_run(folder, args.logging_dir)
            description = "Files of an earlier run"
        aside = set_aside(folder, paths)
        if aside is not None:
            names = ", ".join(path.relative_to(folder).as_posix() for path in paths)
            accelerator.print(f"{description} were moved to {aside}: {names}.")

    on_main_process(accelerator, clear)


def on_main_process(accelerator: Accelerator, decide: Callable[[], Result]) -> Result:
    """Call a function on the main process and return its result on every process. Every process must call this.

    Raises:
        ValueError: if the function raises a `ValueError` or an `OSError`. It is raised on every process, so that none
            waits for another.
    """
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = decide()
        except (ValueError, OSError) as error:
            outcome[1] = str(error)
    outcome = broadcast_from_main(outcome)
    if outcome[1] is not None:
        raise ValueError(outcome[1])
    return outcome[0]
