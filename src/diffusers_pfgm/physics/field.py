r"""The exact Poisson field of point charges: the training target, and a model that needs no training.

Charges y_i on the plane z = 0 of R^(N+1) produce at (x, z) a field parallel to (x − x̂, z), with x̂ the posterior mean of
`charges.py`. PFGM (arXiv 2209.11178, section 3.2) learns the normalized field, reversed so that it points towards the
data:

    v = √N (x̂ − x, −z) / (‖(x̂ − x, z)‖ + γ).

At γ = 0 the norm is √N, so that each component is of order one. γ > 0 makes v small close to the charges, where its
direction changes fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Literal

import torch

from .charges import Charges, check_finite, mean_of_charges
from .field_prediction import check_gamma, field_channels, normalize_field
from .kernel import check_aug_dim
from .tensors import cast_clamped, check_noise_level, check_samples, to_tensor, working_dtype


def posterior_mean(
    x: torch.Tensor,
    sigma: float | torch.Tensor,
    charges: torch.Tensor | Charges,
    aug_dim: float | None = 1.0,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """The posterior mean x̂ = E[y | x, σ] (denoised sample): the mean of the charges, weighted by their kernels at x.

    Args:
        x: (B, *), points in data units.
        sigma: noise level σ = r/√D, a number or (B,), in data units.
        charges: (K, *), in data units, or `Charges` if they stay the same between calls.
        aug_dim: D; None for ∞. Defaults to 1.
        chunk_size: charges per chunk; by default as many as the memory budget of the device allows.

    Returns:
        x̂ (B, *), in data units and in the dtype of x.

    Raises:
        ValueError: if the shapes of `x`, `sigma` and `charges` do not match, `x` is not floating-point, `aug_dim` is
            not positive, `chunk_size` is below 1, `sigma` is a negative or infinite number, or `x`, a tensor `sigma`
            or `charges` hold NaN or infinity and the result is therefore not finite (the error names the index).

    Examples:
        >>> charges = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
        >>> posterior_mean(torch.tensor([[0.0, 7.0]]), 0.5, charges)
        tensor([[0., 0.]])
    """
    sigmas = _expand_sigma("sigma", sigma, "x", x)
    denoised = unchecked_posterior_mean(x, sigmas, charges, aug_dim, chunk_size)
    check_result(denoised, x, "sigma", sigmas, charges)
    return denoised


def unchecked_posterior_mean(
    x: torch.Tensor,
    sigmas: torch.Tensor,
    charges: torch.Tensor | Charges,
    aug_dim: float | None,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """x̂ as by `posterior_mean`, with one σ for each sample (B,), and NaN where an input is not finite."""
    denoised = mean_of_charges(x.flatten(1), sigmas, charges, aug_dim, chunk_size)
    return cast_clamped(denoised, x.dtype).view_as(x)


def normalized_field(
    x: torch.Tensor,
    z: float | torch.Tensor,
    charges: torch.Tensor | Charges,
    gamma: float = 5.0,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """The normalized field v, the training target of PFGM (arXiv 2209.11178, Algorithm 1), at D = 1.

    Args:
        x: (B, *), points in data units.
        z: coordinate z = σ of the points, a number or (B,), in data units.
        charges: (K, *), in data units, or `Charges` if they stay the same between calls.
        gamma: γ, in data units. Defaults to 5.
        chunk_size: charges per chunk; by default as many as the memory budget of the device allows.

    Returns:
        (B, N + 1), with the z component in the last column, in the dtype of x.

    Raises:
        ValueError: if the shapes of `x`, `z` and `charges` do not match, `x` is not floating-point, `gamma` is
            negative or not finite, `chunk_size` is below 1, `z` is a negative or infinite number, or `x`, a tensor `z`
            or `charges` hold NaN or infinity and the result is therefore not finite (the error names the index).
    """
    check_gamma(gamma)
    sigmas = _expand_sigma("z", z, "x", x)
    field = unchecked_normalized_field(x, sigmas, charges, gamma, chunk_size)
    check_result(field, x, "z", sigmas, charges)
    return field


def unchecked_normalized_field(
    x: torch.Tensor,
    z: torch.Tensor,
    charges: torch.Tensor | Charges,
    gamma: float,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """v as by `normalized_field`, with one z for each sample (B,), and NaN where an input is not finite."""
    offset = mean_of_charges(x.flatten(1), z, charges, 1.0, chunk_size, from_x=True)
    return normalize_field(offset, z.to(working_dtype(z.device)), gamma).to(x.dtype)


def check_result(
    result: torch.Tensor, x: torch.Tensor, sigma_name: str, sigmas: torch.Tensor, charges: torch.Tensor | Charges
) -> None:
    """Raise a ValueError that names the input that is not finite, if the result is not.

    Only the result is read from the device, once; the inputs are only checked after that has failed.
    """
    if not result.isfinite().all():
        check_finite("x", x)
        check_finite(sigma_name, sigmas)
        if isinstance(charges, torch.Tensor):
            Charges(charges)  # names the charge that is not finite


def _expand_sigma(sigma_name: str, sigma: float | torch.Tensor, x_name: str, x: torch.Tensor) -> torch.Tensor:
    """Expand a number, () or (B,) to (B,), on the device of x and in its working dtype.

    Args:
        sigma_name: The name of the argument `sigma` in error messages.
        sigma: The number, () or (B,).
        x_name: The name of the argument `x` in error messages.
        x: (B, *).
    """
    check_samples(x_name, x)
    check_noise_level(sigma_name, sigma)
    sigmas = to_tensor(sigma, working_dtype(x.device), x.device)
    if sigmas.shape not in ((), (1,), x.shape[:1]):
        raise ValueError(
            f"`{sigma_name}` must be a number or have the shape {tuple(x.shape[:1])}, one for each sample in "
            f"`{x_name}`, but has {tuple(sigmas.shape)}."
        )
    return sigmas.expand(x.shape[0])


@dataclass
class FieldOutput:
    """The output of `ChargeField`.

    Attributes:
        sample: (B, C, *), or (B, C + 1, *) for the prediction type "field".
    """

    sample: torch.Tensor


class ChargeField(torch.nn.Module):
    """The exact field of charges, called like `UNet2DModel`: for generation without training and for testing solvers.

    Args:
        charges: (K, C, *), for instance images (K, C, H, W) in [-1, 1], or points (K, N).
        aug_dim: D; None for ∞. Defaults to 1.
        prediction_type: the output: "field" (C + 1 channels; with σ in place of z if D is not 1), "sample" (x̂) or
            "epsilon" ((x − x̂)/σ). Defaults to "field".
        gamma: γ of the normalized field, in data units. Defaults to 5.

    Raises:
        ValueError: if `charges` is empty or holds NaN or infinity, `aug_dim` is not positive, `prediction_type` is
            another word, or `gamma` is negative or not finite.

    Examples:
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
        check_gamma(gamma)
        self.charges = Charges(charges)
        channels = charges.shape[1]
        self.config = SimpleNamespace(
            in_channels=channels,
            out_channels=channels + (prediction_type == "field"),
            sample_size=tuple(charges.shape[2:]),
            aug_dim=None if math.isinf(check_aug_dim(aug_dim)) else aug_dim,  # as in the config of a scheduler
            prediction_type=prediction_type,
            gamma=gamma,
            sigma_data=None,
            beta_schedule=None,
        )
        self._dtype = torch.promote_types(charges.dtype, torch.float32)
        # `.to(dtype)` does not change a buffer of integers, so this one only tracks the device. The charges keep their
        # precision.
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
        """The dtype of the `charges` argument, but at least float32, and float32 on MPS, which has no float64."""
        return torch.float32 if self.device.type == "mps" else self._dtype

    def forward(
        self,
        sample: torch.Tensor,
        timestep: float | torch.Tensor,
        class_labels: None = None,
        return_dict: bool = True,
    ) -> FieldOutput | tuple[torch.Tensor]:
        """Evaluate the field.

        Args:
            sample: x (B, C, *), in data units.
            timestep: noise level σ (z for D = 1), a number, () or (B,), in data units.
            class_labels: None; a `ChargeField` has no classes.
            return_dict: return a `FieldOutput` rather than a tuple. Defaults to True.

        Returns:
            (B, C, *), or (B, C + 1, *) for the prediction type "field", in the dtype of `sample`.

        Raises:
            ValueError: if `sample` is not floating-point, the shape of `sample` or `timestep` does not match, or there
                are `class_labels`.
        """
        if class_labels is not None:
            raise ValueError(
                "`class_labels` were passed, but a ChargeField has no classes. Make one of the charges of each class."
            )
        sigma = _expand_sigma("timestep", timestep, "sample", sample)
        flat = sample.flatten(1)
        if self.config.prediction_type == "sample":
            output = mean_of_charges(flat, sigma, self.charges, self.config.aug_dim).view_as(sample)
        else:
            offset = mean_of_charges(flat, sigma, self.charges, self.config.aug_dim, from_x=True)
            if self.config.prediction_type == "field":
                output = field_channels(normalize_field(offset, sigma, self.config.gamma), sample.shape)
            else:
                output = (-offset / sigma.to(offset.dtype).unsqueeze(1)).view_as(sample)
        limit = torch.finfo(sample.dtype).max  # exceeded by (x − x̂)/σ far from the data at small σ
        output = output.clamp(-limit, limit).to(sample.dtype)
        return FieldOutput(output) if return_dict else (output,)
