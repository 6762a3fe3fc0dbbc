r"""Posterior samples by Markov chains over the latent, which an invertible flow makes exact.

A sample x is a function of its latent x_T alone, and the latent's prior is a Gaussian scale mixture (see
`physics/kernel.py`),

    x_T = σ_max g √(D / χ²),        g ~ N(0, I_N),        χ² ~ χ²_D.

So given a measurement y of x, p(g, χ² | y) ∝ L(x(x_T)) p(g) p(χ²), L the likelihood: no approximation but the solver's,
and no gradient. A sweep of a chain makes three moves, each of which leaves that density as it is:

1. χ² anew, where x_T stays: p(χ² | x_T) ∝ χ²^((N+D)/2 − 1) exp(−χ² (1 + ‖x_T‖² / (D σ_max²)) / 2), a gamma density, and
   L does not change, so that it costs nothing. g = x_T √(χ² / D) / σ_max follows.
2. g by elliptical slice sampling (Murray, Adams and MacKay, arXiv 1001.0175): with ν ~ N(0, I) and log u of a uniform
   u, the angles θ of g cos θ + ν sin θ are searched, in a bracket that shrinks towards θ = 0, for one with
   log L > log L(now) + log u. It has no step size to tune.
3. χ² by a proposal from its prior with g as it is, taken if log L > log L(now) + log u (Metropolis).

At D = ∞ only the second remains. Both tests are the same, so chains in different moves share each decoding: one that
has found its next state goes on at once, while others still search. Where the prior is limited to a radius
(`max_norm`), L is 0 beyond it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..flow.poisson_flow import PoissonFlow
from ..physics.charges import check_finite
from ..physics.denoiser import Denoiser, slice_kwargs
from ..physics.tensors import Generators, draw
from ..schedulers.scheduling_poisson_flow import PoissonFlowScheduler
from ..utils.checks import check_whole_number

START_STEPS = 30
CLOSED = 1e-5  # of a bracket, in radians
INSIDE = 1 - 1e-5  # of a limit, what float32 still tells from it

LogLikelihood = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (b,) from samples (b, *) and their rows (b,)


@dataclass
class LatentSamples:
    """The ends of Markov chains.

    Attributes:
        sample: (B, *), in data units, one of each chain.
        latents: (B, *), where they come from, at σ_max.
        log_likelihood: (B,), up to a constant.
        nfe: network calls, each of the chains that were still under way.
        decodes_per_sweep: mean number of decodings of a chain in a sweep.
        acceptance: share of proposals for χ² that were taken; 1 at D = ∞, where there are none.
    """

    sample: torch.Tensor
    latents: torch.Tensor
    log_likelihood: torch.Tensor
    nfe: int
    decodes_per_sweep: float
    acceptance: float


class LatentSampler:
    """Chains over the latents of a flow, one for each sample.

    Args:
        flow: whose samples are judged.
        log_likelihood: of samples (b, *), given with their rows (b,) of the batch, in nats up to a constant.
        generator: one generator, or a list of B of them, which makes a chain the same in any batch.
        num_inference_steps: of a decoding.
        **model_kwargs: given to the model, such as `class_labels` (B,).

    Reference:
        Murray, Adams and MacKay, Elliptical slice sampling, arXiv 1001.0175, figure 2.
    """

    def __init__(
        self,
        flow: PoissonFlow,
        log_likelihood: LogLikelihood,
        generator: Generators = None,
        num_inference_steps: int = 15,
        **model_kwargs: Any,
    ) -> None:
        self.flow, self.log_likelihood, self.generator = flow, log_likelihood, generator
        self.num_inference_steps, self.model_kwargs = num_inference_steps, model_kwargs
        self.aug_dim, self.max_norm = flow.scheduler.kernel.aug_dim, flow.scheduler.config.max_norm

    def __call__(
        self, latents: torch.Tensor, num_sweeps: int = 40, callback: Callable[[int], Any] | None = None
    ) -> LatentSamples:
        """Run every chain for `num_sweeps` sweeps.

        Args:
            latents: (B, *), where the chains begin, at σ_max.
            num_sweeps: a whole number ≥ 1.
            callback: called with the number of sweeps that all chains have made, after each decoding.

        Raises:
            ValueError: if `num_sweeps` is not such a number, or a chain begins where its likelihood is not a number.
        """
        num_sweeps = check_whole_number("num_sweeps", num_sweeps, 1)
        finite = math.isfinite(self.aug_dim)
        every = torch.arange(len(latents), device=latents.device)
        latents, (samples, levels, nfe) = latents.clone(), self.decode(latents, every, len(latents))
        check_finite("log_likelihood", levels.unsqueeze(1))

        # What a chain is about to do: move by an angle in a bracket, or, at the angle 0, to another χ².
        gaussian, direction = torch.zeros_like(latents.flatten(1)), torch.zeros_like(latents.flatten(1))
        chi2, angle, low, high = (torch.zeros_like(gaussian[:, :1]) for _ in range(4))
        threshold, radial = torch.zeros_like(levels), torch.ones_like(levels, dtype=torch.bool)
        sweeps, decodes, accepted_radii = torch.zeros_like(every), 0, 0

        begins = every
        while True:
            # 1. and 2. begin for chains that are at the start of a sweep, 3. for those in its midst.
            radial[begins] = ~radial[begins] & finite
            threshold[begins] = levels[begins] + self._draw(torch.rand, begins, 1, latents).flatten().log()
            rows = begins[radial[begins]]
            angle[rows], chi2[rows] = 0, self._chi2(rows, self.aug_dim / 2, latents)
            rows = begins[~radial[begins]]
            gaussian[rows], chi2[rows] = self._split(latents[rows], rows)
            direction[rows] = self._draw(torch.randn, rows, gaussian.shape[1], latents)
            angle[rows] = high[rows] = 2 * math.pi * self._draw(torch.rand, rows, 1, latents)
            low[rows] = high[rows] - 2 * math.pi

            rows = (sweeps < num_sweeps).nonzero().flatten()
            if not len(rows):
                break
            moved = gaussian[rows] * angle[rows].cos() + direction[rows] * angle[rows].sin()
            points = self._join(moved, chi2[rows]).view_as(latents[rows])
            found, found_levels, calls = self.decode(points, rows, len(latents))
            nfe, decodes = nfe + calls, decodes + len(rows)

            accepted = found_levels > threshold[rows]
            taken = rows[accepted]
            gaussian[taken], latents[taken] = moved[accepted], points[accepted]
            samples[taken], levels[taken] = found[accepted], found_levels[accepted]
            accepted_radii += int(radial[taken].sum())

            # A bracket as good as closed has lost its chain's own state to rounding: it stays there.
            ended = accepted | radial[rows] | (high[rows] - low[rows] < CLOSED).flatten()
            searching = rows[~ended]
            behind = angle[searching] < 0
            low[searching] = torch.where(behind, angle[searching], low[searching])
            high[searching] = torch.where(behind, high[searching], angle[searching])
            share = self._draw(torch.rand, searching, 1, latents)
            angle[searching] = torch.lerp(low[searching], high[searching], share)

            begins = rows[ended]
            sweeps[begins] += (radial[begins] | (not finite)).long()
            if callback is not None:
                callback(int(sweeps.min()))
        total = len(latents) * num_sweeps
        return LatentSamples(samples, latents, levels, nfe, decodes / total, accepted_radii / total if finite else 1.0)

    @torch.no_grad()
    def encode(self, samples: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Latents (B, *), within the scheduler's `max_norm`, that decode to about these samples, and the calls.

        A start of a chain needs no more than Euler steps upwards, which have no equation to solve. Where they lead to
        no finite number the chain begins at a draw from the prior.
        """
        scheduler, limit = PoissonFlowScheduler.from_config(self.flow.scheduler.config), self.max_norm
        scheduler.set_timesteps(START_STEPS)
        heights = scheduler.sigmas[scheduler.sigmas > 0].flip(0).tolist()
        denoiser, x = Denoiser(self.flow.model, scheduler.parameterization, **self.model_kwargs), samples
        for sigma, target in itertools.pairwise(heights):
            x = torch.lerp(denoiser(x, sigma), x, target / sigma)
        norms = torch.linalg.vector_norm(x.flatten(1), dim=1).view(-1, *[1] * (x.ndim - 1))
        kernel, sigma = self.flow.scheduler.kernel, self.flow.sigma_max
        prior = kernel.sample(x.shape, sigma, self.generator, x.device, x.dtype, limit)
        within = 1.0 if limit is None else (INSIDE * limit / norms).clamp(max=1)
        return torch.where(norms.isfinite(), within * x, prior), denoiser.nfe

    def decode(self, latents: torch.Tensor, rows: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Samples of latents (b, *) in these rows of a batch of `count`, their log-likelihoods (b,), and the calls."""
        options = slice_kwargs(self.model_kwargs, rows, count)
        output = self.flow.sample(None, self.num_inference_steps, latents=latents, **options)
        levels = self.log_likelihood(output.sample, rows).nan_to_num(nan=-math.inf)
        if self.max_norm is not None:
            beyond = latents.flatten(1).norm(dim=1) > self.max_norm
            levels = levels.masked_fill(beyond, -math.inf)
        return output.sample, levels, output.nfe

    def _split(self, latents: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """g (b, N) and χ² (b, 1), drawn where their latents are given."""
        scaled = latents.flatten(1) / self.flow.sigma_max
        if math.isinf(self.aug_dim):
            return scaled, torch.ones_like(scaled[:, :1])
        rate = 1 + scaled.square().sum(1, keepdim=True) / self.aug_dim
        chi2 = self._chi2(rows, (scaled.shape[1] + self.aug_dim) / 2, latents) / rate
        return scaled * (chi2 / self.aug_dim).sqrt(), chi2

    def _join(self, gaussian: torch.Tensor, chi2: torch.Tensor) -> torch.Tensor:
        """x_T (b, N) of g and χ²."""
        radius = 1.0 if math.isinf(self.aug_dim) else (self.aug_dim / chi2).sqrt()
        limit = torch.finfo(gaussian.dtype).max
        return (self.flow.sigma_max * radius * gaussian).clamp(-limit, limit)

    def _chi2(self, rows: torch.Tensor, half: float, like: torch.Tensor) -> torch.Tensor:
        """χ² (b, 1) of 2 · `half` degrees of freedom."""

        def gamma(shape: tuple[int, ...], *, generator: torch.Generator | None, device: torch.device) -> torch.Tensor:
            halves = torch.full(shape, half, device=device, dtype=torch.float64)
            return 2 * torch._standard_gamma(halves, generator=generator).to(like.dtype)

        return self._draw(gamma, rows, 1, like).clamp(min=torch.finfo(like.dtype).tiny)

    def _draw(
        self, sampler: Callable[..., torch.Tensor], rows: torch.Tensor, size: int, like: torch.Tensor
    ) -> torch.Tensor:
        """(b, size) of a sampler, each row from its own generator where there is a list of them."""
        source = self.generator
        if not len(rows):
            return like.new_zeros(0, size)
        if source is not None and not isinstance(source, torch.Generator):
            source = [source[row] for row in rows.tolist()]
        return draw(sampler, (len(rows), size), source, like.device).to(like.dtype)
