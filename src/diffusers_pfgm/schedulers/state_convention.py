"""The state convention of a scheduler, and the check that a pipeline follows it.

A state convention is how a pipeline must start and scale the state that it passes through a run:

- variance-exploding: the state is x + σ · noise in data units. It begins at `scheduler.sample_prior(shape)`, or at
  unit noise times `scheduler.init_noise_sigma` = σ_max. A network without preconditioning gets the state itself.
- EDM's (`sigma_data`): the same state, but the network gets c_in x = x / √(σ² + σ_data²), which is the result of
  `scheduler.scale_model_input`.
- variance-preserving (a beta schedule): the state is (x + σ · noise) / √(1 + σ²). It begins at unit noise
  (`init_noise_sigma` = 1), and the network gets the state itself.

diffusers' DDPMPipeline and DDIMPipeline are written for the third: they start at unit noise, read no
`init_noise_sigma`, and call no `scale_model_input`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.utils import logging

from ..physics.parameterization import Parameterization

logger = logging.get_logger(__name__)


@dataclass
class StateConvention:
    """A record of the scheduler methods that a pipeline has called in a run, and checks that it follows the convention.

    Attributes:
        parameterization: the parameterization of the network.
        start_was_read: whether the pipeline has read the scale of the initial state.
        timestep_was_read: whether the pipeline has read the network's timesteps by `network_timestep`.
        input_was_scaled: whether the pipeline has called `scale_model_input`.
    """

    parameterization: Parameterization
    start_was_read: bool = False
    timestep_was_read: bool = False
    input_was_scaled: bool = False

    def record_scaling(self, sample: torch.Tensor) -> None:
        """Record that `scale_model_input` was called with `sample`.

        Raises:
            ValueError: if `sample` is a single number, the σ of a pipeline that computes c_in itself. Such a pipeline
                has a variance-exploding state and reads x̂ from the network itself, for data of standard deviation 1,
                so it is only allowed with "sample" and `sigma_data` = 1.
        """
        parameterization = self.parameterization
        is_allowed = parameterization.sigma_data == 1 and parameterization.prediction_type == "sample"
        if sample.ndim == 0 and not is_allowed:
            raise ValueError(
                "`sample` must be a state (B, *), but is one number. A pipeline that scales sigma itself, such as "
                "StableDiffusionLatentUpscalePipeline, has a variance-exploding state and reads x̂ itself. Give it "
                "EulerDiscreteScheduler, or PoissonFlowScheduler(None, sigma_min, sigma_max, 'sample', sigma_data=1.0)."
            )
        self.start_was_read = True
        self.input_was_scaled = True

    def check_step(self, index: int, is_on_hemisphere: bool) -> None:
        """Check, at the step of this index, that the pipeline follows the convention.

        Warns at the first step of a variance-exploding run if the pipeline has read neither the scale of the initial
        state nor, if the network needs it, the timestep of each sample.

        Raises:
            ValueError: if the network needs c_in x, but `scale_model_input` was not called in this run, or if each
                sample has its own σ (`is_on_hemisphere`), but `network_timestep` was not called.
        """
        if is_on_hemisphere and not self.timestep_was_read:
            raise ValueError(
                "The samples are on the hemisphere, where each has its own noise level, but the network was not called "
                "with `scheduler.network_timestep(sample, timestep)`. Call it as PFGMPipeline does, or set `prior` of "
                "the scheduler to 'shell'."
            )
        parameterization = self.parameterization
        if index == 0 and parameterization.noise_estimate is not None and not self.timestep_was_read:
            logger.warning(
                "This network was trained with the noise level that is estimated from each sample, but is called with "
                "that of the scheduler, so its images may be worse. Call it with `scheduler.network_timestep(sample, "
                "timestep)`, as PFGMPipeline does."
            )
        if parameterization.sigma_data is not None and not self.input_was_scaled:
            raise ValueError(
                "`scale_model_input` was not called before `step`, so the network was not given c_in x, which "
                f"`sigma_data` = {parameterization.sigma_data} requires. Call it before the network, or use a pipeline "
                "that does: PFGMPipeline does, DDPMPipeline and DDIMPipeline do not."
            )
        if index == 0 and parameterization.train_sigmas is None and not self.start_was_read:
            logger.warning(
                "`step` begins a run, but the pipeline has not read the scale of the initial state from this "
                "scheduler. The state must begin as `scheduler.sample_prior(shape)`, or as noise times "
                "`scheduler.init_noise_sigma`. PFGMPipeline does so, DDPMPipeline and DDIMPipeline do not."
            )

    def end_run(self) -> None:
        """Forget what was recorded, so that the next run is checked again."""
        self.start_was_read = False
        self.timestep_was_read = False
        self.input_was_scaled = False
