"""The attributes of a scheduler that its methods, in several files, have in common."""

from __future__ import annotations

from typing import Any

import torch

from ..physics.kernel import PoissonKernel
from ..physics.parameterization import Parameterization
from ..solvers.multistep import Step
from .sigma_schedule import RunSigmas
from .state_convention import StateConvention


class SchedulerAttributes:
    """What `PoissonFlowScheduler` sets when it is made, and for each run in `set_timesteps`.

    Attributes:
        config: the configuration.
        kernel: the kernel at its D.
        parameterization: how x̂ is computed from the network's output.
        num_inference_steps: the number of steps of the run; None before `set_timesteps`.
        timesteps: the network's timestep of each call.
    """

    config: Any
    kernel: PoissonKernel
    parameterization: Parameterization
    num_inference_steps: int | None
    timesteps: torch.Tensor
    _convention: StateConvention
    _run: RunSigmas
    _plan: list[Step]  # one step for each element of `timesteps`
    _timestep_values: list[float]  # `timesteps` as numbers, so that no step waits for the device
    # The timesteps and the σ's of a run whose timesteps are rounded, else None.
    _rounded_timesteps: tuple[torch.Tensor, torch.Tensor] | None
    _sigma_factors: torch.Tensor | None  # (B, 1, ...) with the prior "hemisphere", whose samples have a σ each
    # The state whose noise level was estimated last, the step and the version of the state, and the estimate.
    _latest_estimate: tuple[torch.Tensor, tuple[int, int], float | torch.Tensor] | None
    _begin_index: int | None
    _step_index: int | None

    @property
    def is_consistency_model(self) -> bool:
        """Whether the network is a consistency model, see `consistency_boundary`."""
        return self.config.consistency_boundary is not None
