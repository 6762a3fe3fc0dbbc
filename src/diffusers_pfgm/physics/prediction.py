r"""The linear prediction types: the network's output is x̂, the noise ε, or v.

    sample          x̂ = F
    epsilon         x̂ = x − σ F for a plain network, so that F = dx/dσ along a field line
    v_prediction    x̂ = x/(1 + σ²) − σ F/√(1 + σ²) for a plain network           arXiv 2202.00512, appendix D

The coefficients for other preconditionings are in `preconditioning.py`.
"""

from __future__ import annotations

import torch

from .preconditioning import Preconditioning, Scalar
from .tensors import working_dtype

ROUNDING_MARGIN = 8  # x̂ is only rounding error unless its norm exceeds this many rounding errors of x


class Prediction:
    """The relation between a network's output and x̂: x̂ from the output, and the training target from x̂.

    Args:
        preconditioning: the network's preconditioning.
    """

    def __init__(self, preconditioning: Preconditioning) -> None:
        self.preconditioning = preconditioning

    def output_channels(self, channels: int) -> int:
        """The number of output channels for data with `channels` channels."""
        return channels

    def coefficients(self, sigma: Scalar) -> tuple[Scalar, Scalar]:
        """c_skip and c_out in x̂ = c_skip x + c_out F."""
        raise NotImplementedError

    def denoised(self, output: torch.Tensor, x: torch.Tensor, sigma: Scalar) -> torch.Tensor:
        """x̂ from a network's output.

        Args:
            output: the network's output at x and σ, (B, C', *), see `output_channels`.
            x: (B, C, *), in data units.
            sigma: noise level σ, a number or (B, 1, ...).

        Returns:
            x̂ (B, C, *), in data units.
        """
        c_skip, c_out = self.coefficients(sigma)
        return c_skip * x + c_out * output

    def target(self, denoised: torch.Tensor, x: torch.Tensor, sigma: Scalar) -> torch.Tensor:
        """The output F for a given x̂: the inverse of the method `denoised`, with the same shapes."""
        c_skip, c_out = self.coefficients(sigma)
        return (denoised - c_skip * x) / c_out


class SamplePrediction(Prediction):
    """A network whose output is x̂."""

    def coefficients(self, sigma: Scalar) -> tuple[Scalar, Scalar]:
        return 0.0, 1.0

    def denoised(self, output: torch.Tensor, x: torch.Tensor, sigma: Scalar) -> torch.Tensor:
        return output.clone()  # kept by solvers, while some networks write their next output into the same memory


class EpsilonPrediction(Prediction):
    """A network whose output is (x − x̂)/σ, or with EDM's preconditioning (x̂ − c_skip x)/c_out."""

    def coefficients(self, sigma: Scalar) -> tuple[Scalar, Scalar]:
        return self.preconditioning.epsilon_coefficients(sigma)

    def denoised(self, output: torch.Tensor, x: torch.Tensor, sigma: Scalar) -> torch.Tensor:
        denoised = super().denoised(output, x, sigma)
        return zero_where_rounded(denoised, x) if self.preconditioning.allows_distant_x else denoised


class VPrediction(Prediction):
    """A network whose output is v."""

    def coefficients(self, sigma: Scalar) -> tuple[Scalar, Scalar]:
        return self.preconditioning.v_coefficients(sigma)


def zero_where_rounded(denoised: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Set x̂ to 0 in rows where x is so large that x̂, a difference of two numbers of that size, is only rounding error.

    At small D, samples start at such distances. Compared with x the data are near 0, so that 0 is the best estimate.
    Steps change by no more than the rounding error of x, except the last one, which would return that error as data.
    """
    dims = tuple(range(1, x.ndim))
    wide = working_dtype(x.device)
    norms, distances = (torch.linalg.vector_norm(each, dim=dims, keepdim=True, dtype=wide) for each in (denoised, x))
    return denoised * (norms > ROUNDING_MARGIN * torch.finfo(x.dtype).eps * distances)
