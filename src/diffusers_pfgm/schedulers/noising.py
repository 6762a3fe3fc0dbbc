"""Noise, prior samples, and noisy states and velocities for the training of a network, at a scheduler's timesteps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..physics.kernel import PoissonKernel
from ..physics.parameterization import Parameterization
from ..physics.tensors import Generators, append_dims
from .sigma_schedule import RunSigmas
from .state_convention import StateConvention

LEAST_SHELL_DIM = 64  # N from which the shell's bias is within 1 %


class NoisingMixin:
    """`sample_noise`, `sample_prior`, `add_noise` and `get_velocity` of a scheduler."""

    config: Any
    kernel: PoissonKernel
    parameterization: Parameterization
    _convention: StateConvention
    _run: RunSigmas
    _sigma_factors: torch.Tensor | None  # (B, 1, ...) with the prior "hemisphere", whose samples have a σ each
    # The timesteps and the σ's of a run whose timesteps are rounded, else None.
    _rounded_timesteps: tuple[torch.Tensor, torch.Tensor] | None

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
        anything but the field, its training noise was limited to the norm σ · max_norm / σ_max at every σ, and the
        noise here is limited to max_norm / σ_max likewise.
        """
        limit = self.config.max_norm
        if limit is not None:
            limit = None if self.config.prediction_type == "field" else limit / self.sigma_range[0]
        return self.kernel.sample(shape, 1.0, generator, device, dtype, limit)

    def sample_prior(
        self,
        shape: Sequence[int],
        generator: Generators = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """Draw states at the first σ of the run; at D = 1 uniform on the hemisphere, projected onto z = z_max.

        Args:
            shape: (B, *).
            generator: one generator, or a list of B of them.
            device: the device of the result.
            dtype: the dtype of the result. A heavy-tailed prior can overflow float16, so keep the state in float32.

        Returns:
            Tensor of `shape`. With `max_norm` each row, in data units, has a norm ≤ `max_norm` · σ_first/σ_max, where
            σ_first is the σ at which the run begins. For a network that predicts the field or has a beta schedule the
            limit is `max_norm` itself; see `sample_noise`. With the `prior` "shell" all norms are √N σ_first. For the
            other priors the samples are on the plane, from which pipelines move them by `move_to_prior`.

        Raises:
            ValueError: if a list of generators has another length than B, or practically no prior sample has a norm
                ≤ `max_norm`.

        Reference:
            PFGM, arXiv 2209.11178, section 3.3. Radii beyond `max_norm` are drawn again, not scaled back.
        """
        max_norm = self.config.max_norm
        if max_norm is not None:
            is_proportional = self.config.prediction_type != "field" and self.parameterization.train_sigmas is None
            share = self._run.sigmas[0] / self.sigma_range[0] if is_proportional else 1.0
            max_norm *= share / self.data_scale(self._run.sigmas[0])
        latents = self.kernel.sample(shape, self.init_noise_sigma, generator, device, dtype, max_norm)
        return self.move_to_prior(latents) if self.config.prior == "shell" else latents

    def prior_of(self, data_dim: int) -> str:
        """The prior from which pipelines start samples of N = `data_dim` numbers: "plane", "shell" or "hemisphere".

        It is `config.prior`; if that is None, "shell" for N ≥ 64 and "plane" for fewer. At D = ∞ and with a beta
        schedule there is only the Gaussian on the plane.
        """
        if math.isinf(self.kernel.aug_dim) or self.parameterization.train_sigmas is not None:
            return "plane"
        return self.config.prior or ("shell" if data_dim >= LEAST_SHELL_DIM else "plane")

    def move_to_prior(self, latents: torch.Tensor) -> torch.Tensor:
        r"""Move latents of the plane along the rays from the data's mean μ to the prior that pipelines start from.

        Far from the data the field lines are rays, and each sample has a noise level s = ‖x − μ‖/√N of its own, so that
        on the plane no common steps suit all samples. All norms are equal on

        - the shell: x = μ + √N σ u for directions u, on the same plane σ. This is exact in many dimensions, where the
          field depends on s only. In few dimensions nearby charges get too many samples;
        - the hemisphere: x = μ + a (x − μ), σ' = a σ with a² = (N + D) / (‖x − μ‖²/σ² + D), another point of the same
          ray, which is exact for every N, but has another σ' for each sample. It is the hemisphere from which PFGM
          (arXiv 2209.11178, section 3.3) projects its prior to the plane.

        Args:
            latents: (B, *), at the first σ of the run.

        Returns:
            (B, *), the state at the first timestep of the run; `latents` itself for the prior "plane". With
            "hemisphere" the scheduler keeps a factor of σ for each sample until `set_timesteps`, and the network must
            be called with `network_timestep`.
        """
        data_dim = latents[0].numel()
        prior = self.prior_of(data_dim)
        if prior == "plane":
            return latents
        mean = self.config.data_mean or 0.0
        centred = latents - mean
        flat = centred.flatten(1).to(torch.promote_types(latents.dtype, torch.float32))
        ratio = append_dims(torch.linalg.vector_norm(flat, dim=1) / self._run.sigmas[0], latents.ndim)
        if prior == "shell":
            tiny = torch.finfo(ratio.dtype).tiny
            return (mean + centred * (math.sqrt(data_dim) / ratio.clamp(min=tiny))).to(latents.dtype)
        aug_dim = self.kernel.aug_dim
        self._sigma_factors = ((data_dim + aug_dim) / (ratio.square() + aug_dim)).sqrt()
        return (mean + centred * self._sigma_factors).to(latents.dtype)

    def sigma_of_samples(self, sigma: Any) -> Any:
        """σ of each sample (B, 1, ...) on the hemisphere, where the run is at σ = `sigma`; otherwise `sigma` itself."""
        return sigma if self._sigma_factors is None else sigma * self._sigma_factors

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the noisy state x + σ · noise, divided by √(1 + σ²) with a beta schedule.

        Args:
            original_samples: (B, *), data x.
            noise: (B, *), from `sample_noise`.
            timesteps: () or (B,), as in `self.timesteps`.

        Returns:
            (B, *), in the dtype of `original_samples`.
        """
        self._convention.start_was_read = True
        sigma = self._sigmas_at(timesteps, original_samples)
        dtype = original_samples.dtype
        scale = torch.as_tensor(self.parameterization.preconditioning.state_scale(sigma), device=sigma.device)
        return scale.to(dtype) * original_samples + (scale * sigma).to(dtype) * noise

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the training target of a "v_prediction" network at the state `add_noise(sample, noise, timesteps)`.

        With a beta schedule, or for a network without preconditioning, this is (noise − σ · sample) / √(1 + σ²), as in
        diffusers' schedulers; with `sigma_data` σ_d it is (σ_d · noise − σ / σ_d · sample) / √(σ² + σ_d²).

        Args:
            sample: (B, *), data.
            noise: (B, *), from `sample_noise`.
            timesteps: () or (B,), as in `self.timesteps`.

        Returns:
            (B, *), in the dtype of `sample`.
        """
        sigma = self._sigmas_at(timesteps, sample)
        dtype = sample.dtype
        sigma_data = self.config.sigma_data or 1.0
        scale = (sigma**2 + sigma_data**2) ** -0.5
        return (sigma_data * scale).to(dtype) * noise - (sigma * scale / sigma_data).to(dtype) * sample

    def _sigmas_at(self, timesteps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """σ (B, 1, ...) at timesteps () or (B,), in float32 at least."""

        def to_device(values: torch.Tensor) -> torch.Tensor:  # through float32, as either device may lack float64
            return values.float().to(like.device).to(torch.promote_types(like.dtype, torch.float32))

        timesteps = append_dims(to_device(torch.as_tensor(timesteps)), like.ndim)
        sigma = torch.as_tensor(self.parameterization.sigma(timesteps))
        if self._rounded_timesteps is None:
            return sigma
        run_timesteps, run_sigmas = map(to_device, self._rounded_timesteps)
        matches = timesteps.unsqueeze(-1) == run_timesteps
        index = matches.to(torch.uint8).argmax(-1)
        run_sigma = run_sigmas.index_select(0, index.flatten()).view(index.shape)  # MPS has no `take`
        return torch.where(matches.any(-1), run_sigma, sigma)
