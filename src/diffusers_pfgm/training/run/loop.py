"""The training loop of train_pfgm.py."""

from __future__ import annotations

import argparse
import functools
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from ...hub.publishing import check_hub
from ...losses.field import FieldObjective
from ...losses.loss_output import drop_labels
from ...models.default_unet import make_unet
from ..data.field_batches import FieldWindow
from ..data.fingerprint import data_settings
from ..data.order import BatchPlan, position_generators
from ..data.training_data import TrainingData
from .checkpoint_contents import checkpoint_step, read_settings
from .checkpoints import register_ema_hooks, restore_checkpoint, save_checkpoint
from .divergence import DivergenceGuard
from .long_barrier import LongBarrier
from .outputs import Outputs, due
from .records import Meter
from .settings import check_settings, check_steps, run_settings
from .setup import (
    agree_on_seed,
    clear_output_dir,
    find_resume_point,
    locked_output_dir,
    make_accelerator,
    make_objective,
    on_main_process,
)
from .side_output import side_output
from .stopping import StopRequest


def main(args: argparse.Namespace) -> None:
    accelerator = make_accelerator(args)
    with locked_output_dir(args, accelerator):
        train(args, accelerator)


def train(args: argparse.Namespace, accelerator: Accelerator) -> None:
    output_dir, repo_id = Path(args.output_dir), None
    long_barrier = LongBarrier(accelerator)
    if args.push_to_hub:
        hub = args.hub_model_id, output_dir, args.hub_private_repo
        repo_id = on_main_process(accelerator, lambda: check_hub(*hub))
    checkpoint = find_resume_point(args, accelerator)
    saved = {} if checkpoint is None else read_settings(checkpoint)
    seed = agree_on_seed(args, saved)
    set_seed(seed, device_specific=True)

    # Data
    plan = BatchPlan(
        args.train_batch_size, args.gradient_accumulation_steps, accelerator.num_processes, accelerator.process_index
    )
    with long_barrier:
        data = TrainingData(args, seed, accelerator)  # datasets lets one process prepare it, while the others wait
    objective, scheduler = make_objective(args, data.images)
    field_of, all_charges = None, None
    if args.objective == "field":
        field_of, all_charges = data.charges(saved.get("charges", args.charges))

    if isinstance(objective, FieldObjective):
        h = objective.hyperparameters
        accelerator.print(f"From the data: M = {h.M}, z_max = {h.z_max:.5g}, upper_norm = {h.upper_norm:.5g}.")

    # Network and its average
    channels = objective.parameterization.output_channels(data.images.channels)
    num_class_embeds = None if data.id2label is None else len(data.id2label) + (args.label_dropout > 0)
    unet = make_unet(args.resolution, data.images.channels, channels, args.model_config_name_or_path, num_class_embeds)
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    ema = EMAModel(
        unet.parameters(),
        decay=args.ema_max_decay,
        use_ema_warmup=True,
        inv_gamma=args.ema_inv_gamma,
        power=args.ema_power,
        foreach=True,
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
    # A stream does not tell its length, so its epochs are counted as long as the way between two checkpoints.
    steps_per_epoch = math.ceil(data.count / plan.images_per_step) or args.checkpointing_steps
    max_steps = args.max_train_steps or args.num_epochs * steps_per_epoch
    lr_scheduler = get_scheduler(
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=args.lr_warmup_steps,
        num_training_steps=max(max_steps, args.lr_warmup_steps + 1),  # no division by 0 where all is warm-up
    )
    if args.lr_scheduler != "constant" and args.lr_warmup_steps >= max_steps:
        accelerator.print(f"The learning rate only rises: --lr_warmup_steps {args.lr_warmup_steps:,} of {max_steps:,}.")
    model, optimizer, lr_scheduler = accelerator.prepare(unet, optimizer, lr_scheduler)

    # Where it left off
    settings = run_settings(
        vars(args) | {"charges": field_of},
        seed=seed,
        images_per_step=plan.images_per_step,
        processes_of_a_field=plan.processes if field_of == "local" else 1,
        images=data.count,
        **data_settings(data.images, data.labels, data.id2label, scheduler),
        mixed_precision=accelerator.mixed_precision,
        **{f"unet.{name}": value for name, value in unet.config.items() if not name.startswith("_")},
    )
    register_ema_hooks(accelerator, ema)
    first_step = 0
    if checkpoint is not None:
        check_settings(saved, settings)
        check_steps(checkpoint_step(checkpoint), max_steps)
        first_step = restore_checkpoint(accelerator, checkpoint, seed)
        accelerator.print(f"Resumed from {checkpoint} after step {first_step:,}.")
    clear_output_dir(args, accelerator, checkpoint, first_step)
    parameters, images = unet.num_parameters(), f"{data.count:,} images" if data.count else "A stream"
    accelerator.print(
        f"{images} of {data.images.channels} x {args.resolution} x {args.resolution}, {parameters:,} parameters, "
        f"{max_steps:,} steps of {plan.images_per_step} images"
    )

    # Training
    outputs = None
    with long_barrier:
        if accelerator.is_main_process:
            accelerator.init_trackers("train_pfgm")
            outputs = Outputs(args, accelerator, unet, ema, scheduler, data, settings, repo_id)
            outputs.note("start", first_step, settings=settings, max_steps=max_steps, parameters=parameters)
    calls_per_step = args.gradient_accumulation_steps * accelerator.num_processes
    meter = Meter(max_steps, plan.images_per_step, calls_per_step, accelerator.device, first_step)
    guard = DivergenceGuard(accelerator, output_dir, None if outputs is None else outputs.note)
    stop = StopRequest(accelerator)
    batches = data.batches(plan, first_step, stop.agreed)
    size = args.field_batch_size if field_of in ("local", "gathered") else 0
    gathering = accelerator if field_of == "gathered" else None
    window = FieldWindow(batches, plan, size, gathering, accelerator.device, lambda: data.stream_length, stop.agreed)
    progress_bar = tqdm(
        total=max_steps,
        initial=first_step,
        desc="Steps",
        mininterval=1,
        disable=not accelerator.is_local_main_process,
    )
    model.train()
    step = first_step
    with stop, progress_bar:
        for step, drawn in zip(range(first_step + 1, max_steps + 1), window, strict=False):
            for part, (clean, labels) in enumerate(drawn.parts):
                # Numbers that belong to the images, not to the process that happens to have them
                generators = position_generators(seed, plan.first(step - 1, part), len(clean))
                options: dict[str, Any] = {}
                if data.id2label is not None:
                    options["class_labels"] = drop_labels(labels, args.label_dropout, len(data.id2label), generators)
                if field_of is not None:
                    options["charges"] = drawn.charges if all_charges is None else all_charges
                    if data.id2label is not None:
                        options["charge_labels"] = drawn.charge_labels
                with accelerator.accumulate(model):
                    result = objective(model, clean, generator=generators, **options)
                    accelerator.backward(result.loss)
                    guard.note(result.loss)
                    norm = None
                    if accelerator.sync_gradients:
                        norm = accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                        guard.check_gradients(step, norm)
                    optimizer.step()
                    optimizer.zero_grad()
                if accelerator.is_main_process:
                    meter.update(result, norm)
            guard.check_loss_scale(step)
            lr_scheduler.step()
            ema.step(unet.parameters())

            # Records
            progress_bar.update()
            last, stops = step == max_steps, stop.agreed()
            saves = step % args.checkpointing_steps == 0 or last or stops
            kinds = set() if last or stops else due(args, step, steps_per_epoch)
            if saves or kinds:
                parameterization, sigma = objective.parameterization, result.sigma
                x = parameterization.c_in(sigma.view(-1, 1, 1, 1)) * clean
                forward = functools.partial(model, x, parameterization.c_noise(sigma), options.get("class_labels"))
                guard.check_weights(step, unet, ema, optimizer, forward)
            if outputs is not None and (step % args.logging_steps == 0 or last or stops):
                found = meter.summary(step)
                progress_bar.set_postfix({name: found[name] for name in ("loss", "images_per_second")})
                outputs.log(step, {**found, "lr": lr_scheduler.get_last_lr()[0], "ema_decay": ema.cur_decay_value})
            with meter.pause():
                if saves:
                    save_checkpoint(accelerator, output_dir, step, settings, args.checkpoints_total_limit, checkpoint)
                    long_barrier.wait()
                if kinds:
                    with long_barrier:
                        if outputs is not None:
                            outputs.at_intervals(step, kinds)
            if stops:
                break

    # What it leaves
    if step < max_steps:
        if outputs is not None:
            outputs.note("stop", step, reason=stop.reason)
        end_training(accelerator, output_dir)
        reason = stop.reason or "a signal to another process"
        if step == first_step:
            accelerator.print(f"Stopped by {reason} before a step was done. Start the same command again.")
        else:
            accelerator.print(
                f"Stopped by {reason} after step {step:,} of {max_steps:,}, saved in "
                f"{output_dir / f'checkpoint-{step}'}. Go on by --resume_from_checkpoint latest."
            )
        return
    with long_barrier:
        if outputs is not None:
            outputs.at_the_end(max_steps)
    end_training(accelerator, output_dir)
    accelerator.print(f'Saved to {output_dir}: PFGMPipeline.from_pretrained("{output_dir}")')


def end_training(accelerator: Accelerator, output_dir: Path) -> None:
    with side_output("Closing the tracker", output_dir):
        accelerator.end_training()
