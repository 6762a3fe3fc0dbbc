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
from ..physics.tensors import Generators, append_dims, draw
from ..schedulers.scheduling_poisson_flow import PoissonFlowScheduler
from ..utils.checks import check_whole_number

START_STEPS = 30
MIN_BRACKET = 1e-5  # radians
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


class _Chains:
    """The states of B chains, and the moves that they are making.

    Attributes:
        latents, samples: (B, *), of the current states.
        log_likelihoods: (B,).
        gaussian: (B, N), g at the start of a move.
        chi2: (B, 1), χ², or the proposal for it.
        direction: (B, N), ν of elliptical slice sampling.
        angle, low, high: (B, 1), θ and its bracket; θ is 0 in a move of χ².
        threshold: (B,), what the log-likelihood of a proposal must exceed.
        moves_radius: (B,), whether a chain is in move 3, that of χ².
        sweeps: (B,), finished sweeps.
    """

    def __init__(self, latents: torch.Tensor, samples: torch.Tensor, log_likelihoods: torch.Tensor) -> None:
        self.latents, self.samples, self.log_likelihoods = latents.clone(), samples, log_likelihoods
        self.gaussian, self.direction = (torch.zeros_like(latents.flatten(1)) for _ in range(2))
        self.chi2, self.angle, self.low, self.high = (torch.zeros_like(self.gaussian[:, :1]) for _ in range(4))
        self.threshold = torch.zeros_like(log_likelihoods)
        self.moves_radius = torch.ones_like(log_likelihoods, dtype=torch.bool)
        self.sweeps = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)

    def accept(self, rows: torch.Tensor, gaussian: torch.Tensor, latents: torch.Tensor, samples: torch.Tensor) -> None:
        """Take a proposal as the state of these chains."""
        self.gaussian[rows], self.latents[rows], self.samples[rows] = gaussian, latents, samples

    def bracket_width(self, rows: torch.Tensor) -> torch.Tensor:
        """(b,), in radians."""
        return (self.high[rows] - self.low[rows]).flatten()


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
        every = torch.arange(len(latents), device=latents.device)
        samples, log_likelihoods, nfe = self.decode(latents, every, len(latents))
        check_finite("log_likelihood", log_likelihoods.unsqueeze(1))
        chains = _Chains(latents, samples, log_likelihoods)

        self._begin_moves(chains, every)
        decodes, accepted_radii = 0, 0
        while len(active := (chains.sweeps < num_sweeps).nonzero().flatten()):
            gaussian, points = self._propose(chains, active)
            samples, log_likelihoods, calls = self.decode(points, active, len(latents))
            nfe, decodes = nfe + calls, decodes + len(active)
            accepted = log_likelihoods > chains.threshold[active]
            chains.accept(active[accepted], gaussian[accepted], points[accepted], samples[accepted])
            chains.log_likelihoods[active[accepted]] = log_likelihoods[accepted]
            accepted_radii += int(chains.moves_radius[active[accepted]].sum())
            # A bracket that is all but closed has lost the chain's own state to rounding: the chain stays there.
            ended = accepted | chains.moves_radius[active] | (chains.bracket_width(active) < MIN_BRACKET)
            self._shrink_brackets(chains, active[~ended])
            ends_sweep = chains.moves_radius[active[ended]] | math.isinf(self.aug_dim)
            chains.sweeps[active[ended]] += ends_sweep.long()
            self._begin_moves(chains, active[ended])
            if callback is not None:
                callback(int(chains.sweeps.min()))
        total = len(latents) * num_sweeps
        return LatentSamples(
            chains.samples,
            chains.latents,
            chains.log_likelihoods,
            nfe,
            decodes / total,
            1.0 if math.isinf(self.aug_dim) else accepted_radii / total,
        )

    def _begin_moves(self, chains: _Chains, rows: torch.Tensor) -> None:
        """Start the next move of these chains: 1 and 2 at the start of a sweep, else 3."""
        like = chains.latents
        chains.moves_radius[rows] = ~chains.moves_radius[rows] & math.isfinite(self.aug_dim)
        log_uniform = self._draw(torch.rand, rows, 1, like).flatten().log()
        chains.threshold[rows] = chains.log_likelihoods[rows] + log_uniform
        radial = rows[chains.moves_radius[rows]]
        chains.angle[radial] = 0
        chains.chi2[radial] = self._chi2(radial, self.aug_dim / 2, like)
        angular = rows[~chains.moves_radius[rows]]
        chains.gaussian[angular], chains.chi2[angular] = self._split(like[angular], angular)
        chains.direction[angular] = self._draw(torch.randn, angular, chains.gaussian.shape[1], like)
        chains.angle[angular] = 2 * math.pi * self._draw(torch.rand, angular, 1, like)
        chains.high[angular] = chains.angle[angular]
        chains.low[angular] = chains.high[angular] - 2 * math.pi

    def _propose(self, chains: _Chains, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The next g (b, N) of these chains and its latent (b, *): g cos θ + ν sin θ, with θ = 0 for move 3."""
        angle = chains.angle[rows]
        gaussian = chains.gaussian[rows] * angle.cos() + chains.direction[rows] * angle.sin()
        return gaussian, self._join(gaussian, chains.chi2[rows]).view(len(rows), *chains.latents.shape[1:])

    def _shrink_brackets(self, chains: _Chains, rows: torch.Tensor) -> None:
        """Shrink the bracket of these chains to the rejected angle, and draw another angle from it."""
        angle = chains.angle[rows]
        chains.low[rows] = torch.where(angle < 0, angle, chains.low[rows])
        chains.high[rows] = torch.where(angle < 0, chains.high[rows], angle)
        share = self._draw(torch.rand, rows, 1, chains.latents)
        chains.angle[rows] = torch.lerp(chains.low[rows], chains.high[rows], share)

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
        norms = append_dims(torch.linalg.vector_norm(x.flatten(1), dim=1), x.ndim)
        kernel, sigma = self.flow.scheduler.kernel, self.flow.sigma_max
        prior = kernel.sample(x.shape, sigma, self.generator, x.device, x.dtype, limit)
        within = 1.0 if limit is None else (INSIDE * limit / norms).clamp(max=1)
        return torch.where(norms.isfinite(), within * x, prior), denoiser.nfe

    def decode(self, latents: torch.Tensor, rows: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Samples of latents (b, *) in these rows of a batch of `count`, their log-likelihoods (b,), and the calls."""
        options = slice_kwargs(self.model_kwargs, rows, count)
        output = self.flow.sample(None, self.num_inference_steps, latents=latents, **options)
        log_likelihoods = self.log_likelihood(output.sample, rows).nan_to_num(nan=-math.inf)
        if self.max_norm is not None:
            beyond = latents.flatten(1).norm(dim=1) > self.max_norm
            log_likelihoods = log_likelihoods.masked_fill(beyond, -math.inf)
        return output.sample, log_likelihoods, output.nfe

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
