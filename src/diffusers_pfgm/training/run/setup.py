"""The set-up of a training run: the accelerator, the objective, the seed, the resume point and the output folder."""

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
from ...physics import PFGMHyperparameters, recommend_hyperparameters
from ...schedulers import PoissonFlowScheduler
from ..data.images import ImageTensors
from ..data.streams import StreamedImages
from .agreement import broadcast_from_main
from .arguments import EDM_SIGMA_DATA
from .checkpoints import LATEST, find_checkpoint, list_checkpoints, remove_incomplete_checkpoints
from .folders import set_aside
from .output_folder import check_output_dir, is_inside, lock_output_dir
from .run_files import files_after, files_of_a_run, is_run_without_checkpoint

EDM_SIGMA_MIN, EDM_SIGMA_MAX = 0.002, 80.0  # of EDM (arXiv 2206.00364, table 1), for its sigma_data of 0.5
EDM_P_MEAN, EDM_P_STD = -1.2, 1.2
# With the Student-t preconditioning σ is measured in standard deviations of the data. These were the best of a sweep on
# MNIST, networks of 0.27 M parameters and 1,500 steps of 64 images.
P_MEAN, P_STD = 0.2, 1.0
LEAST_STD = 0.01  # data without spread, such as one black image, are treated as data with this standard deviation
SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "TP")  # accelerate's backends that split the weights
Result = TypeVar("Result")


def make_accelerator(args: argparse.Namespace) -> Accelerator:
    """Return accelerate's `Accelerator` for the options of train_pfgm.py.

    Raises:
        ValueError: if the device does not support `--mixed_precision`, or if accelerate is configured to split weights.
    """
    # Without `cpu=True` accelerate would start several processes on CPUs as independent runs.
    only_cpus = "WORLD_SIZE" in os.environ and not torch.accelerator.is_available()
    try:
        accelerator = Accelerator(
            cpu=only_cpus,
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


def make_objective(
    args: argparse.Namespace, images: ImageTensors | StreamedImages
) -> tuple[FieldObjective | PerturbationObjective, PoissonFlowScheduler]:
    """Return the objective of the run and the scheduler for sampling from its network.

    Args:
        args: The options of train_pfgm.py.
        images: The training images. The field objective takes its hyperparameters from their mean norm.

    Raises:
        ValueError: if the field objective has no hyperparameters for the mean norm, since the images are almost gray.
    """
    if args.objective == "field":
        # The main process's value is used on all processes: another device may round it to another M.
        mean_norm = broadcast_from_main(images.statistics()).mean_norm
        values = _hyperparameters(mean_norm, images.channels * args.resolution**2)
        scheduler = PoissonFlowScheduler(
            sigma_max=values.z_max,
            max_norm=values.upper_norm,
            gamma=args.gamma,
            M=values.M,
            sigma_data=args.sigma_data,
        )
        return FieldObjective(values, args.gamma, args.sigma_data), scheduler
    aug_dim = None if math.isinf(args.aug_dim) else args.aug_dim
    options: dict[str, Any] = {"aug_dim": aug_dim, "prediction_type": args.prediction_type}
    p_mean, p_std = EDM_P_MEAN, EDM_P_STD
    if aug_dim is None or args.preconditioning == "edm":
        options |= {"sigma_data": args.sigma_data, "sigma_min": EDM_SIGMA_MIN, "sigma_max": EDM_SIGMA_MAX}
    else:
        statistics = broadcast_from_main(images.statistics())
        std = args.sigma_data or max(_rounded(statistics.std), LEAST_STD)
        p_mean, p_std = math.log(std) + P_MEAN, P_STD
        options |= {"sigma_data": std, "data_mean": _rounded(statistics.mean)}
        options |= {"mean_square_std": _rounded(statistics.mean_square_std)}
        options |= {
            name: _rounded(value * std / EDM_SIGMA_DATA)
            for name, value in (("sigma_min", EDM_SIGMA_MIN), ("sigma_max", EDM_SIGMA_MAX))
        }
    p_mean = p_mean if args.p_mean is None else args.p_mean
    p_std = p_std if args.p_std is None else args.p_std
    parameterization = PoissonFlowScheduler(**options).parameterization
    objective = PerturbationObjective(parameterization, aug_dim, p_mean, p_std)
    limit = objective.max_norm(options["sigma_max"], images.channels * args.resolution**2)
    return objective, PoissonFlowScheduler(**options, max_norm=limit)


def describe_hyperparameters(objective: FieldObjective | PerturbationObjective, scheduler: PoissonFlowScheduler) -> str:
    """Return a line with the hyperparameters that a run has found in its data."""
    if isinstance(objective, FieldObjective):
        values = objective.hyperparameters
        return f"From the data: M = {values.M}, z_max = {values.z_max:.5g}, upper_norm = {values.upper_norm:.5g}."
    config = scheduler.config
    levels = (
        f"sigma from {config.sigma_max:g} to {config.sigma_min:g}, in training exp(N({objective.p_mean:.3g}, "
        f"{objective.p_std:.3g}^2))"
    )
    if objective.parameterization.noise_estimate is None:
        return f"EDM's preconditioning: sigma_data = {config.sigma_data:g}, {levels}."
    return (
        f"From the data: mean = {config.data_mean:g}, sigma_data = {config.sigma_data:g}, mean_square_std = "
        f"{config.mean_square_std:g}, {levels}."
    )


def _rounded(value: float) -> float:
    """Three digits of a statistic, so that machines which differ in the order of their sums find the same."""
    return float(f"{value:.3g}")


def _hyperparameters(mean_norm: float, dim: int) -> PFGMHyperparameters:
    try:
        return recommend_hyperparameters(mean_norm, dim)
    except ValueError as error:
        raise ValueError(
            f"The images are almost uniformly medium gray: their mean norm is {mean_norm:.3g}, which is too small for "
            "the paper's rule for M and z_max. Check that these are the right images and that they have 8 bits per "
            "channel, or train with `--objective perturbation`."
        ) from error


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
        ValueError: if the folder holds another model, is locked by another run, or cannot be written to.
    """

    def lock() -> None:
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
        if checkpoint is not None and is_inside(args.resume_from_checkpoint, folder):
            paths = files_after(folder, checkpoint, first_step)
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
