"""The network and its parameterisation as one function x̂(x, σ), which is all that an ODE solver needs to know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .kernel import narrowed
from .parameterization import Parameterization


def sample_of(output: Any) -> torch.Tensor:
    """The tensor in a network's result, which has it as `.sample` or as the first of a tuple."""
    found: torch.Tensor = output.sample if hasattr(output, "sample") else output[0]
    return found


def home_of(model: Any) -> tuple[torch.dtype | None, torch.device | None]:
    """Where a model computes, as it says, or else as its first parameter does; None where neither tells."""
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else ()
    first = next((parameter for parameter in parameters if parameter.is_floating_point()), None)
    dtype, device = (getattr(model, name, None) or getattr(first, name, None) for name in ("dtype", "device"))
    return dtype, device


def of_rows(model_kwargs: dict[str, Any], rows: slice | torch.Tensor, count: int) -> dict[str, Any]:
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
        model_kwargs: such as `class_labels`.

    Attributes:
        dtype: of the network, if it tells.
        nfe: calls so far.

    Example:
        >>> from diffusers_pfgm import ChargeField
        >>> field = ChargeField(torch.zeros(1, 1, 4, 4), prediction_type="epsilon")
        >>> denoiser = Denoiser(field, Parameterization("epsilon"))
        >>> denoiser(torch.ones(2, 1, 4, 4), 3.0).abs().max().item(), denoiser.nfe
        (0.0, 1)
    """

    def __init__(self, model: Callable[..., Any], parameterization: Parameterization, **model_kwargs: Any) -> None:
        self.model, self.parameterization, self.model_kwargs = model, parameterization, model_kwargs
        self.dtype = home_of(model)[0]
        self.nfe = 0

    def __call__(self, x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """x̂ (B, C, *) at x (B, C, *) in data units and σ, a number or ().

        Raises:
            ValueError: if the output has the wrong shape.
        """
        form = self.parameterization
        label = torch.as_tensor(form.label(sigma), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        seen = narrowed(form.input_scale(sigma) * x, self.dtype or x.dtype)
        output = sample_of(self.model(seen, label, **self.model_kwargs))
        form.check_output(output, x)
        self.nfe += 1
        return form.denoised(output.to(x.dtype), x, sigma)
