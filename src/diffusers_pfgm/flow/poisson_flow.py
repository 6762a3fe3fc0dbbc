"""The flow of a model, on data of any shape: sampling, encoding to latents, decoding, and log-densities."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..physics.charges import check_finite
from ..physics.denoiser import Denoiser, dtype_and_device
from ..physics.parameterization import Parameterization
from ..physics.preconditioning import ZERO_SNR_SIGMA
from ..physics.tensors import Generators, append_dims, working_dtype
from ..schedulers.conversion import check_density, check_field_config
from ..schedulers.scheduling_poisson_flow import PoissonFlowScheduler
from ..schedulers.sigma_steps import check_steps_of_model
from ..schedulers.stepping import scheduler_steps
from ..solvers.adaptive import check_tolerance, integrate_adaptive
from ..solvers.precision import full_precision
from ..solvers.reversible import integrate_reversible, without_integrand
from ..solvers.spacing import geometric_sigmas, knotted_sigmas
from ..utils.checks import check_whole_number
from .densities import Densities
from .points import as_dtype_of, check_points, check_radius, float_dtype
from .results import FlowLatents, FlowLogProb, FlowSamples

NUM_STEPS = 50  # the default number of fixed steps of encode and decode
# The default relative tolerance of the implicit equation of a fixed step. It is small, since encoding amplifies errors
# made near the data.
STEP_TOLERANCE = 1e-6


class PoissonFlow:
    """The invertible map between data at σ_min and the prior at σ_max along a model's field lines.

    - `encode` follows the field lines from data to latents, the points of the prior at σ_max.
    - `decode` is the inverse of `encode`: it follows the field lines from latents back to data at σ_min.
    - `sample` draws latents from the prior and follows their field lines by the scheduler's solver, to samples at
      σ = 0.
    - `log_prob` computes the log-density of data at σ_min, by the change of variables formula.
    - `normalized_field` computes the Poisson field of the model at any point.

    Args:
        model: a network or a `ChargeField`, called like `UNet2DModel`, on data (B, *) with channels first, or on points
            (B, N). A model without a known dtype, such as a lambda, is called in the dtype of the data.
        scheduler: defines what the model predicts, and σ_min and σ_max; may be a diffusers scheduler of the network.

    Raises:
        ValueError: if the scheduler does not solve the ODE of a Poisson flow, begins at infinite σ, or has other
            options than the `ChargeField`.

    Examples:
        >>> from diffusers_pfgm import ChargeField, PoissonFlowScheduler
        >>> charges = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
        >>> flow = PoissonFlow(ChargeField(charges), PoissonFlowScheduler(sigma_min=0.5, sigma_max=5000.0))
        >>> points = torch.tensor([[0.3, 0.4]], dtype=torch.float64)
        >>> latents = flow.encode(points, num_inference_steps=50).latents
        >>> torch.allclose(flow.decode(latents, num_inference_steps=50).sample, points, atol=1e-4)
        True
        >>> flow.log_prob(points).log_prob.round(decimals=2)  # the mean of two kernels
        tensor([-2.8200], dtype=torch.float64)
    """

    def __init__(self, model: Callable[..., Any], scheduler: Any) -> None:
        self.model = model
        self.original_scheduler = scheduler
        # "trailing" begins at the last trained timestep, σ_max. Without a beta schedule the spacing has no effect.
        self.scheduler: PoissonFlowScheduler = PoissonFlowScheduler.from_config(
            PoissonFlowScheduler.from_scheduler(scheduler).config, timestep_spacing="trailing", timesteps_from=None
        )
        check_field_config(getattr(model, "config", None), self.scheduler)
        self.sigma_max, self.sigma_min = self.scheduler.sigma_range
        if self.sigma_max >= ZERO_SNR_SIGMA:
            raise ValueError(
                "`scheduler` begins at infinite sigma (`rescale_betas_zero_snr`), where latents do not depend on the "
                "data. Make one with `rescale_betas_zero_snr=False`."
            )

    @torch.no_grad()
    def sample(
        self,
        shape: Sequence[int] | None = None,
        num_inference_steps: int = 20,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> FlowSamples:
        """Draw latents from the prior of pipelines and follow their field lines to the data, by the scheduler's solver.

        The field lines end at σ = 0, or at σ_min if the scheduler's `final_sigmas_type` is "sigma_min".

        Args:
            shape: (B, *), the shape of the samples; None with `latents`.
            num_inference_steps: number of steps; one network call each for "multistep" and "euler". Defaults to 20.
            generator: one generator, or a list of B of them.
            latents: (B, *), points at σ_max to begin from, for instance from `encode`, in place of random ones. They
                are not moved to the scheduler's `prior`.
            **model_kwargs: passed to the model, such as `class_labels` (B,).

        Returns:
            The samples (B, *), in data units, and the number of network calls.

        Raises:
            ValueError: if not exactly one of `shape` and `latents` is given, `latents` is empty, without a batch
                dimension or not finite, `num_inference_steps` is not allowed, or the scheduler's `sigma_steps` for it
                were fitted to a network of another size.
        """
        if (shape is None) == (latents is None):
            raise ValueError("Pass either the `shape` (B, *) of the samples, or `latents` to begin from.")
        scheduler = PoissonFlowScheduler.from_config(self.scheduler.config)
        model_dtype, device = dtype_and_device(self.model)
        dtype = torch.promote_types(model_dtype or torch.float32, torch.float32)
        if latents is not None:
            check_points("latents", latents)
            device = latents.device
            dtype = torch.promote_types(latents.dtype, dtype)
        check_steps_of_model(self.model, scheduler, num_inference_steps)
        scheduler.set_timesteps(num_inference_steps, device=device)
        if latents is None:
            x = scheduler.move_to_prior(scheduler.sample_prior(shape, generator, device, dtype))
        else:
            x = latents.to(dtype) / scheduler.data_scale(self.sigma_max)
        model = functools.partial(self.model, **model_kwargs)
        for step in scheduler_steps(scheduler, model, x, model_dtype):
            x = step.sample
        return FlowSamples(x * scheduler.data_scale(float(scheduler.sigmas[-1])), len(scheduler.timesteps))

    def encode(
        self,
        x: torch.Tensor,
        num_inference_steps: int = NUM_STEPS,
        tolerance: float | None = None,
        step_tolerance: float = STEP_TOLERANCE,
        **model_kwargs: Any,
    ) -> FlowLatents:
        """Follow the field lines from data at σ_min to the prior at σ_max.

        Args:
            x: (B, *), in data units.
            num_inference_steps: number of fixed steps, a few network calls each, without effect with `tolerance`. The
                steps are reversible: `decode` with the same number returns `x`. Defaults to 50.
            tolerance: relative and absolute tolerance of the adaptive solver (RK45), for x/√(1 + σ²). The adaptive
                solver is closer to the exact solution of the ODE, but not reversible. None, the default, for fixed
                steps.
            step_tolerance: relative tolerance of the implicit equation of each fixed step; a value below the precision
                of the network is raised to it. Defaults to 1e-6.
            **model_kwargs: passed to the model, such as `class_labels` (B,).

        Returns:
            The latents (B, *) at σ_max, in data units and the dtype of `x`, but at least float32, and the number of
            network calls.

        Raises:
            ValueError: if `x` is empty, has no batch dimension, or contains NaN or infinity, `num_inference_steps` or a
                tolerance is not allowed, the model returns NaN or infinity, or a fixed step is too long to be inverted.
        """
        latents, nfe = self._transport(x, True, num_inference_steps, tolerance, step_tolerance, model_kwargs)
        return FlowLatents(latents, nfe)

    def decode(
        self,
        latents: torch.Tensor,
        num_inference_steps: int = NUM_STEPS,
        tolerance: float | None = None,
        step_tolerance: float = STEP_TOLERANCE,
        **model_kwargs: Any,
    ) -> FlowSamples:
        """Follow the field lines from latents at σ_max to data at σ_min, the inverse of `encode`.

        Unlike `sample`, it makes no last step from σ_min to 0.

        Args:
            latents: (B, *), points at σ_max, in data units.
            num_inference_steps, tolerance, step_tolerance, **model_kwargs: see `encode`.

        Returns:
            The points (B, *) at σ_min, in data units and the dtype of `latents`, but at least float32, and the number
            of network calls.

        Raises:
            ValueError: if `latents` is empty, has no batch dimension, or contains NaN or infinity; otherwise see
                `encode`.
        """
        sample, nfe = self._transport(latents, False, num_inference_steps, tolerance, step_tolerance, model_kwargs)
        return FlowSamples(sample, nfe)

    @full_precision()
    @torch.inference_mode(False)
    @torch.no_grad()
    def log_prob(
        self,
        x: torch.Tensor,
        num_inference_steps: int | None = None,
        divergence: str = "exact",
        num_probes: int = 1,
        generator: Generators = None,
        probe_distribution: str = "rademacher",
        tolerance: float | None = None,
        step_tolerance: float | None = None,
        batch_size: int | None = None,
        **model_kwargs: Any,
    ) -> FlowLogProb:
        """Compute log-densities at σ_min: the prior's log-density plus the integral of the divergence along the path.

        The field lines are followed from the data to σ_max, and from there to infinity by the series expansion of a
        field far from its data. At infinity the prior is the whole kernel around 0, also if the scheduler's `max_norm`
        limits the samples that are drawn from it. TF32 and autocast are disabled during the computation.

        Args:
            x: (B, *), in data units.
            num_inference_steps: number of fixed steps, see `encode`. Their error is of second order, and is not
                estimated. None for the adaptive solver.
            divergence: "exact" (N vector-Jacobian products per network call, each of about the cost of a network call),
                or the estimators "hutchinson" or "hutch++". Defaults to "exact".
            num_probes: number of products per network call of an estimator; a multiple of 3 for "hutch++". Defaults to
                1.
            generator: generator of the probes, or a list of B of them.
            probe_distribution: "rademacher" or "gaussian". Defaults to "rademacher".
            tolerance: absolute tolerance of the adaptive solver, in nats, by default 3e-4. It bounds the error of a
                log-density except for the end at σ_max, whose error `truncation` contains together with the solver's
                error estimate. If the network is less precise, `truncation` is larger. None with `num_inference_steps`.
            step_tolerance: relative tolerance of the equation of each fixed step, by default 3e-4/N. It is at least the
                precision of the network.
            batch_size: the largest number of points that are computed at once, by default as many as have 65,536
                numbers, since each needs the memory of a backward pass. On a GPU with free memory more are faster.
            **model_kwargs: passed to the model; tensors (B, ...) are split with the batch.

        Returns:
            The log-densities (B,) in nats, with estimates of their errors, the latents (B, *) and the number of network
            calls, see `FlowLogProb`.

        Raises:
            ValueError: if the model is guided or the scheduler stochastic, which have no such density; if both
                `num_inference_steps` and `tolerance` are given; if an argument has a value that is not allowed; or if
                the model returns NaN or infinity.

        Reference:
            PFGM, arXiv 2209.11178, section 3.3; here with the normalization of the kernel in R^N for any N and D.
        """
        check_density(self.model, self.original_scheduler)
        if num_inference_steps is not None and tolerance is not None:
            raise ValueError(
                "`tolerance` is for the adaptive solver. Leave it out, or leave out `num_inference_steps`."
            )
        if tolerance is not None:
            check_tolerance(tolerance)
        probe_options = divergence, num_probes, generator, probe_distribution
        densities = Densities(self.model, self.scheduler, x, model_kwargs, *probe_options)
        if step_tolerance is not None:
            check_tolerance(step_tolerance, "step_tolerance")
        sigmas = None if num_inference_steps is None else self._step_sigmas(num_inference_steps)
        if batch_size is not None:
            check_whole_number("batch_size", batch_size, 1)
        return densities.log_prob(sigmas, tolerance, step_tolerance, batch_size)

    @full_precision()
    @torch.inference_mode(False)
    def divergence(
        self,
        x: torch.Tensor,
        sigma: float,
        divergence: str = "exact",
        num_probes: int = 1,
        generator: Generators = None,
        probe_distribution: str = "rademacher",
        **model_kwargs: Any,
    ) -> torch.Tensor:
        """Compute the divergence of the velocity dx/dσ = (x − x̂)/σ at one noise level.

        Args:
            x: (B, *), in data units.
            sigma: the noise level σ, from σ_min to σ_max.
            divergence, num_probes, generator, probe_distribution, **model_kwargs: see `log_prob`.

        Returns:
            (B, P), independent estimates, whose mean is the estimate. P is 1 for "exact", the number of probes for
            "hutchinson", and a third of it for "hutch++".

        Raises:
            ValueError: see `log_prob`; also if `sigma` is not between σ_min and σ_max.
        """
        check_density(self.model, self.original_scheduler)
        probe_options = divergence, num_probes, generator, probe_distribution
        densities = Densities(self.model, self.scheduler, x, model_kwargs, *probe_options)
        if not self.sigma_min <= sigma <= self.sigma_max:
            raise ValueError(
                f"`sigma` must be a noise level of the model, from {self.sigma_min:.6g} to {self.sigma_max:.6g}, but "
                f"is {sigma}."
            )
        return densities.divergence(sigma)

    @full_precision()
    @torch.no_grad()
    def normalized_field(
        self, x: torch.Tensor, z: float | torch.Tensor, gamma: float = 5.0, **model_kwargs: Any
    ) -> torch.Tensor:
        """Compute the normalized Poisson field of the model, √N (x̂ − x, −z)/(‖(x̂ − x, z)‖ + γ), from its x̂.

        The model may have any prediction type and preconditioning. For a `ChargeField` at D = 1 the result equals that
        of the function `normalized_field` for its charges. At another D it differs from the output of a network that
        predicts the field, which has σ in place of z.

        Args:
            x: (B, *), in data units.
            z: the augmented radius z = σ√D > 0 of the points, a number or (B,), in data units. A network was trained
                for σ from σ_min to σ_max.
            gamma: γ ≥ 0, in data units, independent of the γ of a network that predicts the field. Defaults to 5.
            **model_kwargs: passed to the model, such as `class_labels` (B,).

        Returns:
            (B, N + 1), with the z component in the last column, in the dtype of x, but at least float32.

        Raises:
            ValueError: if `x` is empty, has no batch dimension, or contains NaN or infinity, `z` is not a finite
                number > 0 or has another shape, `gamma` is negative or not finite, the scheduler's `aug_dim` is
                infinite, or the model returns NaN or infinity.

        Reference:
            PFGM, arXiv 2209.11178, section 3.2; for D > 1 with the augmented radius of PFGM++, arXiv 2302.04265.
        """
        check_points("x", x)
        field = Parameterization("field", gamma)
        aug_dim = self.scheduler.kernel.aug_dim
        if math.isinf(aug_dim):
            raise ValueError(
                "`aug_dim` of the scheduler must be finite for a field at the radius z = σ√D, but is None (infinity). "
                "A diffusion model has no Poisson field."
            )
        radius = check_radius(z, x)
        points = x.to(radius.dtype)
        denoiser = Denoiser(self.model, self.scheduler.parameterization, float_dtype(x), **model_kwargs)
        sigma = radius / math.sqrt(aug_dim)
        denoised = denoiser(points, append_dims(sigma, x.ndim) if sigma.ndim else sigma)
        check_finite("model", denoised)
        # As points (B, N), which have N channels, the samples have a single z component.
        radii = radius.expand(len(x)).unsqueeze(1)
        return as_dtype_of(field.target(denoised.flatten(1), points.flatten(1), radii), x)

    @full_precision()
    @torch.no_grad()
    def _transport(
        self,
        x: torch.Tensor,
        is_encoding: bool,
        num_inference_steps: int,
        tolerance: float | None,
        step_tolerance: float,
        model_kwargs: dict[str, Any],
    ) -> tuple[torch.Tensor, int]:
        """Follow the field lines of x (B, *) from σ_min to σ_max if `is_encoding`, otherwise back.

        Returns:
            The points (B, *) at the other end, and the number of network calls.
        """
        check_points("x" if is_encoding else "latents", x)
        check_tolerance(step_tolerance, "step_tolerance")
        denoiser = Denoiser(self.model, self.scheduler.parameterization, float_dtype(x), **model_kwargs)
        points = x.to(working_dtype(x.device))
        precision = denoiser.precision(x.device)
        if tolerance is not None:
            check_tolerance(tolerance)
            start, stop = (self.sigma_min, self.sigma_max)[:: 1 if is_encoding else -1]
            end = integrate_adaptive(denoiser, points, start, stop, max(tolerance, precision))
        else:
            sigmas = self._step_sigmas(num_inference_steps)[:: -1 if is_encoding else 1]
            step_tolerance = max(step_tolerance, precision)
            end, _ = integrate_reversible(denoiser, without_integrand(denoiser), points, sigmas, step_tolerance)
        check_finite("model", end)
        return as_dtype_of(end, x), denoiser.nfe

    def _step_sigmas(self, num_inference_steps: int) -> list[float]:
        """Return the n + 1 σ's of n fixed steps, from σ_max to σ_min, by the scheduler's knots or in equal ratios."""
        count = check_whole_number("num_inference_steps", num_inference_steps, 1) + 1
        knots = self.scheduler.config.sigma_knots
        return knotted_sigmas(knots, count) if knots else geometric_sigmas(self.sigma_max, self.sigma_min, count)
