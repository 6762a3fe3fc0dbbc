r"""Exact posterior samples by Markov chains over the latent of an invertible flow.

A sample x is a function of its latent x_T alone, and the latent's prior is a Gaussian scale mixture (see
`physics/kernel.py`),

    x_T = σ_max g √(D / χ²),        g ~ N(0, I_N),        χ² ~ χ²_D.

So given a measurement y of x with the likelihood L(x), p(g, χ² | y) ∝ L(x(x_T)) p(g) p(χ²). The only approximation is
the error of the ODE solver, and no gradient is needed. A sweep of a chain makes three moves, each of which leaves this
density invariant:

1. Draw χ² again at the same x_T: p(χ² | x_T) ∝ χ²^((N+D)/2 − 1) exp(−χ² (1 + ‖x_T‖² / (D σ_max²)) / 2), a gamma
   density. L does not change, so this move needs no network call. Then g = x_T √(χ² / D) / σ_max.
2. Move g by elliptical slice sampling (Murray, Adams and MacKay, arXiv 1001.0175): draw ν ~ N(0, I) and a uniform u,
   and search a bracket of angles θ, which shrinks towards θ = 0, for a proposal g cos θ + ν sin θ with
   log L > log L(current state) + log u. It has no step size to tune.
3. Move χ² at the same g: propose a draw from its prior, and accept it if log L > log L(current state) + log u
   (Metropolis).

At D = ∞ only the second move remains. Moves 2 and 3 have the same test of acceptance, so chains in different moves are
decoded together: a chain that has accepted a proposal begins its next move while others still search. If the prior is
limited to a radius (`max_norm`), L is 0 beyond it.
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
from ..physics.tensors import Generators, append_dims, chi_squared, draw
from ..schedulers.scheduling_poisson_flow import PoissonFlowScheduler
from ..utils.checks import check_whole_number
from .chains import Chains

START_STEPS = 30  # the number of fixed steps that encode the first samples
MIN_BRACKET = 1e-5  # radians
INSIDE = 1 - 1e-5  # share of `max_norm` that is below it in float32 as well

LogLikelihood = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # samples (b, *) and their rows (b,) to (b,)


@dataclass
class LatentSamples:
    """The final states of Markov chains.

    Attributes:
        sample: (B, *), the sample of each chain, in data units.
        latents: (B, *), the latents of the samples, at σ_max.
        log_likelihood: (B,), log-likelihoods of the samples in nats, up to a constant.
        nfe: number of network calls. Each is for all chains that had not finished.
        decodes_per_sweep: mean number of decodings of a chain in a sweep.
        acceptance: share of the proposals for χ² that were accepted; 1 at D = ∞, where there are none.
    """

    sample: torch.Tensor
    latents: torch.Tensor
    log_likelihood: torch.Tensor
    nfe: int
    decodes_per_sweep: float
    acceptance: float


class LatentSampler:
    """Markov chains over the latents of a flow, one for each sample.

    Args:
        flow: the flow that maps latents to samples.
        log_likelihood: function of samples (b, *) and their rows (b,) in the batch, which returns log-likelihoods (b,)
            in nats, up to a constant.
        generator: one generator, or a list of B of them, with which a chain does not depend on the rest of the batch.
        num_inference_steps: number of steps of a decoding.
        **model_kwargs: passed to the model, such as `class_labels` (B,).

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
        self.flow = flow
        self.log_likelihood = log_likelihood
        self.generator = generator
        self.num_inference_steps = num_inference_steps
        self.model_kwargs = model_kwargs
        self.aug_dim = flow.scheduler.kernel.aug_dim
        self.max_norm = flow.scheduler.config.max_norm

    def __call__(
        self, latents: torch.Tensor, num_sweeps: int = 40, callback: Callable[[int], Any] | None = None
    ) -> LatentSamples:
        """Run every chain for `num_sweeps` sweeps.

        Args:
            latents: (B, *), the initial latents of the chains, at σ_max.
            num_sweeps: number of sweeps, ≥ 1.
            callback: called after each decoding, with the number of sweeps that all chains have finished.

        Raises:
            ValueError: if `num_sweeps` is not a whole number ≥ 1, or the initial log-likelihood of a chain is not
                finite.
        """
        num_sweeps = check_whole_number("num_sweeps", num_sweeps, 1)
        all_rows = torch.arange(len(latents), device=latents.device)
        samples, log_likelihoods, nfe = self.decode(latents, all_rows, len(latents))
        check_finite("log_likelihood", log_likelihoods.unsqueeze(1))
        chains = Chains(latents, samples, log_likelihoods)

        self._begin_moves(chains, all_rows)
        num_decodes = 0
        num_accepted_chi2 = 0
        while len(active := (chains.sweeps < num_sweeps).nonzero().flatten()):
            gaussian, proposals = self._propose(chains, active)
            samples, log_likelihoods, calls = self.decode(proposals, active, len(latents))
            nfe += calls
            num_decodes += len(active)

            accepted = log_likelihoods > chains.threshold[active]
            moved = active[accepted]
            chains.gaussian[moved] = gaussian[accepted]
            chains.latents[moved] = proposals[accepted]
            chains.samples[moved] = samples[accepted]
            chains.log_likelihoods[moved] = log_likelihoods[accepted]
            num_accepted_chi2 += int(chains.moves_chi2[moved].sum())

            # The current state, at θ = 0, would be accepted. If the bracket is so narrow that only rounding can be the
            # reason that nothing was accepted, the chain stays at this state.
            bracket_width = (chains.high - chains.low)[active].flatten()
            ended = accepted | chains.moves_chi2[active] | (bracket_width < MIN_BRACKET)
            self._shrink_brackets(chains, active[~ended])

            ends_sweep = chains.moves_chi2[active[ended]] | math.isinf(self.aug_dim)
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
            num_decodes / total,
            1.0 if math.isinf(self.aug_dim) else num_accepted_chi2 / total,
        )

    def _begin_moves(self, chains: Chains, rows: torch.Tensor) -> None:
        """Begin the next moves of these chains (b,): moves 1 and 2 at the start of a sweep, move 3 after move 2."""
        like = chains.latents
        chains.moves_chi2[rows] = ~chains.moves_chi2[rows] & math.isfinite(self.aug_dim)
        log_uniform = self._draw(torch.rand, rows, 1, like).flatten().log()
        chains.threshold[rows] = chains.log_likelihoods[rows] + log_uniform
        in_move_3 = rows[chains.moves_chi2[rows]]
        chains.angle[in_move_3] = 0
        chains.chi2[in_move_3] = self._draw_chi2(in_move_3, self.aug_dim, like)
        in_move_2 = rows[~chains.moves_chi2[rows]]
        chains.gaussian[in_move_2], chains.chi2[in_move_2] = self._split(like[in_move_2], in_move_2)  # move 1
        chains.direction[in_move_2] = self._draw(torch.randn, in_move_2, chains.gaussian.shape[1], like)
        chains.angle[in_move_2] = 2 * math.pi * self._draw(torch.rand, in_move_2, 1, like)
        chains.high[in_move_2] = chains.angle[in_move_2]
        chains.low[in_move_2] = chains.high[in_move_2] - 2 * math.pi

    def _propose(self, chains: Chains, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Proposals g cos θ + ν sin θ (b, N) of these chains (b,), with θ = 0 in move 3, and their latents (b, *)."""
        angle = chains.angle[rows]
        gaussian = chains.gaussian[rows] * angle.cos() + chains.direction[rows] * angle.sin()
        return gaussian, self._join(gaussian, chains.chi2[rows]).view(len(rows), *chains.latents.shape[1:])

    def _shrink_brackets(self, chains: Chains, rows: torch.Tensor) -> None:
        """Shrink the brackets of these chains (b,) to the rejected angles, and draw new angles from them."""
        angle = chains.angle[rows]
        chains.low[rows] = torch.where(angle < 0, angle, chains.low[rows])
        chains.high[rows] = torch.where(angle < 0, chains.high[rows], angle)
        share = self._draw(torch.rand, rows, 1, chains.latents)
        chains.angle[rows] = torch.lerp(chains.low[rows], chains.high[rows], share)

    @torch.no_grad()
    def encode(self, samples: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Compute latents that decode approximately to these samples (B, *), as initial states of chains.

        Euler steps from σ_min to σ_max are accurate enough for this, and have no implicit equation to solve. A sample
        whose latent is not finite gets a random draw from the prior instead.

        Returns:
            The latents (B, *), within the scheduler's `max_norm`, and the number of network calls.
        """
        scheduler = PoissonFlowScheduler.from_config(self.flow.scheduler.config)
        scheduler.set_timesteps(START_STEPS)
        sigmas = scheduler.sigmas[scheduler.sigmas > 0].flip(0).tolist()
        denoiser = Denoiser(self.flow.model, scheduler.parameterization, **self.model_kwargs)
        x = samples
        for sigma, target in itertools.pairwise(sigmas):
            x = torch.lerp(denoiser(x, sigma), x, target / sigma)
        norms = append_dims(torch.linalg.vector_norm(x.flatten(1), dim=1), x.ndim)
        prior = scheduler.kernel.sample(x.shape, self.flow.sigma_max, self.generator, x.device, x.dtype, self.max_norm)
        scale = 1.0 if self.max_norm is None else (INSIDE * self.max_norm / norms).clamp(max=1)
        return torch.where(norms.isfinite(), scale * x, prior), denoiser.nfe

    def decode(self, latents: torch.Tensor, rows: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Map latents to samples and evaluate their log-likelihoods.

        Args:
            latents: (b, *), at σ_max.
            rows: (b,), their rows in the batch.
            count: B, the size of the batch.

        Returns:
            Samples (b, *), log-likelihoods (b,) and the number of network calls. The log-likelihood is −∞ where it is
            NaN, or the latent is beyond `max_norm`.
        """
        model_kwargs = slice_kwargs(self.model_kwargs, rows, count)
        output = self.flow.sample(None, self.num_inference_steps, latents=latents, **model_kwargs)
        log_likelihoods = self.log_likelihood(output.sample, rows).nan_to_num(nan=-math.inf)
        if self.max_norm is not None:
            beyond = latents.flatten(1).norm(dim=1) > self.max_norm
            log_likelihoods = log_likelihoods.masked_fill(beyond, -math.inf)
        return output.sample, log_likelihoods, output.nfe

    def _split(self, latents: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Move 1: draw χ² given latents (b, *). Returns g (b, N) and χ² (b, 1), which is not used at D = ∞."""
        scaled = latents.flatten(1) / self.flow.sigma_max
        if math.isinf(self.aug_dim):
            return scaled, torch.ones_like(scaled[:, :1])
        rate = 1 + scaled.square().sum(1, keepdim=True) / self.aug_dim
        chi2 = self._draw_chi2(rows, scaled.shape[1] + self.aug_dim, latents) / rate
        return scaled * (chi2 / self.aug_dim).sqrt(), chi2

    def _join(self, gaussian: torch.Tensor, chi2: torch.Tensor) -> torch.Tensor:
        """The latents x_T (b, N) = σ_max g √(D / χ²), clamped to finite numbers."""
        radius = 1.0 if math.isinf(self.aug_dim) else (self.aug_dim / chi2).sqrt()
        limit = torch.finfo(gaussian.dtype).max
        return (self.flow.sigma_max * radius * gaussian).clamp(-limit, limit)

    def _draw_chi2(self, rows: torch.Tensor, degrees: float, like: torch.Tensor) -> torch.Tensor:
        """Draw χ² (b, 1) with this number of degrees of freedom."""

        def chi2(shape: tuple[int, ...], *, generator: torch.Generator | None, device: torch.device) -> torch.Tensor:
            return chi_squared(shape, degrees, generator, device).to(like.dtype)

        return self._draw(chi2, rows, 1, like).clamp(min=torch.finfo(like.dtype).tiny)

    def _draw(
        self, sampler: Callable[..., torch.Tensor], rows: torch.Tensor, size: int, like: torch.Tensor
    ) -> torch.Tensor:
        """Draw (b, size) from a sampler; with a list of generators each row from the generator of its chain."""
        source = self.generator
        if not len(rows):
            return like.new_zeros(0, size)
        if source is not None and not isinstance(source, torch.Generator):
            source = [source[row] for row in rows.tolist()]
        return draw(sampler, (len(rows), size), source, like.device).to(like.dtype)
