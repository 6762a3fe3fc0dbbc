"""Noise, noisy states and velocities for the training of a network, at a scheduler's timesteps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..physics.tensors import Generators, append_dims, at_least_float32, cast_clamped, check_samples
from .attributes import SchedulerAttributes


class NoisingMixin(SchedulerAttributes):
    """`sample_noise`, `add_noise` and `get_velocity` of a scheduler."""

    @property
    def init_noise_sigma(self) -> float:
        """Scale of a prior sample relative to `sample_noise`, which diffusers' pipelines multiply their noise by."""
        self._convention.start_was_read = True
        return self._run.sigmas[0] if self.parameterization.train_sigmas is None else 1.0

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The largest and the smallest σ of the network, in data units."""
        train_sigmas = self.parameterization.train_sigmas
        if train_sigmas is not None:
            return train_sigmas[-1], train_sigmas[0]
        return self.config.sigma_max, self.config.sigma_min

    @property
    def has_proportional_limit(self) -> bool:
        """Whether the training noise was limited in proportion to σ, so that `max_norm` is its limit at σ_max only."""
        return self.config.prediction_type != "field" or self.is_consistency_model

    def data_scale(self, sigma: float) -> float:
        """The factor from a state at σ to data units: √(1 + σ²) with a beta schedule, else 1."""
        return 1.0 if self.parameterization.train_sigmas is None else math.sqrt(1 + sigma**2)

    def sample_noise(
        self,
        shape: Sequence[int],
        generator: Generators = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """Draw noise of the kernel (B, *) at σ = 1: a Student t distribution with D degrees of freedom.

        A noisy state is x + σ · noise, see `add_noise`. If the scheduler has a `max_norm`, and the network predicts
        anything but the field, its training noise was limited to the norm σ · max_norm / σ_max at every σ, so the norm
        of the noise is limited to max_norm / σ_max.

        Args:
            shape: (B, *).
            generator: one generator, or a list of B of them.
            device: device of the result, the CPU by default.
            dtype: dtype of the result, torch's default dtype by default.

        Returns:
            Tensor of `shape`, of unit noise level.

        Raises:
            ValueError: as in `PoissonKernel.sample`.
        """
        limit = self.config.max_norm
        if limit is not None:
            limit = limit / self.sigma_range[0] if self.has_proportional_limit else None
        return self.kernel.sample(shape, 1.0, generator, device, dtype, limit)

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the noisy state x + σ · noise, divided by √(1 + σ²) with a beta schedule.

        Args:
            original_samples: (B, *), data x.
            noise: (B, *), from `sample_noise`.
            timesteps: () or (B,), as in `self.timesteps`: without a beta schedule these are noise levels. Data, noise
                and timesteps are broadcast against each other, as by diffusers' schedulers.

        Returns:
            (B, *), in the dtype of `original_samples`. Arithmetic is in float32 or float64, and numbers beyond the
            range of float16 become its largest number.

        Raises:
            ValueError: if `original_samples` are not floating-point, or `timesteps` are integers without a beta
                schedule.
        """
        self._convention.start_was_read = True
        check_samples("original_samples", original_samples)
        sigma = self._sigmas_at(timesteps, original_samples)
        scale = torch.as_tensor(self.parameterization.preconditioning.state_scale(sigma), device=sigma.device)
        return cast_clamped(scale * original_samples + scale * sigma * noise, original_samples.dtype)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the training target of a "v_prediction" network at the state `add_noise(sample, noise, timesteps)`.

        With a beta schedule, or for a network without preconditioning, this is (noise − σ · sample) / √(1 + σ²), as in
        diffusers' schedulers; with `sigma_data` σ_d it is (σ_d · noise − σ / σ_d · sample) / √(σ² + σ_d²). With the
        Student-t preconditioning it is the output whose x̂ is `sample` at the estimated noise level.

        Args:
            sample: (B, *), data.
            noise: (B, *), from `sample_noise`.
            timesteps: () or (B,), as in `add_noise`.

        Returns:
            (B, *), in the dtype of `sample`. Arithmetic is in float32 or float64.

        Raises:
            ValueError: if `sample` is not floating-point, or `timesteps` are integers without a beta schedule.
        """
        check_samples("sample", sample)
        sigma = self._sigmas_at(timesteps, sample)
        if self.parameterization.noise_estimate is not None:
            x = self.add_noise(at_least_float32(sample), noise, timesteps)
            target = self.parameterization.target(sample, x, self.parameterization.noise_level(x, sigma))
            return cast_clamped(target, sample.dtype)
        sigma_data = self.config.sigma_data or 1.0
        scale = (sigma**2 + sigma_data**2) ** -0.5
        return cast_clamped(sigma_data * scale * noise - sigma * scale / sigma_data * sample, sample.dtype)

    def _sigmas_at(self, timesteps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """σ (B, 1, ...) at timesteps () or (B,), in float32 at least."""
        is_numbered = isinstance(timesteps, torch.Tensor) and not timesteps.is_floating_point()
        if is_numbered and self.parameterization.train_sigmas is None:
            raise ValueError(
                f"`timesteps` must be noise levels, as in `scheduler.timesteps`, but are {timesteps.dtype}: a network "
                "without a beta schedule has no numbered timesteps. Take elements of `scheduler.timesteps`, or draw "
                "noise levels."
            )

        def to_device(values: torch.Tensor) -> torch.Tensor:  # through float32, as either device may lack float64
            return values.float().to(like.device).to(torch.promote_types(like.dtype, torch.float32))

        timesteps = append_dims(to_device(torch.as_tensor(timesteps)), like.ndim)
        sigma = torch.as_tensor(self.parameterization.sigma(timesteps), device=like.device)
        if self._rounded_timesteps is None:
            return sigma
        run_timesteps, run_sigmas = map(to_device, self._rounded_timesteps)
        matches = timesteps.unsqueeze(-1) == run_timesteps
        index = matches.to(torch.uint8).argmax(-1)
        run_sigma = run_sigmas.index_select(0, index.flatten()).view(index.shape)  # MPS has no `take`
        return torch.where(matches.any(-1), run_sigma, sigma)
