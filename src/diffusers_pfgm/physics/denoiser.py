"""The network and its parameterisation as one function x̂(x, σ), which is all that an ODE solver needs to know."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import torch

from .parameterization import Parameterization
from .tensors import append_dims, cast_clamped, working_dtype

Denoise = Callable[[torch.Tensor, Any], torch.Tensor]  # x̂ (B, *) from x (B, *) and σ, a number or ()

LARGEST_GRADIENT = 32.0  # that goes into a model in float16: most of its products are neither too large nor too small


def output_tensor(output: Any) -> torch.Tensor:
    """The tensor in a network's result, which has it as `.sample` or as the first of a tuple."""
    found: torch.Tensor = output.sample if hasattr(output, "sample") else output[0]
    return found


def dtype_and_device(model: Any) -> tuple[torch.dtype | None, torch.device | None]:
    """Where a model computes, as it says, or else as its first parameter does; None where neither tells.

    A `functools.partial`, a bound method or a wrapper of a module tells what is inside of it.
    """
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else ()
    first = next((parameter for parameter in parameters if parameter.is_floating_point()), None)
    dtype, device = (getattr(model, name, None) or getattr(first, name, None) for name in ("dtype", "device"))
    if dtype is None:
        inner = (getattr(model, name, None) for name in ("func", "__self__", "module", "_orig_mod"))
        found = next((value for value in inner if callable(value)), None)
        return (None, device) if found is None else dtype_and_device(found)
    return dtype, device


def without_inference_mode(value: Any) -> Any:
    """A tensor or a model that autograd can follow: a copy of one that was made in inference mode, else the same."""
    if isinstance(value, torch.Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, torch.nn.Module):
        weights = itertools.chain(value.parameters(), value.buffers())
        return copy.deepcopy(value) if any(weight.is_inference() for weight in weights) else value
    return value


def slice_kwargs(model_kwargs: dict[str, Any], rows: slice | torch.Tensor, count: int) -> dict[str, Any]:
    """What a model is given for these rows of a batch of `count`: of tensors (B, ...) the rows, all else as it is."""
    return {
        name: value[rows] if isinstance(value, torch.Tensor) and value.ndim and len(value) == count else value
        for name, value in model_kwargs.items()
    }


class Denoiser:
    """x̂ = E[y | x, σ] as a network sees it, with the number of calls.

    Args:
        model: called as `model(c_in x, c_noise, **model_kwargs)`, with `.sample` or a tuple as its result.
        parameterization: of its output.
        dtype: of a model that does not tell its own; by default that of x.
        model_kwargs: such as `class_labels`.

    Attributes:
        dtype: of the network, if it is known.
        nfe: calls so far.

    Example:
        >>> from diffusers_pfgm import ChargeField
        >>> field = ChargeField(torch.zeros(1, 1, 4, 4), prediction_type="epsilon")
        >>> denoiser = Denoiser(field, Parameterization("epsilon"))
        >>> denoiser(torch.ones(2, 1, 4, 4), 3.0).abs().max().item(), denoiser.nfe
        (0.0, 1)
    """

    def __init__(
        self,
        model: Callable[..., Any],
        parameterization: Parameterization,
        dtype: torch.dtype | None = None,
        **model_kwargs: Any,
    ) -> None:
        self.model, self.parameterization, self.model_kwargs = model, parameterization, model_kwargs
        self.dtype = dtype_and_device(model)[0] or dtype
        self.nfe = 0

    def precision(self, device: torch.device) -> float:
        """The relative rounding of what the model computes."""
        return torch.finfo(self.dtype or working_dtype(device)).eps

    def __call__(self, x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """x̂ (B, C, *) at x (B, C, *) in data units and σ, a number or ().

        Raises:
            ValueError: if the output has the wrong shape.
        """
        parameterization, dtype = self.parameterization, self.dtype or x.dtype
        label = torch.as_tensor(
            parameterization.c_noise(sigma), dtype=torch.promote_types(dtype, torch.float32), device=x.device
        )
        seen, scales = parameterization.c_in(sigma) * x, list[torch.Tensor]()
        half = dtype == torch.float16
        seen = _Narrowed.apply(seen, dtype, scales) if half else seen.to(dtype)
        output = output_tensor(self.model(seen, label, **self.model_kwargs))
        parameterization.check_output(output, x)
        self.nfe += 1
        output = _Widened.apply(output, x.dtype, scales) if half else output.to(x.dtype)
        return parameterization.denoised(output, x, sigma)


class _Narrowed(torch.autograd.Function):
    """What a model in float16 is given. Its gradient is multiplied by what `_Widened` has divided it by."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dtype: torch.dtype, scales: list[torch.Tensor]) -> torch.Tensor:
        ctx.dtype, ctx.scales = x.dtype, scales
        return cast_clamped(x, dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradient.to(ctx.dtype) * ctx.scales[-1], None, None


class _Widened(torch.autograd.Function):
    """What a model in float16 returns, whose gradient goes back into it with the same largest element in each row.

    A gradient of x̂ is σ times as large as the model's own, and at σ > 65,504 beyond float16.
    """

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, dtype: torch.dtype, scales: list[torch.Tensor]) -> torch.Tensor:
        ctx.dtype, ctx.scales = output.dtype, scales
        return output.to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        largest = gradient.flatten(1).abs().amax(1).clamp(min=torch.finfo(gradient.dtype).tiny)
        scale = append_dims(largest / LARGEST_GRADIENT, gradient.ndim)
        ctx.scales[:] = [scale]
        return (gradient / scale).to(ctx.dtype), None, None
