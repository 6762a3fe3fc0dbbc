r"""The linear prediction types: a network that returns x̂, the noise ε, or v.

    sample          x̂ = F
    epsilon         x̂ = x − σ F for a plain network, so that F = dx/dσ along a field line
    v_prediction    x̂ = x/(1 + σ²) − σ F/√(1 + σ²) for a plain network           arXiv 2202.00512, appendix D

The coefficients of other preconditionings are in `preconditioning.py`.
"""

from __future__ import annotations

import torch

from .preconditioning import Preconditioning, Scalar
from .tensors import working_dtype

ROUNDING_MARGIN = 8  # x̂ must exceed so many roundings of x to be more than rounding


class Prediction:
    """What a network returns: x̂ from its output, and the output that a network learns for x̂.

    Args:
        preconditioning: of the network.
    """

    def __init__(self, preconditioning: Preconditioning) -> None:
        self.preconditioning = preconditioning

    def output_channels(self, channels: int) -> int:
        """Channels of the output for data of `channels`."""
        return channels

    def coefficients(self, sigma: Scalar) -> tuple[Scalar, Scalar]:
        """c_skip and c_out in x̂ = c_skip x + c_out F."""
        raise NotImplementedError

    def denoised(self, output: torch.Tensor, x: torch.Tensor, sigma: Scalar) -> torch.Tensor:
        """x̂ (B, C, *) from the output at x (B, C, *) in data units and σ, a number or (B, 1, ...)."""
        c_skip, c_out = self.coefficients(sigma)
        return c_skip * x + c_out * output

    def target(self, denoised: torch.Tensor, x: torch.Tensor, sigma: Scalar) -> torch.Tensor:
        """The output whose x̂ is `denoised`, the inverse of `denoised`."""
        c_skip, c_out = self.coefficients(sigma)
        return (denoised - c_skip * x) / c_out


class SamplePrediction(Prediction):
    """A network that returns x̂."""

    def coefficients(self, sigma: Scalar) -> tuple[Scalar, Scalar]:
        return 0.0, 1.0

    def denoised(self, output: torch.Tensor, x: torch.Tensor, sigma: Scalar) -> torch.Tensor:
        return 1.0 * output


class EpsilonPrediction(Prediction):
    """A network that returns (x − x̂)/σ, or with EDM's preconditioning a combination of x and x̂."""

    def coefficients(self, sigma: Scalar) -> tuple[Scalar, Scalar]:
        return self.preconditioning.epsilon_coefficients(sigma)

    def denoised(self, output: torch.Tensor, x: torch.Tensor, sigma: Scalar) -> torch.Tensor:
        denoised = super().denoised(output, x, sigma)
        is_plain = type(self.preconditioning) is Preconditioning
        return zero_where_rounded(denoised, x) if is_plain else denoised


class VPrediction(Prediction):
    """A network that returns v."""

    def coefficients(self, sigma: Scalar) -> tuple[Scalar, Scalar]:
        return self.preconditioning.v_coefficients(sigma)


def zero_where_rounded(denoised: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """x̂, or 0 in rows where x is so far away that x̂, a difference of two numbers of its size, is only rounding.

    At small D samples begin that far away. The data lie near 0 in comparison, so that 0 is the best estimate. The steps
    change by no more than a rounding of x, except the last one, which would return the rounding as data.
    """
    dims, wide = tuple(range(1, x.ndim)), working_dtype(x.device)
    norms, distances = (torch.linalg.vector_norm(each, dim=dims, keepdim=True, dtype=wide) for each in (denoised, x))
    return denoised * (norms > ROUNDING_MARGIN * torch.finfo(x.dtype).eps * distances)
