"""Consistency tuning: the task of tune_consistency.py, which starts from a trained pipeline."""

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

from ...losses import ConsistencyObjective
from ...losses.consistency import Teacher
from ...physics.bounded_noise import reach
from ...physics.denoiser import Denoiser
from ...pipelines import PFGMPipeline
from ...pipelines.class_conditioning import ClassLabels
from ...schedulers import PoissonFlowScheduler
from ..data.statistics import DataStatistics
from ..data.training_data import TrainingData
from . import loop
from .broadcast import broadcast_from_main
from .hyperparameters import LEAST_STD
from .load_model import load_model
from .model_checksum import weights_checksum
from .settings import MODEL_CHECKSUM
from .task import TrainingTask

BOUNDARY = 0.1  # σ_b, in standard deviations σ_d of the data
LEVELS = (1.3, 0.5)  # the second and third noise level of sampling before they are fitted, in σ_d
NUM_LEVELS = 1 + len(LEVELS)
CHECKED_SAMPLES = 16  # samples of the prior at which the x̂ of the base model is checked
LARGEST_ERROR = 2.0  # the largest root mean square distance of these x̂ to the mean of the images, in σ_d


def main(args: argparse.Namespace) -> None:
    """Tune a model.

    Args:
        args: The options of tune_consistency.py, from `tuning_arguments.parse_tuning_args`.

    Raises:
        ValueError: if `--output_dir` is the folder of `--model`.
    """
    if Path(args.model).resolve() == Path(args.output_dir).resolve():
        raise ValueError(f"`--output_dir` {args.output_dir} is the folder of `--model`. Choose another folder.")
    loop.main(args, lambda args: functools.partial(make_tuning_task, load_base(args)))


def load_base(args: argparse.Namespace) -> PFGMPipeline:
    """Load the pipeline to start from, and set the options of the data that follow from it.

    Raises:
        ValueError: if `--model` cannot be loaded, or is no pipeline of a `UNet2DModel` for square images.
    """
    base = load_model(PFGMPipeline, args.model)
    unet = base.unet
    if not isinstance(unet, UNet2DModel):
        raise ValueError(f"`--model` {args.model!r} has a {type(unet).__name__}, but only a UNet2DModel can be tuned.")
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
    return base


def make_tuning_task(
    base: PFGMPipeline, args: argparse.Namespace, data: TrainingData, accelerator: Accelerator
) -> TrainingTask:
    """Return the task of a run of tune_consistency.py.

    Args:
        base: The pipeline to start from.
        args: The options of tune_consistency.py.
        data: The data set of the run.
        accelerator: accelerate's `Accelerator` of the run.

    Raises:
        ValueError: if the images have other channels or classes than the pipeline, if its scheduler has a beta
            schedule, if its x̂ at σ_max is far from the mean of the images, or if it cannot be tuned with
            `--guidance_scale` or by `--method`.
    """
    unet = base.unet
    classes = base.config.id2label
    scheduler = PoissonFlowScheduler.from_scheduler(base.scheduler, allow_consistency=True)
    _check_base(args.model, base, scheduler, data)
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
    _check_method(args, scheduler, null_class)

    statistics = broadcast_from_main(data.images.statistics())
    std = scheduler.config.sigma_data or max(statistics.std, LEAST_STD)
    shape = (data.images.channels, args.resolution, args.resolution)
    tuned = _tuned_scheduler(scheduler, std, math.prod(shape), args.guidance_scale)
    unet.to(accelerator.device)
    for module in unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    # Consistency training without guidance needs the untuned network only for the check.
    has_teacher = args.method == "distillation" or args.guidance_scale != 1
    network = copy.deepcopy(unet).requires_grad_(False).eval() if has_teacher else unet
    teacher = _teacher(network, scheduler, accelerator)
    label = 0 if classes and null_class is None else null_class
    _check_prediction(teacher, scheduler, shape, label, statistics, args.model)
    objective = ConsistencyObjective(
        tuned.parameterization,
        tuned.config.sigma_max,
        std,
        tuned.config.aug_dim,
        args.guidance_scale,
        teacher if has_teacher else None,
        null_class,
        args.method == "distillation",
    )
    description = (
        f"Consistency {args.method} from sigma = {tuned.config.sigma_max:g}, with consistency_boundary = "
        f"{tuned.config.consistency_boundary:g}"
        + (" from a model that is already tuned." if scheduler.is_consistency_model else ".")
    )
    calls = 2 if args.method == "training" else 4
    if args.guidance_scale != 1:
        calls += calls // 2
    return TrainingTask(objective, tuned, unet, description, {MODEL_CHECKSUM: weights_checksum(unet)}, calls)


