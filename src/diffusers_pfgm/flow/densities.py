r"""Log-densities of points and divergences of the flow, by the change of variables formula.

Along a field line, with J = ∂x̂/∂x (`solvers.divergence`), the log-density changes by the integral of the divergence
N − tr J over log σ. For a path from x at σ_min to x' at σ_max

    log p(x, σ_min) = log p(x', σ_max) + N log(σ_max/σ_min) − ∫ tr J d log σ.

At σ_max the path is continued to infinity by an expansion (`physics.density`), with x̂ at σ_max and at a smaller noise
level. Its term of second order, the difference to the kernel around x̂, and its trace bound what the expansion omits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ..physics.charges import check_finite
from ..physics.denoiser import Denoiser, slice_kwargs, without_inference_mode
from ..physics.density import shift_beyond
from ..physics.tensors import Generators, working_dtype
from ..schedulers.scheduling_poisson_flow import PoissonFlowScheduler
from ..solvers.adaptive import integrate_density
from ..solvers.divergence import check_divergence, draw_probes, estimate_trace
from ..solvers.reversible import integrate_reversible
from .points import as_dtype_of, check_points, float_dtype
from .results import FlowLogProb

DENSITY_TOLERANCE = 3e-4  # nats
END_RATIO = 2.0  # ratio of the two noise levels from which x̂ is extrapolated beyond σ_max
GRAPH_NUMBERS = 2**16  # largest B · N of a batch with an autograd graph by default; bounds the memory


def even_batch_size(x: torch.Tensor, batch_size: int | None) -> int:
    """The number of points of each batch of x (B, *), about the same for all, as a small last batch costs a whole run.

    Args:
        x: the points, (B, *).
        batch_size: the largest number of points of a batch; None for as many as have `GRAPH_NUMBERS` numbers.
    """
    limit = max(1, GRAPH_NUMBERS // x[0].numel()) if batch_size is None else batch_size
    return math.ceil(len(x) / math.ceil(len(x) / limit))


class Densities:
    """Log-densities and divergences of a model at given points, by probes that are drawn once for all of them.

    Use it outside of inference mode.

    Args:
        model: called like `UNet2DModel`. A model or tensor that was made in inference mode is copied.
        scheduler: defines what the model predicts, and the kernel.
        x: (B, *), in data units.
        model_kwargs: keyword arguments of the model; tensors (B, ...) are split with the batch.
        divergence, num_probes, generator, probe_distribution: see `PoissonFlow.log_prob`.

    Raises:
        ValueError: if `x` is empty, has no batch dimension, or contains NaN or infinity, or an argument of the
            divergence is not allowed.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        scheduler: PoissonFlowScheduler,
        x: torch.Tensor,
        model_kwargs: dict[str, Any],
        divergence: str,
        num_probes: int,
        generator: Generators,
        probe_distribution: str,
    ) -> None:
        check_points("x", x)
        check_divergence(divergence, num_probes, probe_distribution)
        self.points = x.to(working_dtype(x.device), copy=True)  # a copy outside of inference mode, for autograd
        self.probes = None
        if divergence != "exact":
            self.probes = draw_probes(tuple(x.shape), num_probes, probe_distribution, generator, self.points)
        self.model = without_inference_mode(model)
        self.model_kwargs = {name: without_inference_mode(value) for name, value in model_kwargs.items()}
        self.scheduler = scheduler
        self.sigma_max, self.sigma_min = scheduler.sigma_range
        self.x = x
        self.method = divergence

    def log_prob(
        self,
        sigmas: list[float] | None,
        tolerance: float | None,
        step_tolerance: float | None,
        batch_size: int | None = None,
    ) -> FlowLogProb:
        """Log-densities at σ_min, in batches of about the same size.

        Args:
            sigmas: the σ's of fixed steps, from σ_max to σ_min; None for the adaptive solver.
            tolerance: absolute tolerance of the adaptive solver, in nats; None for `DENSITY_TOLERANCE`.
            step_tolerance: relative tolerance of the equation of each fixed step; None for `DENSITY_TOLERANCE`/N.
            batch_size: largest number of points of a batch; None for as many as have `GRAPH_NUMBERS` numbers.

        Raises:
            ValueError: if the model returns NaN or infinity, or a solver fails.
        """
        x = self.x
        tolerance = DENSITY_TOLERANCE if tolerance is None else tolerance
        step_tolerance = DENSITY_TOLERANCE / x[0].numel() if step_tolerance is None else step_tolerance
        batch_size = even_batch_size(x, batch_size)
        results = [
            self._log_prob_of_rows(slice(first, first + batch_size), sigmas, tolerance, step_tolerance)
            for first in range(0, len(x), batch_size)
        ]
        *tensors, calls = zip(*results, strict=True)
        log_probs, truncation, latents = map(torch.cat, tensors)
        count = log_probs.shape[1]
        standard_error = None
        if self.method == "exact" or count > 1:
            standard_error = log_probs.new_zeros(len(x)) if count == 1 else log_probs.std(1) / count**0.5
        return FlowLogProb(log_probs.mean(1), standard_error, truncation, as_dtype_of(latents, x), max(calls))

    def divergence(self, sigma: float) -> torch.Tensor:
        """Estimates (B, P) of the divergence of the velocity (x − x̂)/σ at one noise level."""
        denoiser = self._denoiser(slice(None))
        traces = estimate_trace(lambda y: denoiser(y, sigma), self.points, self.method, self.probes)[1]
        check_finite("model", traces)
        return (self.x[0].numel() - traces) / sigma

    def _denoiser(self, rows: slice) -> Denoiser:
        """The model's x̂ for some rows of the batch."""
        kwargs = slice_kwargs(self.model_kwargs, rows, len(self.x))
        return Denoiser(self.model, self.scheduler.parameterization, float_dtype(self.x), **kwargs)

    def _log_prob_of_rows(
        self, rows: slice, sigmas: list[float] | None, tolerance: float, step_tolerance: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
        """Estimates (B, P) of log p, their truncation (B,), latents (B, *), and the number of network calls."""
        denoiser = self._denoiser(rows)
        x = self.points[rows]
        probes = None if self.probes is None else self.probes[rows]
        size = x[0].numel()

        def integrand(points: torch.Tensor, sigma: float | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return estimate_trace(lambda y: denoiser(y, sigma), points, self.method, probes)

        low = self.sigma_min
        high = self.sigma_max
        if sigmas is None:
            count = 1 if probes is None else probes.shape[1] // (3 if self.method == "hutch++" else 1)
            aug_dim = self.scheduler.kernel.aug_dim
            latents, traces, error = integrate_density(
                integrand, x, low, high, tolerance, count, aug_dim, denoiser.precision(x.device)
            )
        else:
            step_tolerance = max(step_tolerance, denoiser.precision(x.device))
            latents, traces = integrate_reversible(denoiser, integrand, x, sigmas[::-1], step_tolerance)
            error = traces.new_zeros(len(x))
        check_finite("model", torch.cat([latents.flatten(1), traces], dim=1))
        log_end, truncation = self._log_prob_at_sigma_max(denoiser, latents, probes)
        log_probs = log_end + size * math.log(high / low) - traces
        check_finite("model", log_probs)
        return log_probs, error + truncation, latents, denoiser.nfe

    def _log_prob_at_sigma_max(
        self, denoiser: Denoiser, x: torch.Tensor, probes: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Estimates (B, P) of log p at σ_max, and a bound (B,) of the error of the path from σ_max to infinity."""
        sigma = self.sigma_max
        kernel = self.scheduler.kernel
        ratio = min(END_RATIO, sigma / self.sigma_min)
        shift, traces = estimate_trace(lambda x: shift_beyond(denoiser, x, sigma, ratio), x, self.method, probes)
        log_end = kernel.log_prob(x - shift, sigma)
        second_order = log_end - kernel.log_prob(x - denoiser(x, sigma), sigma)
        return log_end.unsqueeze(1) - traces, second_order.abs() + traces.mean(1).abs()
