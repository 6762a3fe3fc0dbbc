"""Tensor operations that every part of the package shares: shapes, dtypes, devices and random draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

Generators = torch.Generator | Sequence[torch.Generator] | None


def working_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 on MPS, which has no wider type."""
    return torch.float32 if device.type == "mps" else torch.float64


def cast_clamped(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x in `dtype`; what is beyond float16's reach, such as a heavy-tailed prior, stays at its largest number."""
    if dtype == torch.float16:
        limit = torch.finfo(dtype).max
        x = x.clamp(-limit, limit)
    return x.to(dtype)


def on_cpu_for_mps(function: Callable[..., Any], *matrices: torch.Tensor) -> torch.Tensor:
    """The first result of a function of `torch.linalg`, computed on the CPU for MPS, which lacks many of them."""
    device = matrices[0].device
    given = [matrix.cpu() for matrix in matrices] if device.type == "mps" else matrices
    found: torch.Tensor = function(*given)[0]
    return found.to(device)


def scaled_to_reach(flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows x / c and c ≥ 1, with c such that the squares of a heavy-tailed x do not overflow.

    Args:
        flat: (B, N).

    Returns:
        (B, N) and (B, 1). c is 1, and x unchanged, up to about 1e123 in float64 and 1e15 in float32.
    """
    reach = torch.finfo(flat.dtype).max ** 0.4
    factor = (flat.detach().abs().amax(1, keepdim=True) / reach).clamp(min=1)
    return flat / factor, factor


def draw(
    sampler: Callable[..., torch.Tensor],
    shape: tuple[int, ...],
    generator: Generators,
    device: torch.device,
) -> torch.Tensor:
    """Call `sampler(shape, generator=..., device=...)`, such as `torch.randn`, once per row for a list of generators.

    As in diffusers, a CPU generator draws on the CPU wherever the result goes. For MPS all numbers are drawn on the
    CPU, where every sampler exists and a seed gives the same numbers; a generator of MPS itself gives the CPU a seed.

    Raises:
        ValueError: if a list of generators has another length than the batch, or one is no `torch.Generator`.
    """
    if generator is None or isinstance(generator, torch.Generator):
        source = device if generator is None else generator.device
        if source.type == "mps":
            generator, source = _on_cpu(generator), torch.device("cpu")
        return sampler(shape, generator=generator, device=source).to(device)
    if not isinstance(generator, Sequence):
        raise ValueError(
            f"`generator` must be a torch.Generator, a list of one for each sample, or None, but is a "
            f"{type(generator).__module__}.{type(generator).__name__}. Use torch.Generator().manual_seed(0)."
        )
    if len(generator) != shape[0]:
        raise ValueError(
            f"`generator` is a list of {len(generator)}, but the batch has {shape[0]} samples. "
            "Pass one generator, or one for each sample."
        )
    return torch.cat([draw(sampler, (1, *shape[1:]), one, device) for one in generator])


def _on_cpu(generator: torch.Generator | None) -> torch.Generator | None:
    """A CPU generator that an MPS generator seeds, so that it moves on and makes other numbers the next time."""
    if generator is None:
        return None
    seed = torch.randint(2**31 - 1, (1,), generator=generator, device=generator.device)
    return torch.Generator().manual_seed(int(seed.item()))


def piecewise_linear(x: torch.Tensor, knots: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The piecewise linear function through (knots, values), both (K,) with rising knots, at x of any shape."""
    flat = x.reshape(-1)
    right = torch.searchsorted(knots, flat).clamp(1, len(knots) - 1)
    left = right - 1
    # `index_select`, since an index () would be read back from the device, and MPS has no `take`.
    (low, high), (first, last) = ([each.index_select(0, end) for end in (left, right)] for each in (knots, values))
    share = (flat - low) / (high - low)
    return torch.lerp(first, last, share.clamp(0, 1)).view(x.shape)


def column_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """(B, 1, ..., 1) for a shape (B, *)."""
    return (shape[0], *[1] * (len(shape) - 1))


def append_dims(values: torch.Tensor, ndim: int) -> torch.Tensor:
    """A tensor (B,) as (B, 1, ..., 1) with `ndim` dimensions, to broadcast against (B, *)."""
    return values.reshape(column_shape((-1,) * ndim))
