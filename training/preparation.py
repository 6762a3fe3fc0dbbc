"""What train_pfgm.py needs before its loop: accelerate, the objective, a seed, the output folder."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration, broadcast_object_list

from diffusers_pfgm import (
    FieldObjective,
    Parameterization,
    PerturbationObjective,
    PoissonFlowScheduler,
    recommend_hyperparameters,
)
from diffusers_pfgm.training.checkpoints import sweep
from diffusers_pfgm.training.image_data import ImageTensors
from diffusers_pfgm.training.output_folder import check_output_dir, claim_output_dir
from diffusers_pfgm.training.streamed_images import StreamedImages

SIGMA_MAX = 80.0  # of the perturbation objective, as in EDM
SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "TP")


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
        found = recommend_hyperparameters(images.mean_norm(), images.channels * args.resolution**2)
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


def agree_on_seed(args: argparse.Namespace, saved: dict[str, Any]) -> int:
    """That of the run that goes on, else the option's, else a new one, the same on every process."""
    seed = [secrets.randbelow(2**31) if args.seed is None else args.seed]
    broadcast_object_list(seed)
    return saved.get("seed", seed[0])


@contextlib.contextmanager
def claimed(args: argparse.Namespace, accelerator: Accelerator) -> Iterator[None]:
    """The output folder, swept up and kept from other runs while this one lasts."""
    lock = None
    if accelerator.is_main_process:
        check_output_dir(args.output_dir, args.overwrite_output_dir, args.resume_from_checkpoint)
        lock = claim_output_dir(args.output_dir)
        sweep(args.output_dir, everything=args.resume_from_checkpoint is None)
    accelerator.wait_for_everyone()
    try:
        yield
    finally:
        if lock is not None:
            lock.release()
