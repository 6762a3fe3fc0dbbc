"""Tensor helpers shared by the whole package: shapes, dtypes, devices and random draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

Generators = torch.Generator | Sequence[torch.Generator] | None

MAX_PINNED = 64 * 2**20  # bytes of a tensor that is copied through pinned memory, which other processes cannot use


def working_dtype(device: torch.device) -> torch.dtype:
    """The widest floating-point dtype of a device: float64, or float32 on MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def check_samples(name: str, values: torch.Tensor) -> None:
    """Raise a ValueError unless the samples (B, *) are a tensor of floating-point numbers.

    Other numbers would silently be rounded or wrapped.
    """
    if not isinstance(values, torch.Tensor):
        raise ValueError(
            f"`{name}` must be a tensor (B, *), but is {type(values).__name__}. Convert an array by `torch.as_tensor`."
        )
    if values.ndim < 2:
        raise ValueError(
            f"`{name}` must have the shape (B, *), but has {tuple(values.shape)}. Pass a single sample (N,) as "
            f"`{name}.unsqueeze(0)`, and B numbers as `{name}.unsqueeze(1)`."
        )
    if not values.is_floating_point():
        raise ValueError(
            f"`{name}` must be a tensor of floating-point numbers, but is {values.dtype}. Convert it by `.float()`; "
            "bytes of an image become [-1, 1] by `images / 127.5 - 1`."
        )


def check_noise_level(name: str, value: float | torch.Tensor) -> None:
    """Raise a ValueError if a number is negative or not finite. A tensor is not read from its device."""
    if isinstance(value, int | float) and not 0 <= value < math.inf:
        raise ValueError(f"`{name}` must be a finite number >= 0, but is {value}.")


def move_to(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Move x to a device: in its dtype, or in float32 if it is float64 and the device is MPS, which has no float64."""
    dtype = working_dtype(device) if x.dtype == torch.float64 else x.dtype
    return x.to(dtype).to(device)


def to_tensor(value: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A number, a list, an array or a tensor as a tensor of a dtype on a device, as by `torch.as_tensor`.

    A number is written by the device itself: `torch.as_tensor` copies it, for which the host waits until a CUDA device
    has done all its work.
    """
    if isinstance(value, int | float):
        return torch.full((), value, dtype=dtype, device=device)
    return torch.as_tensor(value, dtype=dtype, device=device)


def cast_clamped(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Cast x to `dtype`, clamped to the range of float16 if that is the dtype, since heavy-tailed draws exceed it."""
    if dtype == torch.float16:
        limit = torch.finfo(dtype).max
        x = x.clamp(-limit, limit)
    return x.to(dtype)


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """x in float32 if its dtype is narrower, such as float16, else x itself."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def linalg_with_cpu_fallback(function: Callable[..., Any], *matrices: torch.Tensor) -> torch.Tensor:
    """The first result of a function of `torch.linalg`, computed on the CPU for MPS, which lacks many of them.

    Args:
        function: function that returns a tuple, such as `torch.linalg.qr`.
        *matrices: arguments of the function, all on one device.

    Returns:
        The first tensor of the tuple, on the device of the matrices.
    """
    device = matrices[0].device
    arguments = [matrix.cpu() for matrix in matrices] if device.type == "mps" else matrices
    result: torch.Tensor = function(*arguments)[0]
    return result.to(device)


def rescale_for_squaring(flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide each row by a factor c ≥ 1, so that its squares do not overflow even if x is heavy-tailed.

    Args:
        flat: x, (B, N).

    Returns:
        x / c (B, N) and c (B, 1). c = 1, so that x is unchanged, up to about 1e123 in float64 and 1e15 in float32.
    """
    limit = torch.finfo(flat.dtype).max ** 0.4
    factor = (flat.detach().abs().amax(1, keepdim=True) / limit).clamp(min=1)
    return flat / factor, factor


def draw(
    sampler: Callable[..., torch.Tensor],
    shape: tuple[int, ...],
    generator: Generators,
    device: torch.device,
) -> torch.Tensor:
    """Draw a random tensor from one generator, or each row from its own.

    As in diffusers, a CPU generator draws on the CPU and the result is moved to `device`. For MPS all numbers are drawn
    on the CPU, where every sampler exists and a seed gives the same numbers; a generator on MPS seeds a CPU generator.

    Args:
        sampler: called as `sampler(shape, generator=..., device=...)`, such as `torch.randn`.
        shape: (B, *).
        generator: one generator, a list of B of them (the sampler is then called once per row), or None for the global
            one.
        device: device of the result.

    Returns:
        Tensor of `shape`.

    Raises:
        ValueError: if a list of generators does not have B entries, or `generator` is not a `torch.Generator`.
    """
    if generator is None or isinstance(generator, torch.Generator):
        source = device if generator is None else generator.device
        if source.type == "mps":
            generator, source = _on_cpu(generator), torch.device("cpu")
        return _move_draws(sampler(shape, generator=generator, device=source), device)
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
    if all(isinstance(one, torch.Generator) and one.device.type == "cpu" for one in generator):
        # One copy to the device instead of one for each sample.
        rows = [sampler((1, *shape[1:]), generator=one, device=one.device) for one in generator]
        return _move_draws(torch.cat(rows), device)
    return torch.cat([draw(sampler, (1, *shape[1:]), one, device) for one in generator])


def _move_draws(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Move x to a device. The host does not wait for a CUDA device, unless x is large."""
    if device.type == "cuda" and x.device.type == "cpu" and x.nbytes <= MAX_PINNED:
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def _on_cpu(generator: torch.Generator | None) -> torch.Generator | None:
    """A CPU generator seeded by an MPS generator, which advances, so that the next call draws other numbers."""
    if generator is None:
        return None
    seed = torch.randint(2**31 - 1, (1,), generator=generator, device=generator.device)
    return torch.Generator().manual_seed(int(seed.item()))


def chi_squared(
    shape: tuple[int, ...], degrees: float, generator: torch.Generator | None, device: torch.device
) -> torch.Tensor:
    """Draw χ² with any number of degrees of freedom > 0, in float64: for few of them it is often close to 0."""
    half = torch.full(shape, degrees / 2, device=device, dtype=torch.float64)
    return 2 * torch._standard_gamma(half, generator=generator)


def piecewise_linear(x: torch.Tensor, knots: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The piecewise linear function through (knots, values), both (K,) with increasing knots, at x of any shape."""
    if len(knots) == 1:
        return values.expand(x.shape)
    flat = x.reshape(-1)
    right = torch.searchsorted(knots, flat).clamp(1, len(knots) - 1)
    left = right - 1
    # `index_select`, since indexing by a () tensor would synchronize with the device, and MPS has no `take`.
    left_knots, left_values = knots.index_select(0, left), values.index_select(0, left)
    right_knots, right_values = knots.index_select(0, right), values.index_select(0, right)
    fraction = (flat - left_knots) / (right_knots - left_knots)
    return torch.lerp(left_values, right_values, fraction.clamp(0, 1)).view(x.shape)


def column_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape (B, 1, ..., 1) with as many dimensions as `shape` (B, *)."""
    return (shape[0], *[1] * (len(shape) - 1))


def append_dims(values: torch.Tensor, ndim: int) -> torch.Tensor:
    """Reshape a tensor (B,) to (B, 1, ..., 1) with `ndim` dimensions, so that it broadcasts against (B, *)."""
    return values.reshape(column_shape((-1,) * ndim))
