"""Train a Poisson flow model on images, in the shape of diffusers' train_unconditional.py.

    accelerate launch training/train_pfgm.py --train_data_dir photos --resolution 32 --output_dir pfgm-photos

The output folder is a pipeline: PFGMPipeline.from_pretrained("pfgm-photos"). See README.md beside this file.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration, broadcast_object_list, set_seed
from arguments import parse_args
from diffusers import UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from tqdm.auto import tqdm
from training_data import TrainingData, load_training_data

from diffusers_pfgm import (
    FieldObjective,
    LossOutput,
    Parameterization,
    PerturbationObjective,
    PFGMPipeline,
    PoissonFlowScheduler,
    fit_sigmas,
    recommend_hyperparameters,
)
from diffusers_pfgm.losses import drop_labels
from diffusers_pfgm.plots import plot_sigma_density
from diffusers_pfgm.training.checkpoints import (
    checkpoint_step,
    find_checkpoint,
    keep_average_with_state,
    read_settings,
    save_checkpoint,
    sweep,
)
from diffusers_pfgm.training.field_batch import FieldWindow, Step
from diffusers_pfgm.training.network import make_unet
from diffusers_pfgm.training.output_folder import check_output_dir, claim_output_dir
from diffusers_pfgm.training.settings import check_settings, run_settings
from diffusers_pfgm.training.stopping import StopRequest
from diffusers_pfgm.training.stream import BatchPlan, position_generators


def make_accelerator(args: argparse.Namespace) -> Accelerator:
    try:
        return Accelerator(
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


def make_objective(
    args: argparse.Namespace, mean_norm: float, data_dim: int
) -> tuple[FieldObjective | PerturbationObjective, PoissonFlowScheduler]:
    """What the network learns, and the scheduler that follows it."""
    if args.objective == "field":
        found = recommend_hyperparameters(mean_norm, data_dim)
        scheduler = PoissonFlowScheduler(sigma_max=found.z_max, max_norm=found.upper_norm, gamma=args.gamma, M=found.M)
        return FieldObjective(found, args.gamma), scheduler
    aug_dim = None if math.isinf(args.aug_dim) else args.aug_dim
    form = Parameterization(args.prediction_type, sigma_data=args.sigma_data)
    scheduler = PoissonFlowScheduler(
        aug_dim=aug_dim,
        sigma_min=0.002,
        sigma_max=80.0,
        prediction_type=args.prediction_type,
        sigma_data=args.sigma_data,
    )
    return PerturbationObjective(form, aug_dim), scheduler


def agree_on_seed(args: argparse.Namespace, saved: dict[str, Any]) -> int:
    """The option's, else that of the run that goes on, else a new one, the same on every process."""
    seed = [secrets.randbelow(2**31) if args.seed is None else args.seed]
    broadcast_object_list(seed)
    return saved["seed"] if saved and args.seed is None else seed[0]


def main(args: argparse.Namespace) -> None:
    # Where to
    accelerator = make_accelerator(args)
    resume, output_dir = args.resume_from_checkpoint, Path(args.output_dir)
    if accelerator.is_main_process:
        check_output_dir(output_dir, args.overwrite_output_dir, resume)
        lock = claim_output_dir(output_dir)
        sweep(output_dir, everything=resume is None)
    accelerator.wait_for_everyone()
    checkpoint = None if resume is None else find_checkpoint(resume, output_dir)
    saved = {} if checkpoint is None else read_settings(checkpoint)
    seed = agree_on_seed(args, saved)
    set_seed(seed, device_specific=True)

    # Data
    plan = BatchPlan(
        args.train_batch_size, args.gradient_accumulation_steps, accelerator.num_processes, accelerator.process_index
    )
    data = TrainingData(args, seed)
    objective, scheduler = make_objective(args, data.mean_norm, data.channels * args.resolution**2)
    charges = choose_charges...
