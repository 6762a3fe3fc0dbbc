"""A network and its parameterization combined into one function x̂(x, σ), all that an ODE solver needs."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import torch

from .parameterization import Parameterization
from .tensors import append_dims, cast_clamped, to_tensor, working_dtype

Denoise = Callable[[torch.Tensor, Any], torch.Tensor]  # x̂ (B, *) as a function of x (B, *) and σ

# The largest number of the gradient with which the backward pass of a float16 model begins. Most products then neither
# overflow nor underflow.
LARGEST_GRADIENT = 32.0


def output_tensor(output: Any) -> torch.Tensor:
    """The tensor in a network's result: its attribute `sample`, or the first element of a tuple."""
    tensor: torch.Tensor = output.sample if hasattr(output, "sample") else output[0]
    return tensor


def wrapped_model(model: Any) -> Any:
    """The model inside a `functools.partial`, a bound method or a wrapper of a module; None if there is none."""
    inner = (getattr(model, name, None) for name in ("func", "__self__", "module", "_orig_mod"))
    return next((value for value in inner if callable(value)), None)


def dtype_and_device(model: Any) -> tuple[torch.dtype | None, torch.device | None]:
    """The dtype and device of a model, or of its first floating-point parameter; None where neither has them.

    A `functools.partial`, a bound method or a wrapper of a module has the dtype and device of the wrapped model. The
    device of a model that accelerate keeps elsewhere between its calls (CPU offload) is that on which it computes.
    """
    is_module = isinstance(model, torch.nn.Module)
    parameters = model.parameters() if is_module else ()
    first = next((parameter for parameter in parameters if parameter.is_floating_point()), None)
    dtype, device = (getattr(model, name, None) or getattr(first, name, None) for name in ("dtype", "device"))
    hooks = (getattr(module, "_hf_hook", None) for module in (model.modules() if is_module else ()))
    devices = (getattr(hook, "execution_device", None) for hook in hooks)
    device = next((torch.device(each) for each in devices if each is not None), device)
    if dtype is None:
        wrapped = wrapped_model(model)
        return (None, device) if wrapped is None else dtype_and_device(wrapped)
    return dtype, device


def without_inference_mode(value: Any) -> Any:
    """A tensor or model that autograd can use: a copy if it was created in inference mode, else the value itself."""
    if isinstance(value, torch.Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, torch.nn.Module):
        weights = itertools.chain(value.parameters(), value.buffers())
        return copy.deepcopy(value) if any(weight.is_inference() for weight in weights) else value
    return value


def slice_kwargs(model_kwargs: dict[str, Any], rows: slice | torch.Tensor, count: int) -> dict[str, Any]:
    """The keyword arguments of a model for some rows of a batch.

    Args:
        model_kwargs: keyword arguments for the whole batch.
        rows: slice or indices of the rows.
        count: size B of the whole batch.

    Returns:
        The same dictionary with every tensor (B, ...) indexed by `rows`; other values are unchanged.
    """
    return {
        name: value[rows] if isinstance(value, torch.Tensor) and value.ndim and len(value) == count else value
        for name, value in model_kwargs.items()
    }


class Denoiser:
    """A network's estimate of x̂ = E[y | x, σ], which counts its calls.

    Args:
        model: called as `model(c_in x, c_noise, **model_kwargs)`; returns an object with `.sample`, or a tuple.
        parameterization: the model's parameterization.
        dtype: dtype of a model that has no `dtype` and no parameters; by default the dtype of x.
        **model_kwargs: keyword arguments of the model, such as `class_labels`.

    Attributes:
        dtype: dtype of the model, or None if it is unknown.
        nfe: number of network calls so far.

    Examples:
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
        self.model = model
        self.parameterization = parameterization
        self.model_kwargs = model_kwargs
        self.dtype = dtype_and_device(model)[0] or dtype
        self.nfe = 0

    def precision(self, device: torch.device) -> float:
        """The relative rounding error (machine epsilon) of the model's dtype."""
        return torch.finfo(self.dtype or working_dtype(device)).eps

    def __call__(self, x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """x̂ (B, C, *) at x (B, C, *) in data units and σ, a number, () or (B, 1, ...).

        Raises:
            ValueError: if the output has the wrong shape.
        """
        parameterization = self.parameterization
        dtype = self.dtype or x.dtype
        model_input, timestep, noise_level = parameterization.model_input(x, sigma)
        timestep = to_tensor(timestep, torch.promote_types(dtype, torch.float32), x.device)
        is_half = dtype == torch.float16
        scales: list[torch.Tensor] = []  # the backward pass of the output leaves its scale here for that of the input
        model_input = _ToFloat16.apply(model_input, dtype, scales) if is_half else model_input.to(dtype)
        output = output_tensor(self.model(model_input, timestep, **self.model_kwargs))
        parameterization.check_output(output, x)
        self.nfe += 1
        output = _FromFloat16.apply(output, x.dtype, scales) if is_half else output.to(x.dtype)
        return parameterization.denoised(output, x, noise_level)


class _ToFloat16(torch.autograd.Function):
    """Cast the input of a float16 model. Its gradient is multiplied by the scale that `_FromFloat16` divided by."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dtype: torch.dtype, scales: list[torch.Tensor]) -> torch.Tensor:
        ctx.dtype = x.dtype
        ctx.scales = scales
        return cast_clamped(x, dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradient.to(ctx.dtype) * ctx.scales[-1], None, None


class _FromFloat16(torch.autograd.Function):
    """Cast the output of a float16 model. Its gradient is scaled to a fixed largest element in each row.

    A gradient of x̂ is σ times as large as a gradient of the output, which for σ > 65,504 overflows in float16.
    """

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, dtype: torch.dtype, scales: list[torch.Tensor]) -> torch.Tensor:
        ctx.dtype = output.dtype
        ctx.scales = scales
        return output.to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        largest = gradient.flatten(1).abs().amax(1).clamp(min=torch.finfo(gradient.dtype).tiny)
        scale = append_dims(largest / LARGEST_GRADIENT, gradient.ndim)
        ctx.scales[:] = [scale]
        return (gradient / scale).to(ctx.dtype), None, None
