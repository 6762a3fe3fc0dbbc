"""What a training script trains: its objective, its network, and the scheduler for sampling from the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusers import UNet2DModel

from ...losses import ConsistencyObjective, FieldObjective, PerturbationObjective
from ...schedulers import PoissonFlowScheduler

Objective = FieldObjective | PerturbationObjective | ConsistencyObjective


@dataclass
class TrainingTask:
    """What a run trains.

    Attributes:
        objective: The objective of the run.
        scheduler: The scheduler for sampling from the network.
        unet: The network with its weights at the start of the run.
        description: A line with the hyperparameters that the run has found.
        settings: Further settings that a resumed run must have in common with its checkpoint.
    """

    objective: Objective
    scheduler: PoissonFlowScheduler
    unet: UNet2DModel
    description: str
    settings: Mapping[str, Any] = field(default_factory=dict)
