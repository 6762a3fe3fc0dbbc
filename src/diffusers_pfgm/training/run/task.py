"""What a training script trains: its objective, network and scheduler, and what the objective is called with."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DModel

from ...losses import (
    ConsistencyObjective,
    DistributionMatchingObjective,
    FieldObjective,
    PerturbationObjective,
)
from ...losses.loss_output import drop_labels
from ...physics import Charges, ClassCharges
from ...schedulers import PoissonFlowScheduler
from ..data.field_batches import StepImages
from ..data.training_data import TrainingData

Objective = FieldObjective | PerturbationObjective | ConsistencyObjective | DistributionMatchingObjective


@dataclass
class TrainingTask:
    """What a run trains.

    Attributes:
        objective: The objective of the run.
        scheduler: The scheduler for sampling from the network.
        unet: The network with its weights at the start of the run.
        description: A line with the hyperparameters of the run, which is printed at its start.
        settings: Further settings that a resumed run must have in common with its checkpoint.
        calls: Number of network calls of one micro-batch.
        critic: A second network that is trained too, for `DistributionMatchingObjective`; None for the others.
    """

    objective: Objective
    scheduler: PoissonFlowScheduler
    unet: UNet2DModel
    description: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    calls: int = 1
    critic: UNet2DModel | None = None


def objective_options(
    args: argparse.Namespace,
    objective: Objective,
    data: TrainingData,
    images: StepImages,
    labels: torch.Tensor,
    all_charges: Charges | ClassCharges | None,
    generators: list[torch.Generator],
    progress: float,
) -> dict[str, Any]:
    """Return the charges, class labels and progress that the objective needs for one micro-batch of a step.

    Args:
        args: The options of the script.
        objective: The objective of the run.
        data: The data set of the run.
        images: The images of the step.
        labels: Class labels (B,) of the micro-batch.
        all_charges: All images of the data set as charges; None if the charges are those of the step.
        generators: One generator for each image of the micro-batch, for dropping labels.
        progress: Share of the run that is done, from 0 to 1.
    """
    options: dict[str, Any] = {}
    if data.id2label is not None:
        options["class_labels"] = drop_labels(labels, args.label_dropout, len(data.id2label), generators)
    if isinstance(objective, ConsistencyObjective):
        options["progress"] = progress
    if args.charges != "none":
        options["charges"] = images.charges if all_charges is None else all_charges
        if data.id2label is not None:
            options["charge_labels"] = images.charge_labels
    return options
