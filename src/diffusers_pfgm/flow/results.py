"""What a flow returns: points at either of its ends and densities, each with its network calls."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class FlowSamples:
    """Points near or on the data.

    Attributes:
        sample: (B, *), in data units.
        nfe: network calls.
    """

    sample: torch.Tensor
    nfe: int


@dataclass
class FlowLatents:
    """Points of the prior.

    Attributes:
        latents: (B, *), in data units at σ_max.
        nfe: network calls.
    """

    latents: torch.Tensor
    nfe: int


@dataclass
class FlowLogProb:
    """Log-densities of a flow.

    Attributes:
        log_prob: (B,), in nats, of the flow's density at σ_min.
        standard_error: (B,), of the random divergence, in nats; 0 for the exact one, None for a single estimate, which
            has no spread.
        truncation: (B,), in nats: the most by which the density should differ from that of a flow followed to infinity,
            where the prior is exact, rather than to σ_max; with the tolerance of an adaptive solver, but not with the
            error of fixed steps.
        latents: (B, *), where the points come from.
        nfe: network calls, each of them followed by the products of the divergence.
    """

    log_prob: torch.Tensor
    standard_error: torch.Tensor | None
    truncation: torch.Tensor
    latents: torch.Tensor
    nfe: int
