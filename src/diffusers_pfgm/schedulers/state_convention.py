"""What a pipeline must do so that a scheduler's state and its network's input are what they are meant to be."""

from __future__ import annotations

import torch
from diffusers.utils import logging

logger = logging.get_logger(__name__)


class StateConvention:
    """Whether a pipeline has read where a run begins, and scaled the network's input.

    Some pipelines of diffusers, such as DDPMPipeline, do neither, since their schedulers need neither.

    Args:
        sigma_data: of the network's preconditioning, or None.
        has_betas: whether the scheduler has a beta schedule, whose state begins at unit scale.
        prediction_type: of the network.
    """

    def __init__(self, sigma_data: float | None, has_betas: bool, prediction_type: str) -> None:
        self._sigma_data, self._has_betas, self._prediction_type = sigma_data, has_betas, prediction_type
        self.start_was_read = self._input_was_scaled = False

    def scaled(self, sample: torch.Tensor) -> None:
        """Notes that `sample` is scaled; raises ValueError if it is one number.

        A pipeline that scales σ itself has a variance-exploding state and reads x̂ itself, for data of scale 1.
        """
        if sample.ndim == 0 and not (self._sigma_data == 1 and self._prediction_type == "sample"):
            raise ValueError(
                "`sample` must be a state (B, *), but is one number. A pipeline that scales sigma itself, such as "
                "StableDiffusionLatentUpscalePipeline, has a variance-exploding state and reads x̂ itself. Give it "
                "EulerDiscreteScheduler, or PoissonFlowScheduler(None, sigma_min, sigma_max, 'sample', sigma_data=1.0)."
            )
        self.start_was_read = self._input_was_scaled = True

    def check_step(self, index: int) -> None:
        """Raises ValueError if the network cannot have seen its input, and warns if the state begins anywhere."""
        if self._sigma_data is not None and not self._input_was_scaled:
            raise ValueError(
                "`scale_model_input` was not called before `step`, so the network has not seen c_in x, as `sigma_data` "
                f"= {self._sigma_data} demands. Call it before the network, or use a pipeline that does: PFGMPipeline "
                "does, DDPMPipeline and DDIMPipeline do not."
            )
        if index == 0 and not self._has_betas and not self.start_was_read:
            logger.warning(
                "`step` begins a run, but nothing has asked this scheduler where it begins. A state must begin as "
                "`scheduler.sample_prior(shape)`, or as noise times `scheduler.init_noise_sigma`. PFGMPipeline does "
                "so, DDPMPipeline and DDIMPipeline do not."
            )

    def end_run(self) -> None:
        """The next run is asked again."""
        self.start_was_read = self._input_was_scaled = False
