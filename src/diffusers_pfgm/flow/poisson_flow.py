"""The flow itself, on data of any kind: down to samples, up to latents, and the density that it carries."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..physics.charges import check_finite
from ..physics.denoiser import Denoiser, dtype_and_device, slice_kwargs, without_inference_mode
from ..physics.density import shift_beyond
from ..physics.preconditioning import ZERO_SNR_SIGMA
from ..physics.tensors import Generators, working_dtype
from ..schedulers.conversion import check_density, check_field_config
from ..schedulers.scheduling_poisson_flow import PoissonFlowScheduler
from ..schedulers.stepping import scheduler_steps
from ..solvers.adaptive import check_tolerance, integrate_adaptive, integrate_density
from ..solvers.divergence import check_divergence, draw_probes, estimate_trace
from ..solvers.precision import without_tf32
from ..solvers.reversible import integrate_reversible, without_integrand
from ..solvers.spacing import geometric_sigmas, knotted_sigmas
from ..utils.checks import check_whole_number
from .results import FlowLatents, FlowLogProb, FlowSamples

NUM_STEPS = 50  # fixed steps of encode and decode
STEP_TOLERANCE = 1e-6  # of their equations; encoding amplifies errors made near the data
DENSITY_TOLERANCE = 3e-4  # nats
END_RATIO = 2.0  # of the two noise levels that tell how x̂ goes on beyond σ_max
GRAPH_NUMBERS = 2**16  # of data whose passes back through the network are prepared at once: what memory is spent on


class PoissonFlow:
    """The invertible map between data at σ_min and the prior at σ_max that a model's field lines make.

    Args:
        model: called like `UNet2DModel`, on data (B, *) with channels first, or points (B, N); a network or a
            `ChargeField`. One that does not say its dtype, such as a lambda, is called in that of the data.
        scheduler: says what the model predicts and between which heights; a scheduler of diffusers that fits it, too.

    Raises:
        ValueError: for a scheduler that follows no Poisson flow, begins at infinite σ, or is of another field than the
            `ChargeField`.

    Example:
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
        # "trailing" begins at the last trained timestep, σ_max; only a beta schedule's networks have another spacing.
        self.model, self.sampler = model, scheduler
        self.scheduler: PoissonFlowScheduler = PoissonFlowScheduler.from_config(
            PoissonFlowScheduler.from_scheduler(scheduler).config, timestep_spacing="trailing", timesteps_from=None
        )
        check_field_config(getattr(model, "config", None), self.scheduler)
        self.sigma_max, self.sigma_min = self.scheduler.sigma_range
        if self.sigma_max >= ZERO_SNR_SIGMA:
            raise ValueError(
                "`scheduler` begins at infinite sigma (`rescale_betas_zero_snr`), from which no point is told from "
                "another. Make one with `rescale_betas_zero_snr=False`."
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
        """Draw from the prior at σ_max and follow the field lines by the scheduler's solver.

        They end at σ = 0, or at σ_min where the scheduler's `final_sigmas_type` says so.

        Args:
            shape: (B, *); not needed with `latents`.
            num_inference_steps: steps, one call each for "multistep" and "euler".
            generator: one generator, or a list of B of them.
            latents: (B, *), points at σ_max, of `encode` for instance, in place of draws.
            **model_kwargs: given to the model, such as `class_labels` (B,).

        Raises:
            ValueError: unless one of `shape` and `latents` is given, or if an argument does not fit.
        """
        if (shape is None) == (latents is None):
            raise ValueError("Pass either the `shape` (B, *) of the samples, or `latents` to begin from.")
        scheduler = PoissonFlowScheduler.from_config(self.scheduler.config)
        model_dtype, device = dtype_and_device(self.model)
        dtype = torch.promote_types(model_dtype or torch.float32, torch.float32)
        if latents is not None:
            _check_points("latents", latents)
            device, dtype = latents.device, torch.promote_types(latents.dtype, dtype)
        scheduler.set_timesteps(num_inference_steps, device=device)
        if latents is None:
            x = scheduler.sample_prior(shape, generator, device, dtype)
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
        """Follow the field lines from data at σ_min up to the prior at σ_max.

        Args:
            x: (B, *), in data units.
            num_inference_steps: number of fixed steps, a few network calls each. The steps are reversible: `decode`
                with as many returns to `x`.
            tolerance: relative error of the adaptive solver (RK45), in place of `num_inference_steps`. It is closer to
                the differential equation, but not reversible. None for fixed steps.
            step_tolerance: how closely the equation of each fixed step is solved, relative. No more than the precision
                of the network is reached.
            **model_kwargs: given to the model, such as `class_labels` (B,).

        Raises:
            ValueError: if `x` holds NaN or infinity, the model returns them, or a fixed step is too long to be undone.
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
        """The inverse of `encode`: from the prior at σ_max down to σ_min, without a last denoising. See there."""
        sample, nfe = self._transport(latents, False, num_inference_steps, tolerance, step_tolerance, model_kwargs)
        return FlowSamples(sample, nfe)

    @without_tf32()
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
        **model_kwargs: Any,
    ) -> FlowLogProb:
        """Log-density of the flow at σ_min, by the change of variables along the way up and the prior's density.

        The flow is followed to σ_max, and from there to infinity by the series of a field far from its data, where the
        prior is the whole kernel around 0, also where the scheduler's `max_norm` limits what is drawn from it. Many
        points are taken in parts, so that memory stays bounded. TF32 is switched off meanwhile.

        Args:
            x: (B, *), in data units.
            num_inference_steps: number of fixed steps as in `encode`, whose error is of second order and not estimated.
                None for the adaptive solver.
            divergence: "exact" (N products vᵀJ a call, each about a plain call), "hutchinson" or "hutch++".
            num_probes: products a call of the other two; "hutch++" takes multiples of 3.
            generator: of the probes, one, or a list of B of them.
            probe_distribution: "rademacher" or "gaussian".
            tolerance: of the adaptive solver, 3e-4 nats by default: the largest error of a log-density, except for the
                error of ending at σ_max, which `truncation` reports together with the solver's own estimate. Less than
                the precision of the network is not reached, and `truncation` says so. Not with `num_inference_steps`.
            **model_kwargs: given to the model; tensors (B, ...) are taken in the same parts.

        Raises:
            ValueError: for a guided model or a stochastic scheduler, which have no such density, or if an argument does
                not fit.

        Reference:
            PFGM, arXiv 2209.11178, section 3.3; the prior's constant is that of R^N at height r, for any N and D.
        """
        check_density(self.model, self.sampler)
        if num_inference_steps is not None and tolerance is not None:
            raise ValueError(
                "`tolerance` is for the adaptive solver. Leave it out, or leave out `num_inference_steps`."
            )
        tolerance = DENSITY_TOLERANCE if tolerance is None else tolerance
        check_tolerance(tolerance)
        points, probes = _prepared(x, divergence, num_probes, generator, probe_distribution)
        model, dtype = without_inference_mode(self.model), _dtype_of(x)
        model_kwargs = {name: without_inference_mode(value) for name, value in model_kwargs.items()}
        size, found = max(1, GRAPH_NUMBERS // x[0].numel()), []
        for first in range(0, len(x), size):
            rows = slice(first, first + size)
            options, part = slice_kwargs(model_kwargs, rows, len(x)), None if probes is None else probes[rows]
            denoiser = Denoiser(model, self.scheduler.parameterization, dtype, **options)
            found.append(self._log_prob(denoiser, points[rows], num_inference_steps, divergence, part, tolerance))
        log_probs, truncation, latents = (torch.cat(each) for each in list(zip(*found, strict=True))[:3])
        count, error = log_probs.shape[1], None
        if divergence == "exact" or count > 1:
            error = log_probs.new_zeros(len(x)) if count == 1 else log_probs.std(1) / count**0.5
        nfe = max(calls for *_, calls in found)
        return FlowLogProb(log_probs.mean(1), error, truncation, _returned(latents, x), nfe)

    def _log_prob(
        self,
        denoiser: Denoiser,
        x: torch.Tensor,
        num_inference_steps: int | None,
        divergence: str,
        probes: torch.Tensor | None,
        tolerance: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
        """Estimates (B, P) of log p, the truncation (B,), latents (B, *), calls."""
        size = x[0].numel()

        def observe(points: torch.Tensor, sigma: float | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return estimate_trace(lambda given: denoiser(given, sigma), points, divergence, probes)

        kernel, low, high = self.scheduler.kernel, self.sigma_min, self.sigma_max
        if num_inference_steps is None:
            count = 1 if probes is None else probes.shape[1] // (3 if divergence == "hutch++" else 1)
            latents, traces, error = integrate_density(
                observe, x, low, high, tolerance, count, kernel.aug_dim, denoiser.precision(x.device)
            )
        else:
            sigmas = self._step_sigmas(num_inference_steps)
            step_tolerance = max(DENSITY_TOLERANCE / size, denoiser.precision(x.device))
            latents, traces = integrate_reversible(denoiser, observe, x, sigmas[::-1], step_tolerance)
            error = traces.new_zeros(len(x))
        check_finite("model", torch.cat([latents.flatten(1), traces], dim=1))
        log_end, rest = self._log_prob_at_the_end(denoiser, latents, divergence, probes)
        log_probs = log_end + size * math.log(high / low) - traces
        check_finite("model", log_probs)
        return log_probs, error + rest, latents, denoiser.nfe

    def _log_prob_at_the_end(
        self, denoiser: Denoiser, x: torch.Tensor, divergence: str, probes: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Estimates (B, P) of log p at σ_max, and what the way from there to infinity may still add (B,)."""
        sigma, kernel = self.sigma_max, self.scheduler.kernel
        ratio = min(END_RATIO, sigma / self.sigma_min)
        shift, traces = estimate_trace(lambda x: shift_beyond(denoiser, x, sigma, ratio), x, divergence, probes)
        log_end = kernel.log_prob(x - shift, sigma)
        second_order = log_end - kernel.log_prob(x - denoiser(x, sigma), sigma)
        return log_end.unsqueeze(1) - traces, second_order.abs() + traces.mean(1).abs()

    @without_tf32()
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
        """Estimates of the divergence of dx/dσ = (x − x̂)/σ at one height, whose mean is the estimate.

        Args:
            x: (B, *), in data units.
            sigma: the height, from σ_min to σ_max.
            divergence, num_probes, generator, probe_distribution, **model_kwargs: as in `log_prob`.

        Returns:
            (B, P), one for each probe; P = 1 for "exact", a third of the probes for "hutch++".

        Raises:
            ValueError: for what `log_prob` refuses, or if `sigma` is beyond the heights of the model.
        """
        check_density(self.model, self.sampler)
        points, probes = _prepared(x, divergence, num_probes, generator, probe_distribution)
        if not self.sigma_min <= sigma <= self.sigma_max:
            raise ValueError(
                f"`sigma` must be a height of the model, from {self.sigma_min:.6g} to {self.sigma_max:.6g}, but is "
                f"{sigma}."
            )
        model_kwargs = {name: without_inference_mode(value) for name, value in model_kwargs.items()}
        model, parameterization = without_inference_mode(self.model), self.scheduler.parameterization
        denoiser = Denoiser(model, parameterization, _dtype_of(x), **model_kwargs)
        traces = estimate_trace(lambda given: denoiser(given, sigma), points, divergence, probes)[1]
        return (x[0].numel() - traces) / sigma

    @without_tf32()
    @torch.no_grad()
    def _transport(
        self,
        x: torch.Tensor,
        up: bool,
        num_inference_steps: int,
        tolerance: float | None,
        step_tolerance: float,
        model_kwargs: dict[str, Any],
    ) -> tuple[torch.Tensor, int]:
        """Points (B, *) at the other end of the flow, and the network calls."""
        _check_points("x" if up else "latents", x)
        check_tolerance(step_tolerance, "step_tolerance")
        denoiser = Denoiser(self.model, self.scheduler.parameterization, _dtype_of(x), **model_kwargs)
        points = x.to(working_dtype(x.device))
        precision = denoiser.precision(x.device)
        if tolerance is not None:
            check_tolerance(tolerance)
            start, stop = (self.sigma_min, self.sigma_max) if up else (self.sigma_max, self.sigma_min)
            end = integrate_adaptive(denoiser, points, start, stop, max(tolerance, precision))
        else:
            sigmas = self._step_sigmas(num_inference_steps)[:: -1 if up else 1]
            step_tolerance = max(step_tolerance, precision)
            end, _ = integrate_reversible(denoiser, without_integrand(denoiser), points, sigmas, step_tolerance)
        check_finite("model", end)
        return _returned(end, x), denoiser.nfe

    def _step_sigmas(self, num_inference_steps: int) -> list[float]:
        """One σ more than steps, from σ_max to σ_min: by the scheduler's knots, else in equal ratios."""
        count = check_whole_number("num_inference_steps", num_inference_steps, 1) + 1
        knots = self.scheduler.config.sigma_knots
        return knotted_sigmas(knots, count) if knots else geometric_sigmas(self.sigma_max, self.sigma_min, count)


def _check_points(name: str, x: torch.Tensor) -> None:
    """Raises ValueError unless x is a batch (B, *) of finite points."""
    if x.ndim < 2 or not x.numel():
        raise ValueError(
            f"`{name}` must have the shape (B, *) of one point or more, but has {tuple(x.shape)}. A single point "
            "(N,) is `x.unsqueeze(0)`."
        )
    check_finite(name, x)


def _dtype_of(x: torch.Tensor) -> torch.dtype | None:
    """Of a model that does not tell its own, if the data has one for it."""
    return x.dtype if x.is_floating_point() else None


def _returned(points: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Points in the dtype that the caller gave, but in no narrower one than float32: the prior is heavy-tailed."""
    return points.to(torch.promote_types(given.dtype, torch.float32))


def _prepared(
    x: torch.Tensor, divergence: str, num_probes: int, generator: Generators, distribution: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """x in the working dtype, and the probes of a divergence that takes any."""
    _check_points("x", x)
    check_divergence(divergence, num_probes, distribution)
    points = x.to(working_dtype(x.device), copy=True)  # one that autograd may follow, also under inference mode
    if divergence == "exact":
        return points, None
    return points, draw_probes(tuple(points.shape), num_probes, distribution, generator, points)
