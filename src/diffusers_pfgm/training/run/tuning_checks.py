"""Checks of the models that tune_consistency.py starts from."""

from __future__ import annotations

import argparse

import torch

from ...losses.tuning import Teacher
from ...pipelines import PFGMPipeline
from ...schedulers import PoissonFlowScheduler
from ..data.statistics import DataStatistics
from ..data.training_data import TrainingData
from .hyperparameters import LEAST_STD

MATCHING = "matching"  # the value of `--method` for distribution matching
CHECKED_SAMPLES = 16  # samples of the prior at which the x̂ of the base model is checked
LARGEST_ERROR = 2.0  # the largest root mean square distance of these x̂ to the mean of the images, in σ_d


def check_base(model: str, base: PFGMPipeline, scheduler: PoissonFlowScheduler, data: TrainingData) -> None:
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


def check_teacher(args: argparse.Namespace, base: PFGMPipeline, teacher: PFGMPipeline) -> None:
    """Raise a ValueError if `--teacher` is tuned itself, or is a model of other images, classes, D or noise levels."""
    if PoissonFlowScheduler.from_scheduler(teacher.scheduler, allow_consistency=True).is_consistency_model:
        raise ValueError(
            f"`--teacher` {args.teacher!r} is tuned already, so it has no x̂. Pass the model that it was tuned from."
        )
    check_same_kind(f"`--teacher` {args.teacher!r}", teacher, f"`--model` {args.model!r}", base)


def check_same_kind(name: str, pipeline: PFGMPipeline, other_name: str, other: PFGMPipeline) -> None:
    """Raise a ValueError unless one of two models can have been tuned from the other.

    Args:
        name: The option and value that name the first model, for the error.
        pipeline: The first model.
        other_name: The option and value of the second model.
        other: The second model.
    """
    first, second = (
        PoissonFlowScheduler.from_scheduler(each.scheduler, allow_consistency=True).config for each in (pipeline, other)
    )
    pairs = {
        "sample_size": (pipeline.unet.config.sample_size, other.unet.config.sample_size),
        "in_channels": (pipeline.unet.config.in_channels, other.unet.config.in_channels),
        "num_class_embeds": (pipeline.unet.config.num_class_embeds, other.unet.config.num_class_embeds),
        "id2label": (pipeline.config.id2label, other.config.id2label),
        "aug_dim": (first.aug_dim, second.aug_dim),
        "sigma_max": (first.sigma_max, second.sigma_max),
    }
    for key, (value, expected) in pairs.items():
        if value != expected:
            raise ValueError(
                f"{name} has `{key}` = {value}, but {other_name} has {expected}. Both must be equal, as they are for a "
                "tuned model and the model that it was tuned from."
            )


def check_method(args: argparse.Namespace, scheduler: PoissonFlowScheduler, null_class: int | None) -> None:
    """Raise a ValueError if the model cannot be tuned with `--guidance_scale` or by `--method`."""
    guidance = f"`--guidance_scale` {args.guidance_scale:g}"
    method = f"`--method` {args.method}"
    if args.guidance_scale != 1 and null_class is None:
        raise ValueError(
            f"{guidance} needs a model that was trained with `--class_conditional` and `--label_dropout` > 0, but "
            f"`--model` {args.model!r} was not. Leave it out."
        )
    needs_teacher = args.method != "training" or args.guidance_scale != 1
    if needs_teacher and scheduler.is_consistency_model and args.teacher is None:
        option = guidance if args.method == "training" else method
        raise ValueError(
            f"{option} needs the x̂ of a model that is not tuned, but `--model` {args.model!r} is tuned. Pass the model "
            "that it was tuned from as `--teacher`."
        )
    if not needs_teacher and args.teacher is not None:
        raise ValueError(f"{method} without guidance uses no `--teacher`, but it is {args.teacher!r}. Leave it out.")


def check_prediction(
    teacher: Teacher,
    scheduler: PoissonFlowScheduler,
    shape: tuple[int, ...],
    label: int | None,
    statistics: DataStatistics,
    model: str,
) -> None:
    """Check that the prediction at σ_max is within 2 σ_d of μ, the mean of all pixels, as the posterior mean x̂ is.

    Args:
        teacher: x̂ of the network.
        scheduler: The scheduler of the model.
        shape: The shape (C, R, R) of an image.
        label: A class label; None without classes.
        statistics: The statistics of the images.
        model: The option and value that name the model, for the error.

    Raises:
        ValueError: if the prediction is farther from the mean.
    """
    generator = torch.Generator().manual_seed(0)
    x = scheduler.sample_prior((CHECKED_SAMPLES, *shape), generator)
    labels = None if label is None else torch.full((CHECKED_SAMPLES,), label)
    with torch.no_grad():
        predicted = teacher(x, torch.as_tensor(scheduler.config.sigma_max), labels)
    error = (predicted - statistics.mean).square().mean().sqrt().item()
    if not error <= LARGEST_ERROR * max(statistics.std, LEAST_STD):
        raise ValueError(
            f"{model} does not predict the posterior mean x̂ at sigma_max = "
            f"{scheduler.config.sigma_max:g}: x̂ should be close to the mean of the images, whose standard deviation "
            f"is {statistics.std:.3g}, but its root mean square distance to this mean is {error:.3g}. Train the model "
            "for longer, or with the default preconditioning."
        )
