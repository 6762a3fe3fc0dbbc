"""What a network is called with at a scheduler's timesteps: its input and its timestep."""

from __future__ import annotations

import torch

from ..physics.tensors import cast_clamped
from .priors import PriorMixin
from .step_index import StepIndexMixin


class NetworkInputMixin(PriorMixin, StepIndexMixin):
    """`scale_model_input` and `network_timestep` of a scheduler."""

    def sigma_of_call(self, timestep: float | torch.Tensor) -> float | torch.Tensor:
        """The noise level σ at which the network is called: a number, or (B, 1, ...) on the hemisphere.

        Args:
            timestep: the element of `timesteps`. Only read at the first step.
        """
        return self.sigma_of_samples(self._plan[self._current_index(timestep)].sigma)

    def noise_level_of_call(self, sample: torch.Tensor, timestep: float | torch.Tensor) -> float | torch.Tensor:
        """The noise level at which the network is called: ŝ of the state with a noise estimate, otherwise σ.

        ŝ takes about a hundred small operations, so it is computed once for all calls of a step with the same state,
        unless gradients are recorded.

        Args:
            sample: (B, C, *), the state.
            timestep: the element of `timesteps`. Only read at the first step.
        """
        sigma = self.sigma_of_call(timestep)
        needs_grad = sample.requires_grad and torch.is_grad_enabled()
        # `_version` counts the changes of a tensor in place, but not in inference mode or inside torch.compile.
        is_counted = not (torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or sample.is_inference())
        if self.parameterization.noise_estimate is None or needs_grad or not is_counted:
            return self.parameterization.noise_level(sample, sigma)
        key = (self._current_index(timestep), sample._version)
        if self._latest_estimate is None or self._latest_estimate[0] is not sample or self._latest_estimate[1] != key:
            self._latest_estimate = sample, key, self.parameterization.noise_level(sample, sigma)
        return self._latest_estimate[2]

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor) -> torch.Tensor:
        """Return the network's input for the state `sample` (B, C, *): c_in x with `sigma_data`, else the state itself.

        Raises:
            ValueError: if `sample` is a single number, which a pipeline passes that computes c_in itself.
        """
        self._convention.record_scaling(sample)
        if self.config.sigma_data is None:
            return sample
        noise_level = self.noise_level_of_call(sample, timestep)
        return cast_clamped(sample * self.parameterization.c_in(noise_level), sample.dtype)

    def network_timestep(self, sample: torch.Tensor, timestep: float | torch.Tensor) -> torch.Tensor:
        """Return the timestep that the network is called with: `timestep` itself, or one for each sample.

        Each sample has its own with the Student-t preconditioning (`mean_square_std`), for which the noise level is
        estimated from the sample, and with the prior "hemisphere".

        Args:
            sample: (B, C, *), the state, not multiplied by `c_in`.
            timestep: an element of `timesteps`.

        Returns:
            () or (B,).
        """
        self._convention.timestep_was_read = True
        if self.parameterization.noise_estimate is None and self._sigma_factors is None:
            return torch.as_tensor(timestep, device=sample.device)
        noise_level = self.noise_level_of_call(sample, timestep)
        return torch.as_tensor(self.parameterization.timestep(noise_level), device=sample.device)
