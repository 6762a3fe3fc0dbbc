"""Results of a flow: samples, latents and log-densities, each with its number of network calls."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class FlowSamples:
    """Samples at the data end of the flow.

    Attributes:
        sample: (B, *), in data units.
        nfe: number of network calls.
    """

    sample: torch.Tensor
    nfe: int


@dataclass
class FlowLatents:
    """Latents at the prior end of the flow.

    Attributes:
        latents: (B, *), points at σ_max, in data units.
        nfe: number of network calls.
    """

    latents: torch.Tensor
    nfe: int


@dataclass
class FlowLogProb:
    """Log-densities of a flow.

    Attributes:
        log_prob: (B,), log-density at σ_min, in nats.
        standard_error: (B,), standard error of `log_prob` from the random divergence, in nats. 0 for the exact
            divergence; None for a single estimate, which has no sample variance.
        truncation: (B,), estimated bound of the error of `log_prob`, in nats. It has two parts: the flow is followed to
            σ_max rather than to infinity, where the prior is exact; and the error estimate of the adaptive solver. The
            error of fixed steps is not included.
        latents: (B, *), the latents of the points at σ_max.
        nfe: number of network calls for one batch of points, the largest of all batches. The vector-Jacobian products
            of the divergence, at each call, are not counted.
    """

    log_prob: torch.Tensor
    standard_error: torch.Tensor | None
    truncation: torch.Tensor
    latents: torch.Tensor
    nfe: int
