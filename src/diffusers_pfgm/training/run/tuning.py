"""Consistency tuning and distribution matching: the task of tune_consistency.py, which starts from a pipeline."""

from __future__ import annotations

import argparse
import copy
import functools
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import UNet2DModel

from ...losses import ConsistencyObjective, DistributionMatchingObjective
from ...losses.tuning import Teacher
from ...physics.bounded_noise import reach
from ...physics.denoiser import Denoiser
from ...pipelines import PFGMPipeline
from ...pipelines.class_conditioning import ClassLabels
from ...schedulers import PoissonFlowScheduler
from ..data.training_data import TrainingData
from . import loop
from .broadcast import broadcast_from_main
from .critic import make_critic
from .hyperparameters import LEAST_STD
from .load_model import load_model
from .model_checksum import weights_checksum
from .settings import MODEL_CHECKSUM, TEACHER_CHECKSUM
from .task import TrainingTask
from .tuning_checks import MATCHING, check_base, check_method, check_prediction, check_teacher

BOUNDARY = 0.1  # σ_b, in standard deviations σ_d of the data
# The second and third noise level of sampling, in σ_d: those of distribution matching, and before they are fitted.
LEVELS = (1.3, 0.5)
NUM_LEVELS = 1 + len(LEVELS)


def main(args: argparse.Namespace) -> None:
    """Tune a model.

    Args:
        args: The options of tune_consistency.py, from `tuning_arguments.parse_tuning_args`.

    Raises:
        ValueError: if `--output_dir` is the folder of `--model` or `--teacher`.
    """
    for option, folder in (("--model", args.model), ("--teacher", args.teacher)):
        if folder is not None and Path(folder).resolve() == Path(args.output_dir).resolve():
            raise ValueError(f"`--output_dir` {args.output_dir} is the folder of `{option}`. Choose another folder.")
    loop.main(args, lambda args: functools.partial(make_tuning_task, *load_pipelines(args)))


def load_pipelines(args: argparse.Namespace) -> tuple[PFGMPipeline, PFGMPipeline | None]:
    """Load the pipelines of `--model` and `--teacher`, and set the options of the data that follow from the model.

    Raises:
        ValueError: if one of them cannot be loaded, `--model` is no pipeline of a `UNet2DModel` for square images, or
            `--teacher` is no model that it can have been tuned from.
    """
    base = _load_unet_pipeline(args.model, "--model")
    unet = base.unet
    size = unet.config.sample_size
    sizes = {size} if isinstance(size, int) else {*(size or ())}
    if len(sizes) != 1:
        raise ValueError(
            f"`--model` {args.model!r} has the sample_size {size}, but train_pfgm.py and tuning have square images. "
            "Write a training loop with `ConsistencyObjective`."
        )
    args.resolution = sizes.pop()
    args.class_conditional = base.config.id2label is not None
    if unet.config.num_class_embeds is not None and not args.class_conditional:
        raise ValueError(
            f"`--model` {args.model!r} has classes without names. Save it as a pipeline with `id2label`, the names of "
            "the classes by number."
        )
    if not args.class_conditional and args.label_column is not None:
        raise ValueError(
            f"`--label_column` {args.label_column!r} was passed, but `--model` {args.model!r} has no classes. Leave it "
            "out."
        )
    if args.teacher is None:
        return base, None
    teacher = _load_unet_pipeline(args.teacher, "--teacher")
    check_teacher(args, base, teacher)
    return base, teacher


def _load_unet_pipeline(model: str, option: str) -> PFGMPipeline:
    """Load the pipeline that an option names, and raise a ValueError if its network is no `UNet2DModel`."""
    pipeline = load_model(PFGMPipeline, model, option=option)
    if not isinstance(pipeline.unet, UNet2DModel):
        raise ValueError(
            f"`{option}` {model!r} has a {type(pipeline.unet).__name__}, but only a UNet2DModel can be tuned or be a "
            "teacher."
        )
    return pipeline


