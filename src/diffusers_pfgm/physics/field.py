r"""The exact Poisson field of point charges: the training target, and a model that needs no training.

Charges y_i on the plane z = 0 of R^(N+1) make at (x, z) a field along (x − x̂, z), with x̂ the posterior mean of
`charges.py`. PFGM (arXiv 2209.11178, section 3.2) learns it normalised and reversed, as followed towards the data:

    v = √N (x̂ − x, −z) / (‖(x̂ − x, z)‖ + γ).

For large N and γ = 0 each component is of order one; γ > 0 tames the directions close to the charges.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Literal

import torch

from .charges import Charges, check_finite, mean, pull
from .field_prediction import field_channels, normalize_field
from .kernel import check_aug_dim
from .tensors import cast_clamped, working_dtype


def posterior_mean(
    x: torch.Tensor,
    sigma: float | torch.Tensor,
    charges: torch.Tensor | Charges,
    aug_dim: float | None = 1.0,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """x̂ = E[y | x, σ], the mean of the charges weighed by their kernels at x.

    Args:
        x: (B, *), points in data units.
        sigma: the height σ = r/√D, a number or (B,).
        charges: (K, *), or `Charges` where they stay the same between calls.
        aug_dim: D; None for ∞.
        chunk_size: charges per chunk; by default as many as a budget of 32 MiB holds.

    Returns:
        x̂ of x's shape and dtype.

    Raises:
        ValueError: if shapes do not fit, or `x`, `sigma` or `charges` hold NaN or infinity (the index is named).

    Example:
        >>> charges = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
        >>> posterior_mean(torch.tensor([[0.0, 7.0]]), 0.5, charges)
        tensor([[0., 0.]])
    """
    heights = _heights(sigma, x)
    found = _checked(mean(x.flatten(1), heights, charges, aug_dim, chunk_size), x, heights, charges)
    return cast_clamped(found, x.dtype).view_as(x)


def normalized_field(
    x: torch.Tensor,
    z: float | torch.Tensor,
    charges: torch.Tensor | Charges,
    gamma: float = 5.0,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """The paper's training target v (arXiv 2209.11178, Algorithm 1), at D = 1.

    Args:
        x: (B, *), points in data units.
        z: their heights, a number or (B,).
        charges: (K, *), or `Charges` where they stay the same between calls.
        gamma: γ, in data units.
        chunk_size: charges per chunk; by default as many as a budget of 32 MiB holds.

    Returns:
        (B, N + 1), the last column along z, in x's dtype.

    Raises:
        ValueError: if shapes do not fit, or `x`, `z` or `charges` hold NaN or infinity (the index is named).
    """
    heights = _heights(z, x)
    found = normalize_field(pull(x.flatten(1), heights, charges, 1.0, chunk_size), heights, gamma)
    return _checked(found, x, heights, charges).to(x.dtype)


def _checked(
    found: torch.Tensor, x: torch.Tensor, heights: torch.Tensor, charges: torch.Tensor | Charges
) -> torch.Tensor:
    """What has been found, if it is finite. Only else, after one look at the device, the cause is searched for."""
    if not found.isfinite().all():
        check_finite("x", x)
        check_finite("sigma", heights)
        if isinstance(charges, torch.Tensor):
            Charges(charges)  # names the charge that is not finite
    return found


def _heights(sigma: float | torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A number, () or (B,) as (B,), beside x and in the working dtype."""
    heights = torch.as_tensor(sigma, device=x.device, dtype=working_dtype(x.device))
    if heights.shape not in ((), (1,), x.shape[:1]):
        raise ValueError(
            f"The height must be a number or have the shape {tuple(x.shape[:1])}, but has {tuple(heights.shape)}."
        )
    return heights.expand(x.shape[0])


@dataclass
class FieldOutput:
    """What `ChargeField` returns: `sample`, shaped as a network's output."""

    sample: torch.Tensor


class ChargeField(torch.nn.Module):
    """The exact field of charges, called like `UNet2DModel`: generation without training, and the bench for solvers.

    Args:
        charges: (K, C, *), for instance images (K, C, H, W) in [-1, 1], or points (K, N).
        aug_dim: D; None for ∞.
        prediction_type: what it returns: "field" (C + 1 channels; with σ in place of z where D is not 1), "sample" (x̂)
            or "epsilon" ((x − x̂)/σ).
        gamma: γ of the normalised field.

    Raises:
        ValueError: if the charges are empty or not finite, or the options do not fit.

    Example:
        >>> field = ChargeField(torch.rand(5, 1, 8, 8), prediction_type="sample")
        >>> field(torch.randn(2, 1, 8, 8), timestep=0.5).sample.shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        charges: torch.Tensor,
        aug_dim: float | None = 1.0,
        prediction_type: Literal["field", "sample", "epsilon"] = "field",
        gamma: float = 5.0,
    ) -> None:
        super().__init__()
        if prediction_type not in ("field", "sample", "epsilon"):
            raise ValueError(f"`prediction_type` must be 'field', 'sample' or 'epsilon', but is {prediction_type!r}.")
        self.charges = Charges(charges)
        channels = charges.shape[1]
        self.config = SimpleNamespace(
            in_channels=channels,
            out_channels=channels + (prediction_type == "field"),
            sample_size=tuple(charges.shape[2:]),
            aug_dim=None if math.isinf(check_aug_dim(aug_dim)) else aug_dim,  # as a scheduler's configuration has it
            prediction_type=prediction_type,
            gamma=gamma,
            sigma_data=None,
            beta_schedule=None,
        )
        self._dtype = torch.promote_types(charges.dtype, torch.float32)
        # An empty buffer of integers follows .to(device) and no .to(dtype): the charges keep their precision.
        self._anchor: torch.Tensor
        self.register_buffer("_anchor", torch.empty(0, dtype=torch.int8, device=charges.device), persistent=False)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> ChargeField:
        super()._apply(fn, recurse)
        self.charges = self.charges.to(self._anchor.device)
        return self

    @property
    def device(self) -> torch.device:
        return self._anchor.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the charges that were given, at least float32, and float32 on MPS, which has no wider one."""
        return torch.float32 if self.device.type == "mps" else self._dtype

    def forward(
        self, sample: torch.Tensor, timestep: float | torch.Tensor, return_dict: bool = True
    ) -> FieldOutput | tuple[torch.Tensor]:
        """The field at `sample` (B, C, *) and the height σ = `timestep`, a number, () or (B,)."""
        flat = sample.flatten(1)
        sigma = _heights(timestep, sample)
        if self.config.prediction_type == "sample":
            output = mean(flat, sigma, self.charges, self.config.aug_dim).view_as(sample)
        else:
            offset = pull(flat, sigma, self.charges, self.config.aug_dim)
            if self.config.prediction_type == "field":
                output = field_channels(normalize_field(offset, sigma, self.config.gamma), sample.shape)
            else:
                output = (-offset / sigma.to(offset.dtype).unsqueeze(1)).view_as(sample)
        limit = torch.finfo(sample.dtype).max  # which an epsilon exceeds far away at small σ
        output = output.clamp(-limit, limit).to(sample.dtype)
        return FieldOutput(output) if return_dict else (output,)
