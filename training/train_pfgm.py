"""Train a Poisson flow model on images, in the shape of diffusers' train_unconditional.py.

    accelerate launch training/train_pfgm.py --train_data_dir photos --resolution 32 --output_dir pfgm-photos

The output folder is a pipeline: PFGMPipeline.from_pretrained("pfgm-photos").
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration, set_seed
from arguments import parse_args
from diffusers import UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from diffusers_pfgm import (
    FieldObjective,
    Parameterization,
    PerturbationObjective,
    PFGMPipeline,
    PoissonFlowScheduler,
    fit_sigmas,
    recommend_hyperparameters,
)
from diffusers_pfgm.evaluation import image_grid
from diffusers_pfgm.losses import drop_labels
from diffusers_pfgm.plots import plot_sigma_density
from diffusers_pfgm.training.checkpoints import (
    checkpoint_step,
    find_checkpoint,
    keep_average_with_state,
    remove_checkpoints,
    save_checkpoint,
)
from diffusers_pfgm.training.image_data import ImageTensors, load_image_dataset
from diffusers_pfgm.training.image_labels import LabelledImages, read_class_labels
from diffusers_pfgm.training.network import check_output_dir, make_unet


def make_objective(
    args: argparse.Namespace, images: ImageTensors
) -> tuple[FieldObjective | PerturbationObjective, PoissonFlowScheduler]:
    """What the network learns, and the scheduler that follows it."""
    if args.objective == "field":
        dim = images.channels * args.resolution**2
        found = recommend_hyperparameters(images.mean_norm(), dim)
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


Batch = tuple[torch.Tensor, torch.Tensor]  # images and labels


def endless(loader: torch.utils.data.DataLoader[Batch]) -> Iterator[Batch]:
    while True:
        yield from loader


def save_samples(accelerator: Accelerator, pipeline: PFGMPipeline, args: argparse.Namespace, step: int) -> None:
    """A grid of samples from a fixed seed, its classes in turn, as a file and to the tracker."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(args.eval_batch_size) % len(pipeline.config.id2label) if args.class_conditional else None
    samples = pipeline(
        args.eval_batch_size, args.num_inference_steps, generator, output_type="pt", class_labels=labels
    ).images
    grid = image_grid(samples, scale=max(1, 64 // args.resolution))
    folder = Path(args.output_dir) / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    grid.save(folder / f"step-{step:06d}.png")
    for tracker in accelerator.trackers:
        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({"samples": np.asarray(grid.convert("RGB"))[None]}, step=step, **layout)


def fit_spacing(pipeline: PFGMPipeline, accelerator: Accelerator, args: argparse.Namespace) -> PoissonFlowScheduler:
    """The scheduler with steps where this network's field bends, and a picture of their density."""
    unet, scheduler, options = pipeline.unet, pipeline.scheduler, {}
    shape = (unet.config.in_channels, args.resolution, args.resolution)
    if args.class_conditional:
        options["class_labels"] = torch.arange(32, device=accelerator.device) % len(pipeline.config.id2label)
    try:
        fitted = fit_sigmas(unet, scheduler, shape, torch.Generator().manual_seed(0), 32, **options)
    except ValueError as error:  # a network that has learned nothing yet is saved all the same
        accelerator.print(f"The default spacing of steps is kept: {error}")
        return scheduler
    plot_sigma_density(fitted).savefig(Path(args.output_dir) / "sigma-density.png", dpi=110)
    return fitted


def main(args: argparse.Namespace) -> None:
    resume, output_dir = args.resume_from_checkpoint, Path(args.output_dir)
    check_output_dir(output_dir, args.overwrite_output_dir, resume)
    accelerator = Accelerator(
        # The loader's epochs mean nothing here, so their ends must not end an accumulation.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=args.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        mixed_precision=args.mixed_precision,
        log_with=None if args.logger == "none" else args.logger,
        project_config=ProjectConfiguration(args.output_dir, logging_dir=str(output_dir / args.logging_dir)),
    )
    if args.seed is not None:
        set_seed(args.seed, device_specific=True)

    # Data: one batch makes the field, its first part is perturbed
    dataset = load_image_dataset(args.dataset_name, args.dataset_config_name, args.train_data_dir, args.cache_dir)
    images = ImageTensors(
        dataset,
        args.resolution,
        args.image_column,
        args.image_mode,
        args.center_crop,
        args.random_flip,
        cache=args.dataloader_num_workers == 0,
    )
    labels, id2label = read_class_labels(dataset, args.label_column) if args.class_conditional else (None, None)
    batch_size = args.train_batch_size
    if args.objective == "field":
        batch_size = max(batch_size, args.field_batch_size)
    batch_size = min(batch_size, max(1, len(images) // accelerator.num_processes))
    loader = torch.utils.data.DataLoader(
        LabelledImages(images, labels),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=tuple,
        num_workers=args.dataloader_num_workers,
    )

    # Network and its average
    objective, scheduler = make_objective(args, images)
    out_channels = scheduler.parameterization.output_channels(images.channels)
    num_class_embeds = None if id2label is None else len(id2label) + (args.label_dropout > 0)
    unet = make_unet(args.resolution, images.channels, out_channels, args.model_config_name_or_path, num_class_embeds)
    ema = EMAModel(
        unet.parameters(),
        decay=args.ema_max_decay,
        use_ema_warmup=True,
        inv_gamma=args.ema_inv_gamma,
        power=args.ema_power,
        model_cls=UNet2DModel,
        model_config=unet.config,
    )
    ema.to(accelerator.device)

    # Optimisation
    optimizer = torch.optim.AdamW(
        unet.parameters(),
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        weight_decay=args.adam_weight_decay,
        eps=args.adam_epsilon,
    )
    images_per_step = args.train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    steps_per_epoch = math.ceil(len(images) / images_per_step)
    max_steps = args.max_train_steps or args.num_epochs * steps_per_epoch
    lr_scheduler = get_scheduler(  # accelerate steps it once for each process
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=args.lr_warmup_steps * accelerator.num_processes,
        num_training_steps=max_steps * accelerator.num_processes,
    )
    model, optimizer, loader, lr_scheduler = accelerator.prepare(unet, optimizer, loader, lr_scheduler)
    if len(loader) == 0:
        raise ValueError(f"{len(images)} images are too few for {accelerator.num_processes} processes.")

    # Where it left off
    keep_average_with_state(accelerator, ema)
    first_step = 0
    if resume is None:
        if accelerator.is_main_process:
            remove_checkpoints(output_dir)
    else:
        checkpoint = find_checkpoint(resume, output_dir)
        accelerator.load_state(str(checkpoint))
        first_step = checkpoint_step(checkpoint)
        accelerator.print(f"Resumed from {checkpoint}.")

    if accelerator.is_main_process:
        accelerator.init_trackers("train_pfgm")
    accelerator.print(
        f"{len(images):,} images of {images.channels} x {args.resolution} x {args.resolution}, "
        f"{unet.num_parameters():,} parameters, {max_steps:,} steps of {images_per_step} images"
    )
    if isinstance(objective, FieldObjective):
        found = objective.hyperparameters
        accelerator.print(
            f"From the data: M = {found.M}, z_max = {found.z_max:.5g}, upper_norm = {found.upper_norm:.5g}. "
            f"The field of a step is that of {batch_size:,} images."
        )

    model.train()
    batches = endless(loader)
    progress_bar = tqdm(
        total=max_steps,
        initial=first_step,
        desc="Steps",
        mininterval=1,
        disable=not accelerator.is_local_main_process,
    )
    for step in range(first_step + 1, max_steps + 1):
        started = time.perf_counter()
        for _ in range(args.gradient_accumulation_steps):
            charges, charge_labels = next(batches)
            clean = charges[: args.train_batch_size]
            options: dict[str, Any] = {}
            if id2label is not None:
                known = charge_labels[: args.train_batch_size]
                options["class_labels"] = drop_labels(known, args.label_dropout, null_label=len(id2label))
            with accelerator.accumulate(model):
                if isinstance(objective, FieldObjective):
                    if id2label is not None:
                        options["charge_labels"] = charge_labels
                    result = objective(model, clean, charges=charges, **options)
                else:
                    result = objective(model, clean, **options)
                accelerator.backward(result.loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()
        ema.step(unet.parameters())

        # Records
        progress_bar.update()
        if step % args.logging_steps == 0 or step == max_steps:
            logs = {"loss": result.loss.item(), "lr": lr_scheduler.get_last_lr()[0]}
            logs["images_per_second"] = images_per_step / (time.perf_counter() - started)
            progress_bar.set_postfix(logs)
            accelerator.log({**logs, **result.bands(), "ema_decay": ema.cur_decay_value}, step=step)
        if step % args.checkpointing_steps == 0:
            save_checkpoint(accelerator, output_dir, step, args.checkpoints_total_limit)
        saves_model = step % (args.save_model_epochs * steps_per_epoch) == 0 or step == max_steps
        saves_images = step % (args.save_images_epochs * steps_per_epoch) == 0 or step == max_steps
        if accelerator.is_main_process and (saves_model or saves_images):
            ema.store(unet.parameters())
            ema.copy_to(unet.parameters())
            pipeline = PFGMPipeline(unet.eval(), scheduler, id2label)
            pipeline.set_progress_bar_config(disable=True)
            if saves_images:
                save_samples(accelerator, pipeline, args, step)
            if step == max_steps:
                pipeline.scheduler = fit_spacing(pipeline, accelerator, args)
            if saves_model:
                pipeline.save_pretrained(output_dir)
            ema.restore(unet.parameters())
            unet.train()
    progress_bar.close()

    accelerator.end_training()
    accelerator.print(f'Saved to {output_dir}: PFGMPipeline.from_pretrained("{output_dir}")')


if __name__ == "__main__":
    main(parse_args(__doc__))
