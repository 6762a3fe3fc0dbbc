"""The states and the current moves of the Markov chains of `latent_sampling.py`, whose symbols are used here."""

from __future__ import annotations

import torch


class Chains:
    """The states of B chains, and their current moves.

    A chain is always in move 2 or 3 of its sweep, as move 1 is finished at once.

    Attributes:
        latents: (B, *), x_T of the current states.
        samples: (B, *), x of the current states.
        log_likelihoods: (B,), log L of the current states.
        gaussian: (B, N), g of the current states.
        chi2: (B, 1), χ² of the proposal; in move 2 it is also that of the current state.
        direction: (B, N), ν of move 2.
        angle: (B, 1), θ of the proposal of move 2; 0 in move 3.
        low, high: (B, 1), the bracket of θ.
        threshold: (B,), the log-likelihood that a proposal must exceed.
        moves_chi2: (B,), whether a chain is in move 3.
        sweeps: (B,), number of finished sweeps.
    """

    def __init__(self, latents: torch.Tensor, samples: torch.Tensor, log_likelihoods: torch.Tensor) -> None:
        self.latents = latents.clone()
        self.samples = samples
        self.log_likelihoods = log_likelihoods
        self.gaussian, self.direction = (torch.zeros_like(latents.flatten(1)) for _ in range(2))
        self.chi2, self.angle, self.low, self.high = (torch.zeros_like(self.gaussian[:, :1]) for _ in range(4))
        self.threshold = torch.zeros_like(log_likelihoods)
        self.moves_chi2 = torch.ones_like(log_likelihoods, dtype=torch.bool)  # so that the first move is 2
        self.sweeps = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
