"""The priors of a scheduler: the plane, from which samples are drawn, and the shell and the hemisphere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..physics.tensors import Generators, append_dims, at_least_float32, rescale_for_squaring
from .noising import NoisingMixin

LEAST_SHELL_DIM = 64  # N from which the shell's bias is within 1 %


class PriorMixin(NoisingMixin):
    """`sample_prior` of a scheduler, and the moves from the plane to its other priors."""

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
            limit is `max_norm` itself; see `sample_noise`. With the `prior` "shell" and finite D, ‖x − μ‖ = √N
            σ_first. For the other priors the samples are on the plane, from which pipelines move them by
            `move_to_prior`; a sampling loop of your own calls it too.

        Raises:
            ValueError: if a list of generators has another length than B, or practically no prior sample has a norm
                ≤ `max_norm`.

        Reference:
            PFGM, arXiv 2209.11178, section 3.3. Radii beyond `max_norm` are drawn again, not scaled back.
        """
        max_norm = self.config.max_norm
        if max_norm is not None:
            is_proportional = self.has_proportional_limit and self.parameterization.train_sigmas is None
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
        on the plane no common steps suit all samples. The samples are moved to

        - the shell, where all norms ‖x' − μ‖ are equal: x' = μ + √N σ u with the direction u of x − μ, on the same
          plane σ. This is exact in many dimensions, where the field depends on s only. In few dimensions charges
          close to μ get too many samples;
        - the hemisphere, where all √(‖x' − μ‖² + D σ'²) are equal: x' = μ + a (x − μ), σ' = a σ with
          a² = (N + D) / (‖x − μ‖²/σ² + D), another point of the same ray, which is exact for every N, but has another
          σ' for each sample. It is the hemisphere from which PFGM (arXiv 2209.11178, section 3.3) projects its prior
          to the plane.

        Args:
            latents: (B, *), at the first σ of the run.

        Returns:
            (B, *), the state at the first timestep of the run; `latents` itself for the prior "plane". With
            "hemisphere" the scheduler keeps a factor of σ for each sample until `set_timesteps`, and the network must
            be called with `network_timestep`.

        Raises:
            ValueError: for the prior "hemisphere", if `set_timesteps` was not called before.
        """
        data_dim = latents[0].numel()
        prior = self.prior_of(data_dim)
        if prior == "plane":
            return latents
        mean = self.config.data_mean or 0.0
        centred = latents - mean
        flat, factor = rescale_for_squaring(at_least_float32(centred.flatten(1)))
        norm = torch.linalg.vector_norm(flat, dim=1) * factor.squeeze(1)
        ratio = append_dims(norm / self._run.sigmas[0], latents.ndim)
        if prior == "shell":
            least = torch.finfo(ratio.dtype).tiny ** 0.5  # μ itself has no direction, and stays where it is
            return (mean + centred * (math.sqrt(data_dim) / ratio.clamp(min=least))).to(latents.dtype)
        if self.num_inference_steps is None:
            raise ValueError(
                "`move_to_prior` was called before `set_timesteps`, which would discard the σ of each sample. Call "
                "`set_timesteps` first."
            )
        aug_dim = self.kernel.aug_dim
        self._latest_estimate = None
        self._sigma_factors = (data_dim + aug_dim) ** 0.5 / torch.hypot(ratio, torch.full_like(ratio, aug_dim**0.5))
        return (mean + centred * self._sigma_factors).to(latents.dtype)

    def sigma_of_samples(self, sigma: Any) -> Any:
        """σ of each sample (B, 1, ...) on the hemisphere, where the run is at σ = `sigma`; otherwise `sigma` itself."""
        return sigma if self._sigma_factors is None else sigma * self._sigma_factors
