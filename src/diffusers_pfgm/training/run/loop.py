"""The training loop of train_pfgm.py and tune_consistency.py."""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.nn.utils import clip_grad_norm_
from tqdm.auto import tqdm

from ...hub.publishing import check_hub
from ...losses import ConsistencyObjective
from ..data.field_batches import FieldWindow
from ..data.fingerprint import data_settings
from ..data.order import BatchPlan, position_generators
from ..data.training_data import TrainingData
from .checkpoint_contents import CHECKPOINT_PREFIX, checkpoint_step, read_settings
from .checkpoints import register_ema_hooks, restore_checkpoint, save_checkpoint
from .divergence_guard import DivergenceGuard
from .hyperparameters import make_training_task
from .long_barrier import LongBarrier
from .optimization import make_ema, make_lr_scheduler, make_optimizer
from .outputs import Outputs, due
from .records import Meter
from .run_files import TRACKER
from .settings import check_settings, check_steps, run_settings
from .setup import (
    agree_on_seed,
    clear_output_dir,
    find_resume_point,
    locked_output_dir,
    make_accelerator,
    on_main_process,
)
from .side_output import side_output
from .stopping import StopRequest
from .task import TrainingTask, objective_options

MakeTask = Callable[[argparse.Namespace, TrainingData, Accelerator], TrainingTask]
Prepare = Callable[[argparse.Namespace], MakeTask]


def main(args: argparse.Namespace, prepare: Prepare = lambda args: make_training_task) -> None:
    """Train a model.

    Args:
        args: The options of the script.
        prepare: Called after the output folder, the Hub and the checkpoint have been checked, and before the data set
            is loaded. It may set options of the data set, and returns a function that makes the task of the run from
            the options, the data set and accelerate's `Accelerator`. By default the task is that of train_pfgm.py.
    """
    accelerator = make_accelerator(args)
    with locked_output_dir(args, accelerator):
        train(args, prepare, accelerator)