def make_tuning_task(
    base: PFGMPipeline,
    teacher: PFGMPipeline | None,
    args: argparse.Namespace,
    data: TrainingData,
    accelerator: Accelerator,
) -> TrainingTask:
    """Return the task of a run of tune_consistency.py.

    Args:
        base: The pipeline to start from.
        teacher: The pipeline of `--teacher`; None without it.
        args: The options of tune_consistency.py.
        data: The data set of the run.
        accelerator: accelerate's `Accelerator` of the run.

    Raises:
        ValueError: if the images have other channels or classes than the pipeline, if its scheduler has a beta
            schedule, if the teacher's x̂ at σ_max is far from the mean of the images, or if the model cannot be tuned
            with `--guidance_scale`, `--method` or `--teacher`.
    """
    unet = base.unet
    classes = base.config.id2label
    scheduler = PoissonFlowScheduler.from_scheduler(base.scheduler, allow_consistency=True)
    check_base(args.model, base, scheduler, data)
    null_class = ClassLabels(unet.config.num_class_embeds, classes).null_class
    if null_class is None and args.label_dropout:
        raise ValueError(
            f"`--label_dropout` {args.label_dropout:g} needs a model that was also trained without labels, but "
            f"`--model` {args.model!r} was not. Leave it out."
        )
    if args.label_dropout is None:
        args.label_dropout = 0.0 if null_class is None else 0.1
    if args.method is None:
        is_plain = args.guidance_scale == 1 and not scheduler.is_consistency_model
        args.method = "distillation" if is_plain else "training"
    check_method(args, scheduler, null_class)

    statistics = broadcast_from_main(data.images.statistics())
    std = scheduler.config.sigma_data or max(statistics.std, LEAST_STD)
    shape = (data.images.channels, args.resolution, args.resolution)
    tuned = _tuned_scheduler(scheduler, std, math.prod(shape), args)
    _turn_off_dropout(unet.to(accelerator.device))
    settings: dict[str, Any] = {MODEL_CHECKSUM: weights_checksum(unet)}
    # Consistency training without guidance needs the untuned network only for the check.
    has_teacher = args.method != "training" or args.guidance_scale != 1
    network, untuned, named = unet, scheduler, f"`--model` {args.model!r}"
    if teacher is not None:
        network, named = teacher.unet.to(accelerator.device), f"`--teacher` {args.teacher!r}"
        untuned = PoissonFlowScheduler.from_scheduler(teacher.scheduler)
        settings[TEACHER_CHECKSUM] = weights_checksum(network)
    elif has_teacher:
        network = copy.deepcopy(unet)
    if has_teacher:
        network.requires_grad_(False).eval()
    denoise = _teacher(network, untuned, accelerator)
    label = 0 if classes and null_class is None else null_class
    check_prediction(denoise, untuned, shape, label, statistics, named)

    levels = tuned.config.consistency_sigmas
    facts = (std, tuned.config.aug_dim, args.guidance_scale)
    note = "" if args.guidance_scale == 1 else f", with guidance {args.guidance_scale:g}"
    note += ", from a model that is already tuned." if scheduler.is_consistency_model else "."
    if args.method == MATCHING:
        settings["consistency_sigmas"] = levels
        return TrainingTask(
            DistributionMatchingObjective(
                tuned.parameterization,
                untuned.parameterization,
                denoise,
                levels,
                *facts,
                num_classes=unet.config.num_class_embeds,
                null_class=null_class,
            ),
            tuned,
            unet,
            f"Distribution matching at sigma = {', '.join(f'{level:g}' for level in levels)}{note}",
            settings,
            calls=2 + len(levels) + (args.guidance_scale != 1),
            critic=_turn_off_dropout(make_critic(network, len(levels))),
        )
    calls = 2 if args.method == "training" else 4
    return TrainingTask(
        ConsistencyObjective(
            tuned.parameterization,
            levels[0],
            *facts,
            teacher=denoise if has_teacher else None,
            null_class=null_class,
            distillation=args.method == "distillation",
        ),
        tuned,
        unet,
        f"Consistency {args.method} from sigma = {levels[0]:g}, with consistency_boundary = "
        f"{tuned.config.consistency_boundary:g}{note}",
        settings,
        calls=calls + calls // 2 * (args.guidance_scale != 1),
    )


def _tuned_scheduler(
    scheduler: PoissonFlowScheduler, std: float, data_dim: int, args: argparse.Namespace
) -> PoissonFlowScheduler:
    """Return the scheduler of the consistency model.

    Args:
        scheduler: The scheduler of the model to start from.
        std: σ_d, the standard deviation of the data.
        data_dim: N, the number of pixel values of an image.
        args: The options of tune_consistency.py.
    """
    sigma_max = scheduler.config.sigma_max
    sigmas = [sigma_max, *(float(f"{level * std:.3g}") for level in LEVELS)]
    if args.method == MATCHING:
        sigmas = sigmas[: args.num_inference_steps]
    options = {
        "consistency_boundary": float(f"{BOUNDARY * std:.3g}"),
        "consistency_sigmas": sigmas,
        "consistency_guidance": None if args.guidance_scale == 1 else args.guidance_scale,
        "consistency_clip": True,  # guidance extrapolates beyond the range [-1, 1] of the images
        "final_sigmas_type": "zero",
        "solver": "multistep",
        "sigma_knots": None,
        "sigma_steps": None,
    }
    if scheduler.config.aug_dim is not None:  # the prior must have the same limit as the noise of the tuning
        options["max_norm"] = sigma_max * reach(data_dim)
    return PoissonFlowScheduler.from_config(scheduler.config, **options)


def _turn_off_dropout(unet: UNet2DModel) -> UNet2DModel:
    """Turn dropout off, and return the network."""
    for module in unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return unet


def _teacher(unet: UNet2DModel, scheduler: PoissonFlowScheduler, accelerator: Accelerator) -> Teacher:
    """Return x̂ of the untuned network."""

    def denoise(x: torch.Tensor, sigma: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        labels: dict[str, Any] = {}
        if class_labels is not None:
            labels["class_labels"] = class_labels.to(accelerator.device)
        with accelerator.autocast():
            return Denoiser(unet, scheduler.parameterization, **labels)(x.to(accelerator.device), sigma)

    return denoise