def _check_base(model: str, base: PFGMPipeline, scheduler: PoissonFlowScheduler, data: TrainingData) -> None:
    """Raise a ValueError if the pipeline has a beta schedule, or other channels or classes than the images."""
    if scheduler.parameterization.train_sigmas is not None:
        raise ValueError(
            f"`--model` {model!r} has a beta schedule, whose noise levels are finitely many. Use a model of "
            "train_pfgm.py, or one with EDM's preconditioning."
        )
    channels = base.unet.config.in_channels
    if channels != data.images.channels:
        raise ValueError(
            f"The images have {data.images.channels} channels, but `--model` {model!r} has {channels}. Pass images "
            "with as many, or `--image_mode` L for 1, RGB for 3, RGBA for 4."
        )
    if data.id2label != base.config.id2label:
        raise ValueError(
            f"The classes of the images are {data.id2label}, but those of `--model` {model!r} are "
            f"{base.config.id2label}. Both must have the same names in the same order."
        )


def _tuned_scheduler(
    scheduler: PoissonFlowScheduler, std: float, data_dim: int, guidance_scale: float
) -> PoissonFlowScheduler:
    """Return the scheduler of the consistency model.

    Args:
        scheduler: The scheduler of the model to start from.
        std: σ_d, the standard deviation of the data.
        data_dim: N, the number of pixel values of an image.
        guidance_scale: The scale of guidance that the model learns; 1 for none.
    """
    sigma_max = scheduler.config.sigma_max
    options = {
        "consistency_boundary": float(f"{BOUNDARY * std:.3g}"),
        "consistency_sigmas": [sigma_max, *(float(f"{level * std:.3g}") for level in LEVELS)],
        "consistency_guidance": None if guidance_scale == 1 else guidance_scale,
        "consistency_clip": True,  # guidance extrapolates beyond the range [-1, 1] of the images
        "final_sigmas_type": "zero",
        "solver": "multistep",
        "sigma_knots": None,
        "sigma_steps": None,
    }
    if scheduler.config.aug_dim is not None:  # the prior must have the same limit as the noise of the tuning
        options["max_norm"] = sigma_max * reach(data_dim)
    return PoissonFlowScheduler.from_config(scheduler.config, **options)


def _check_method(args: argparse.Namespace, scheduler: PoissonFlowScheduler, null_class: int | None) -> None:
    guidance = f"`--guidance_scale` {args.guidance_scale:g}"
    if args.guidance_scale != 1 and null_class is None:
        raise ValueError(
            f"{guidance} needs a model that was trained with `--class_conditional` and `--label_dropout` > 0, but "
            f"`--model` {args.model!r} was not. Leave it out."
        )
    if scheduler.is_consistency_model and (args.guidance_scale != 1 or args.method == "distillation"):
        option = "`--method` distillation" if args.method == "distillation" else guidance
        raise ValueError(
            f"{option} needs the x̂ of a model that is not tuned, but `--model` {args.model!r} is tuned. Pass the model "
            "that it was tuned from."
        )


def _check_prediction(
    teacher: Teacher,
    scheduler: PoissonFlowScheduler,
    shape: tuple[int, ...],
    label: int | None,
    statistics: DataStatistics,
    model: str,
) -> None:
    """Check that the prediction at σ_max is within 2 σ_d of μ, the mean of all pixels, as the posterior mean x̂ is."""
    generator = torch.Generator().manual_seed(0)
    x = scheduler.sample_prior((CHECKED_SAMPLES, *shape), generator)
    labels = None if label is None else torch.full((CHECKED_SAMPLES,), label)
    with torch.no_grad():
        predicted = teacher(x, torch.as_tensor(scheduler.config.sigma_max), labels)
    error = (predicted - statistics.mean).square().mean().sqrt().item()
    if not error <= LARGEST_ERROR * max(statistics.std, LEAST_STD):
        raise ValueError(
            f"`--model` {model!r} does not predict the posterior mean x̂ at sigma_max = "
            f"{scheduler.config.sigma_max:g}: x̂ should be close to the mean of the images, whose standard deviation "
            f"is {statistics.std:.3g}, but its root mean square distance to this mean is {error:.3g}. Train the model "
            "for longer, or with the default preconditioning."
        )


def _teacher(unet: UNet2DModel, scheduler: PoissonFlowScheduler, accelerator: Accelerator) -> Teacher:
    """Return x̂ of the untuned network."""

    def denoise(x: torch.Tensor, sigma: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        labels: dict[str, Any] = {}
        if class_labels is not None:
            labels["class_labels"] = class_labels.to(accelerator.device)
        with accelerator.autocast():
            return Denoiser(unet, scheduler.parameterization, **labels)(x.to(accelerator.device), sigma)

    return denoise
