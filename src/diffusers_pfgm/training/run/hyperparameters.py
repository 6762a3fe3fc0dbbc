"""The hyperparameters of a training run, which follow from the images, and the objective and scheduler made of them."""

from __future__ import annotations

import argparse
import math
from typing import Any

from accelerate import Accelerator

from ...losses import FieldObjective, PerturbationObjective
from ...models.default_unet import make_unet
from ...physics import recommend_hyperparameters
from ...schedulers import PoissonFlowScheduler
from ..data.images import ImageTensors
from ..data.streams import StreamedImages
from ..data.training_data import TrainingData
from .arguments import EDM_SIGMA_DATA
from .broadcast import broadcast_from_main
from .task import TrainingTask

# The noise levels of EDM (arXiv 2206.00364, table 1): in sampling, and mean and standard deviation of ln σ in training.
# They are for data of the standard deviation `EDM_SIGMA_DATA`.
EDM_SIGMA_MIN, EDM_SIGMA_MAX = 0.002, 80.0
EDM_P_MEAN, EDM_P_STD = -1.2, 1.2
# Mean and standard deviation of ln(σ/σ_d) in training with the Student-t preconditioning, where σ_d is the standard
# deviation of the data. Within two standard deviations N(-0.3, 1.3²) reaches from -2.9 to 2.3. This range includes the
# large levels of N(0.2, 1²), from -1.8 to 2.2, which gave the best classifier features in a sweep on MNIST, and the
# small levels of EDM, N(-0.5, 1.2²), from -2.9 to 1.9. Without the small levels a visible noise remains in the images.
P_MEAN, P_STD = -0.3, 1.3
LEAST_STD = 0.01  # data without spread, such as one black image, are treated as data with this standard deviation


def make_training_task(args: argparse.Namespace, data: TrainingData, accelerator: Accelerator) -> TrainingTask:
    """Return the task of a run of train_pfgm.py: a network with random weights, and its objective.

    Args:
        args: The options of train_pfgm.py.
        data: The data set of the run.
        accelerator: accelerate's `Accelerator` of the run.

    Raises:
        ValueError: as in `make_objective` and `make_unet`, and for Fourier features of a timestep that is negative.
    """
    objective, scheduler = make_objective(args, data.images)
    unet = make_unet(
        args.resolution,
        data.images.channels,
        objective.parameterization.output_channels(data.images.channels),
        args.model_config_name_or_path,
        None if data.id2label is None else len(data.id2label) + (args.label_dropout > 0),
    )
    if unet.config.time_embedding_type == "fourier" and scheduler.config.sigma_data is not None:
        raise ValueError(
            f"`--model_config_name_or_path` {args.model_config_name_or_path!r} has the time_embedding_type 'fourier', "
            "for which diffusers takes the logarithm of the timestep. With a preconditioning the timestep is "
            "ln(sigma)/4, which can be negative. Use 'positional'."
        )
    return TrainingTask(objective, scheduler, unet, describe_hyperparameters(objective, scheduler))


def make_objective(
    args: argparse.Namespace, images: ImageTensors | StreamedImages
) -> tuple[FieldObjective | PerturbationObjective, PoissonFlowScheduler]:
    """Return the objective of the run and the scheduler for sampling from its network.

    Args:
        args: The options of train_pfgm.py.
        images: The training images. Their mean norm determines the hyperparameters of the field objective. Their mean,
            standard deviation σ_d and `mean_square_std` determine those of the perturbation objective with the
            Student-t preconditioning, whose σ_min and σ_max are EDM's scaled by σ_d, unless `--sigma_data` replaces
            σ_d. EDM's preconditioning does not use their statistics.

    Raises:
        ValueError: if the field objective has no hyperparameters for the mean norm, since the images are almost gray.
    """
    if args.objective == "field":
        # The main process's value is used on all processes: another device may round it to another M.
        mean_norm = broadcast_from_main(images.statistics()).mean_norm
        try:
            values = recommend_hyperparameters(mean_norm, images.channels * args.resolution**2)
            scheduler = PoissonFlowScheduler(
                sigma_max=values.z_max,
                max_norm=values.upper_norm,
                gamma=args.gamma,
                M=values.M,
                sigma_data=args.sigma_data,
            )
        except ValueError as error:
            raise ValueError(
                f"The images are almost uniformly medium gray: their mean norm is {mean_norm:.3g}, which is too small "
                "for the paper's rule for M and z_max. Check that these are the right images and that they have 8 bits "
                "per channel, or train with `--objective perturbation`."
            ) from error
        return FieldObjective(values, args.gamma, args.sigma_data), scheduler
    aug_dim = None if math.isinf(args.aug_dim) else args.aug_dim
    options: dict[str, Any] = {"aug_dim": aug_dim, "prediction_type": args.prediction_type}
    if aug_dim is None or args.preconditioning == "edm":
        p_mean, p_std = EDM_P_MEAN, EDM_P_STD
        options |= {"sigma_data": args.sigma_data, "sigma_min": EDM_SIGMA_MIN, "sigma_max": EDM_SIGMA_MAX}
    else:
        statistics = broadcast_from_main(images.statistics())
        std = args.sigma_data or max(_rounded(statistics.std), LEAST_STD)
        p_mean, p_std = math.log(std) + P_MEAN, P_STD
        options |= {
            "sigma_data": std,
            "data_mean": _rounded(statistics.mean),
            "mean_square_std": _rounded(statistics.mean_square_std),
            "sigma_min": _rounded(EDM_SIGMA_MIN * std / EDM_SIGMA_DATA),
            "sigma_max": _rounded(EDM_SIGMA_MAX * std / EDM_SIGMA_DATA),
        }
    p_mean = p_mean if args.p_mean is None else args.p_mean
    p_std = p_std if args.p_std is None else args.p_std
    parameterization = PoissonFlowScheduler(**options).parameterization
    objective = PerturbationObjective(parameterization, aug_dim, p_mean, p_std)
    limit = objective.max_norm(options["sigma_max"], images.channels * args.resolution**2)
    return objective, PoissonFlowScheduler(**options, max_norm=limit)


def describe_hyperparameters(objective: FieldObjective | PerturbationObjective, scheduler: PoissonFlowScheduler) -> str:
    """Return a line with the hyperparameters of a run, which says whether they follow from its data."""
    if isinstance(objective, FieldObjective):
        values = objective.hyperparameters
        measured = f"From the data: M = {values.M}, z_max = {values.z_max:.5g}, upper_norm = {values.upper_norm:.5g}."
        sigma_data = scheduler.config.sigma_data
        return measured if sigma_data is None else f"{measured} Inputs are scaled by sigma_data = {sigma_data:g}."
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
    """Round a statistic to three digits, so that it does not depend on the order of the sums on a machine."""
    return float(f"{value:.3g}")
