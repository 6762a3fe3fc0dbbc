"""What train_pfgm.py needs before its loop: accelerate, the objective, a seed, the output folder."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration
from filelock import FileLock

from ...losses import FieldObjective, PerturbationObjective
from ...physics import Parameterization, PFGMHyperparameters, recommend_hyperparameters
from ...schedulers import PoissonFlowScheduler
from ..data.images import ImageTensors
from ..data.streams import StreamedImages
from .agreement import broadcast_from_main
from .checkpoints import LATEST, find_checkpoint, list_checkpoints, remove_incomplete_checkpoints
from .folders import set_aside
from .output_folder import check_output_dir, is_inside, lock_output_dir
from .run_files import files_after, files_of_a_run, is_run_without_checkpoint

SIGMA_MAX = 80.0  # of the perturbation objective, as in EDM
SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "TP")
Result = TypeVar("Result")


def make_accelerator(args: argparse.Namespace) -> Accelerator:
    # Without being told, accelerate takes processes on CPUs for as many runs.
    only_cpus = "WORLD_SIZE" in os.environ and not torch.accelerator.is_available()
    try:
        accelerator = Accelerator(
            cpu=only_cpus,
            # Batches come from a stream without end, which must not end an accumulation.
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=args.gradient_accumulation_steps, sync_with_dataloader=False
            ),
            mixed_precision=args.mixed_precision,
            log_with=None if args.logger == "none" else args.logger,
            project_config=ProjectConfiguration(
                args.output_dir, logging_dir=str(Path(args.output_dir) / args.logging_dir)
            ),
            step_scheduler_with_optimizer=False,  # one step of the schedule a step, on any number of processes
        )
    except (ValueError, ImportError) as error:
        if args.mixed_precision not in (None, "no") and "precision" in str(error):
            raise ValueError(
                f"`--mixed_precision {args.mixed_precision}` is not what this device can do: {error}. Use bf16, or no."
            ) from error
        raise
    if accelerator.distributed_type.value in SHARDING:
        raise ValueError(
            f"accelerate is configured for {accelerator.distributed_type.value}, which splits weights over devices, "
            "but their average is kept whole on each. Configure plain data parallelism (`--multi_gpu`): networks for "
            "images fit one device, the more so with `--gradient_checkpointing`."
        )
    return accelerator


def make_objective(
    args: argparse.Namespace, images: ImageTensors | StreamedImages
) -> tuple[FieldObjective | PerturbationObjective, PoissonFlowScheduler]:
    """What the network learns, and the scheduler that follows it."""
    if args.objective == "field":
        # As the main process computes it: another device may round to another M.
        mean_norm = broadcast_from_main(images.mean_norm())
        found = _hyperparameters(mean_norm, images.channels * args.resolution**2)
        scheduler = PoissonFlowScheduler(sigma_max=found.z_max, max_norm=found.upper_norm, gamma=args.gamma, M=found.M)
        return FieldObjective(found, args.gamma), scheduler
    aug_dim = None if math.isinf(args.aug_dim) else args.aug_dim
    objective = PerturbationObjective(Parameterization(args.prediction_type, sigma_data=args.sigma_data), aug_dim)
    scheduler = PoissonFlowScheduler(
        aug_dim=aug_dim,
        sigma_min=0.002,
        sigma_max=SIGMA_MAX,
        prediction_type=args.prediction_type,
        sigma_data=args.sigma_data,
        max_norm=objective.max_norm(SIGMA_MAX, images.channels * args.resolution**2),
    )
    return objective, scheduler


def _hyperparameters(mean_norm: float, dim: int) -> PFGMHyperparameters:
    try:
        return recommend_hyperparameters(mean_norm, dim)
    except ValueError as error:
        raise ValueError(
            f"The images are almost all of a middle gray: their mean norm around it is {mean_norm:.3g}, for which the "
            "paper's rule finds no perturbation. Check that they are the right ones and have 8 bits per channel, or "
            "train by `--objective perturbation`."
        ) from error


def agree_on_seed(args: argparse.Namespace, saved: dict[str, Any]) -> int:
    """That of the run that goes on, else the option's, else a new one, the same on every process."""
    seed = broadcast_from_main(secrets.randbelow(2**31) if args.seed is None else args.seed)
    return int(broadcast_from_main(saved.get("seed", seed)))


@contextlib.contextmanager
def locked_output_dir(args: argparse.Namespace, accelerator: Accelerator) -> Iterator[None]:
    """The output folder, swept up and kept from other runs while this one lasts."""

    def claim() -> None:
        resume_from, logging_dir = args.resume_from_checkpoint, args.logging_dir
        check_output_dir(args.output_dir, args.overwrite_output_dir, resume_from, logging_dir)
        locks.append(lock_output_dir(args.output_dir))
        remove_incomplete_checkpoints(args.output_dir)

    locks: list[FileLock] = []
    on_main_process(accelerator, claim)
    try:
        yield
    finally:
        for lock in locks:
            lock.release()


def find_resume_point(args: argparse.Namespace, accelerator: Accelerator) -> Path | None:
    """The checkpoint to go on from; None to start anew."""
    name, folder = args.resume_from_checkpoint, Path(args.output_dir)

    def find() -> Path | None:
        if name is None:
            return None
        may_start = args.overwrite_output_dir and not list_checkpoints(folder)
        if name == LATEST and (may_start or is_run_without_checkpoint(folder, args.logging_dir)):
            accelerator.print(f"There is no checkpoint in {folder} yet, so the run starts anew.")
            return None
        return find_checkpoint(name, folder)

    return on_main_process(accelerator, find)


def clear_output_dir(
    args: argparse.Namespace, accelerator: Accelerator, checkpoint: Path | None, first_step: int
) -> None:
    """Set aside what another run, or the abandoned part of this one, has left in the output folder."""
    folder = Path(args.output_dir)

    def clear() -> None:
        if checkpoint is not None and is_inside(args.resume_from_checkpoint, folder):
            found, what = files_after(folder, checkpoint, first_step), f"What is newer than step {first_step:,}"
        else:
            found, what = files_of_a_run(folder, args.logging_dir), "What an earlier run has left"
        aside = set_aside(folder, found)
        if aside is not None:
            names = ", ".join(path.relative_to(folder).as_posix() for path in found)
            accelerator.print(f"{what} is set aside in {aside}: {names}.")

    on_main_process(accelerator, clear)


def on_main_process(accelerator: Accelerator, decide: Callable[[], Result]) -> Result:
    """What a function returns on the main process, on every process.

    Raises:
        ValueError: on every process, if the function raises a `ValueError` or an `OSError`, so that none waits for it.
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
