"""The embeddings of the noise level, which are computed in float32 for a network of any dtype."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from diffusers.utils import is_accelerate_available
from torch import nn

MAX_PERIOD = 10_000.0
FOURIER_SCALE = 16.0  # standard deviation of the random frequencies
# The buffers that `from_pretrained(torch_dtype=...)` leaves in float32. Diffusers needs accelerate to cast any buffer.
FLOAT32_BUFFERS = ["freqs"] if is_accelerate_available() else None


class RandomFrequencies(nn.Module):
    """Fourier features with fixed random frequencies (arXiv 2006.10739), the embedding of NCSN++.

    Args:
        count: the number F of frequencies.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.freqs: torch.Tensor
        self.register_buffer("freqs", FOURIER_SCALE * torch.randn(count, dtype=torch.float32))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sines and cosines (B, 2 F) of 2π f v for values v (B,)."""
        angles = values[:, None] * self.freqs * 2 * math.pi
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> RandomFrequencies:
        # Rounded to bfloat16 or float16, the largest frequencies would change the angles by more than a radian.
        freqs = self.freqs
        super()._apply(fn, recurse)
        if self.freqs.dtype != freqs.dtype:
            self.freqs = freqs.to(self.freqs.device)
        return self


def sinusoidal_embedding(
    values: torch.Tensor, dim: int, endpoint: bool = True, sine_first: bool = True
) -> torch.Tensor:
    """Return the sines and cosines (B, dim) of values times a geometric sequence of frequencies (arXiv 1706.03762).

    Args:
        values: (B,), float32.
        dim: the size of the embedding, even. There are dim/2 frequencies, of which the largest is 1.
        endpoint: whether the smallest frequency is 1/10,000, the default. If False, the frequencies are f_k =
            10,000^(-2k/dim), so that 1/10,000 would be the next one after the smallest.
        sine_first: whether the sines come before the cosines. Defaults to True.
    """
    count = dim // 2
    exponents = torch.arange(count, dtype=torch.float32, device=values.device) / (count - endpoint)
    angles = values[:, None] * torch.exp(-math.log(MAX_PERIOD) * exponents)
    parts = (angles.sin(), angles.cos()) if sine_first else (angles.cos(), angles.sin())
    return torch.cat(parts, dim=1)
