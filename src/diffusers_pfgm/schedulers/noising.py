"""What a scheduler makes of data for a network's training: noisy states and velocities."""

from __future__ import annotations

from typing import Any

import torch

from ..physics.parameterization import Parameterization
from ..physics.tensors import append_dims
from .state_convention import StateConvention


class NoisingMixin:
    """`add_noise` and `get_velocity` of a scheduler, at the timesteps that its network sees."""

    config: Any
    parameterization: Parameterization
    _convention: StateConvention
    _rounded_timesteps: (
        tuple[torch.Tensor, torch.Tensor] | None
    )  # timesteps and σ's of a run whose timesteps are rounded

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x + σ · noise as a state; `noise` from `sample_noise`, `timesteps` () or (B,) as in `self.timesteps`."""
        self._convention.start_was_read = True
        sigma, dtype = self._sigmas_at(timesteps, original_samples), original_samples.dtype
        scale = torch.as_tensor(self.parameterization.preconditioning.state_scale(sigma), device=sigma.device)
        return scale.to(dtype) * original_samples + (scale * sigma).to(dtype) * noise

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What a network for "v_prediction" is trained to return for `add_noise(sample, noise, timesteps)`.

        With a beta schedule or a plain network this is (noise − σ · sample) / √(1 + σ²), as in diffusers' schedulers;
        with `sigma_data` σ_d it is (σ_d · noise − σ / σ_d · sample) / √(σ² + σ_d²).

        Args:
            sample: (B, *), data.
            noise: (B, *), from `sample_noise`.
            timesteps: () or (B,), as the network sees them.

        Returns:
            (B, *), in the sample's dtype.
        """
        sigma, dtype = self._sigmas_at(timesteps, sample), sample.dtype
        sigma_data = self.config.sigma_data or 1.0
        scale = (sigma**2 + sigma_data**2) ** -0.5
        return (sigma_data * scale).to(dtype) * noise - (sigma * scale / sigma_data).to(dtype) * sample

    def _sigmas_at(self, timesteps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """σ (B, 1, ...) at timesteps () or (B,), in float32 at least."""

        def beside(values: torch.Tensor) -> torch.Tensor:  # by float32, as either device may lack float64
            return values.float().to(like.device).to(torch.promote_types(like.dtype, torch.float32))

        labels = append_dims(beside(torch.as_tensor(timesteps)), like.ndim)
        sigma = torch.as_tensor(self.parameterization.sigma(labels))
        if self._rounded_timesteps is None:
            return sigma
        known, sigmas = map(beside, self._rounded_timesteps)
        same = labels.unsqueeze(-1) == known
        index = same.to(torch.uint8).argmax(-1)  # `index_select`, as MPS has no `take`
        return torch.where(same.any(-1), sigmas.index_select(0, index.flatten()).view(index.shape), sigma)