def train(args: argparse.Namespace, prepare: Prepare, accelerator: Accelerator) -> None:
    """Train a model in an output folder that is locked for this run. Every process must call this."""
    output_dir = Path(args.output_dir)
    long_barrier = LongBarrier(accelerator)
    repo_id = None
    if args.push_to_hub:
        hub_options = (args.hub_model_id, output_dir, args.hub_private_repo, args.license)
        repo_id = on_main_process(accelerator, lambda: check_hub(*hub_options))
    checkpoint = find_resume_point(args, accelerator)
    saved_settings = {} if checkpoint is None else read_settings(checkpoint)
    make_task = prepare(args)
    seed = agree_on_seed(args, saved_settings)
    set_seed(seed, device_specific=True)

    # Data
    plan = BatchPlan(
        args.train_batch_size, args.gradient_accumulation_steps, accelerator.num_processes, accelerator.process_index
    )
    with long_barrier:
        data = TrainingData(args, seed, accelerator)  # datasets lets one process prepare it, while the others wait
    task = make_task(args, data, accelerator)
    objective, scheduler, unet = task.objective, task.scheduler, task.unet
    trained = [unet] if task.critic is None else [unet, task.critic]
    networks = torch.nn.ModuleList(trained)
    charges_kind, all_charges = data.charges(saved_settings.get("charges"))
    accelerator.print(task.description)

    # Network and EMA
    if args.gradient_checkpointing:
        for network in trained:
            network.enable_gradient_checkpointing()
    ema = make_ema(args, unet, accelerator.device)

    # Optimization
    # The length of a stream is unknown. Its epochs are as long as the steps between two checkpoints.
    steps_per_epoch = math.ceil(data.count / plan.images_per_step) or args.checkpointing_steps
    max_steps = args.max_train_steps or args.num_epochs * steps_per_epoch
    optimizer = make_optimizer(args, unet, task.critic)
    lr_scheduler = make_lr_scheduler(args, optimizer, max_steps)
    if args.lr_scheduler != "constant" and args.lr_warmup_steps >= max_steps:
        accelerator.print(
            f"The learning rate only increases: --lr_warmup_steps is {args.lr_warmup_steps:,} in a run of "
            f"{max_steps:,} steps."
        )
    *models, optimizer, lr_scheduler = accelerator.prepare(*trained, optimizer, lr_scheduler)
    model = models[0]
    critic = {"critic": models[1]} if len(models) > 1 else {}

    # Resuming
    # The stages of consistency training depend on the length of the run.
    is_staged = isinstance(objective, ConsistencyObjective) and not objective.distillation
    settings = run_settings(
        vars(args) | {"charges": charges_kind},
        seed=seed,
        images_per_step=plan.images_per_step,
        processes_of_a_field=plan.processes if charges_kind == "local" else 1,
        images=data.count,
        **data_settings(data.images, data.labels, data.id2label, scheduler),
        mixed_precision=accelerator.mixed_precision,
        **({"max_steps": max_steps} if is_staged else {}),
        **task.settings,
        **{f"unet.{name}": value for name, value in unet.config.items() if not name.startswith("_")},
    )
    register_ema_hooks(accelerator, ema)
    first_step = 0
    if checkpoint is not None:
        check_settings(saved_settings, settings)
        check_steps(checkpoint_step(checkpoint), max_steps)
        first_step = restore_checkpoint(accelerator, checkpoint, seed)
        accelerator.print(f"Resumed from {checkpoint} after step {first_step:,}.")
    clear_output_dir(args, accelerator, checkpoint, first_step)
    num_parameters = unet.num_parameters()
    accelerator.print(
        f"{f'{data.count:,} images' if data.count else 'A stream'} of {data.images.channels} x {args.resolution} x "
        f"{args.resolution}, {num_parameters:,} parameters, {max_steps:,} steps of {plan.images_per_step} images"
    )

    # Training
    outputs = None
    with long_barrier:
        if accelerator.is_main_process:
            accelerator.init_trackers(TRACKER)
            fits_levels = task.critic is None  # distribution matching trains at fixed levels
            outputs = Outputs(args, accelerator, unet, ema, scheduler, data, settings, repo_id, fits_levels)
            outputs.note("start", first_step, settings=settings, max_steps=max_steps, parameters=num_parameters)
    calls_per_step = task.calls * args.gradient_accumulation_steps * accelerator.num_processes
    meter = Meter(max_steps, plan.images_per_step, calls_per_step, accelerator.device, first_step)
    guard = DivergenceGuard(accelerator, output_dir, None if outputs is None else outputs.note)
    stop = StopRequest(accelerator)
    window = FieldWindow(
        data.batches(plan, first_step, stop.agreed),
        plan,
        args.field_batch_size if charges_kind in ("local", "gathered") else 0,
        accelerator if charges_kind == "gathered" else None,
        accelerator.device,
        lambda: data.stream_length,
        stop.agreed,
    )
    progress_bar = tqdm(
        total=max_steps,
        initial=first_step,
        desc="Steps",
        mininterval=1,
        disable=not accelerator.is_local_main_process,
    )
    for each in models:
        each.train()
    step = first_step
    with stop, progress_bar:
        for step, images in zip(range(first_step + 1, max_steps + 1), window, strict=False):
            for part, (clean, labels) in enumerate(images.parts):
                # The random numbers belong to the positions of the images, whichever process has them.
                generators = position_generators(seed, plan.first(step - 1, part), len(clean))
                progress = (step - 1) / max_steps
                options = objective_options(args, objective, data, images, labels, all_charges, generators, progress)
                with accelerator.accumulate(*models):
                    result = objective(model, clean, generator=generators, **options, **critic)
                    accelerator.backward(result.loss)
                    guard.note(result.loss)
                    norm = None
                    if accelerator.sync_gradients:
                        # The first call unscales the gradients of all networks in float16.
                        norm = accelerator.clip_grad_norm_(unet.parameters(), args.max_grad_norm)
                        norms = [norm]
                        if task.critic is not None:
                            norms.append(clip_grad_norm_(task.critic.parameters(), args.max_grad_norm))
                        guard.check_gradients(step, torch.stack(norms))
                    optimizer.step()
                    optimizer.zero_grad()
                if accelerator.is_main_process:
                    meter.update(result, norm)
            guard.check_loss_scale(step)
            lr_scheduler.step()
            ema.step(unet.parameters())

            # Records, checkpoints and outputs
            progress_bar.update()
            is_last = step == max_steps
            stops = stop.agreed()
            saves_checkpoint = step % args.checkpointing_steps == 0 or is_last or stops
            due_outputs = set() if is_last or stops else due(args, step, steps_per_epoch)
            if saves_checkpoint or due_outputs:
                parameterization = objective.parameterization
                model_input, timestep, _ = parameterization.model_input(clean, result.sigma.view(-1, 1, 1, 1))
                forward = functools.partial(model, model_input, timestep, options.get("class_labels"))
                guard.check_weights(step, networks, ema, optimizer, forward)
            if outputs is not None and (step % args.logging_steps == 0 or is_last or stops):
                summary = meter.summary(step)
                progress_bar.set_postfix({name: summary[name] for name in ("loss", "images_per_second")})
                outputs.log(step, {**summary, "lr": lr_scheduler.get_last_lr()[0], "ema_decay": ema.cur_decay_value})
            with meter.pause():
                if saves_checkpoint:
                    save_checkpoint(accelerator, output_dir, step, settings, args.checkpoints_total_limit, checkpoint)
                    long_barrier.wait()
                if due_outputs:
                    with long_barrier:
                        if outputs is not None:
                            outputs.at_intervals(step, due_outputs)
            if stops:
                break

    # End
    if step == max_steps:
        with long_barrier:
            if outputs is not None:
                outputs.at_the_end(max_steps)
    elif outputs is not None:
        outputs.note("stop", step, reason=stop.reason)
    with side_output("Closing the tracker", output_dir):
        accelerator.end_training()
    accelerator.print(_end_message(output_dir, stop.reason, step, first_step, max_steps))


def _end_message(output_dir: Path, stop_reason: str, step: int, first_step: int, max_steps: int) -> str:
    """Return the last line that a run prints, which says where its results are and how it continues."""
    reason = stop_reason or "a signal to another process"
    if step == max_steps:
        return f'Saved to {output_dir}: PFGMPipeline.from_pretrained("{output_dir}")'
    if step == first_step:
        return f"Stopped by {reason} before a step was finished. Start the same command again."
    checkpoint = output_dir / f"{CHECKPOINT_PREFIX}{step}"
    return (
        f"Stopped by {reason} after step {step:,} of {max_steps:,}, saved in {checkpoint}. Resume by "
        "--resume_from_checkpoint latest."
    )
