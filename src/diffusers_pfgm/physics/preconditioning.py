r"""The scaling of a network's input and output: c_in, c_noise, c_skip and c_out.

A network F is called as F(c_in x, c_noise). For the linear prediction types the posterior mean x̂ = E[y | x, σ] is

    x̂ = c_skip x + c_out F(c_in x, c_noise).

Three conventions are in common use, each a class here:

    plain   c_in = 1                c_noise = σ         epsilon: c_skip = 1, c_out = −σ
    EDM     c_in = 1/√(σ² + σ_d²)   c_noise = ln(σ)/4   epsilon: c_skip = σ_d²/(σ² + σ_d²), c_out = σ σ_d/√(σ² + σ_d²)
    DDPM    c_in = 1/√(1 + σ²)      c_noise = t         epsilon: as plain

EDM is arXiv 2206.00364, table 1, with σ_d the standard deviation of the data; PFGM++ (arXiv 2302.04265, section 4)
extends it to any D by r = σ√D. At small D, however, a sample carries another noise level s than σ, so that this scales
neither inputs nor outputs to unit variance. The fourth convention, Student-t, uses the formulas of EDM with an estimate
ŝ(x, σ) of s (`noise_estimate.py`) instead of σ in all four coefficients:

    Student-t   c_in = 1/√(ŝ² + σ_d²)   c_noise = ln(ŝ)/4
                epsilon: c_skip = σ_d²/(ŝ² + σ_d²), c_out = ŝ σ_d/√(ŝ² + σ_d²)

DDPM (arXiv 2006.11239) includes every network that was trained with a beta schedule. Such a network was trained at
finitely many noise levels, each identified by its index t, with √ᾱ = 1/√(1 + σ²). Between two of them ln σ is
interpolated linearly in t, as in diffusers.

For v_prediction (arXiv 2202.00512, appendix D) plain and DDPM have c_skip = 1/(1 + σ²), c_out = −σ/√(1 + σ²). EDM has
the coefficients of its epsilon prediction with the opposite sign of c_out.
"""

from __future__ import annotations

import functools
import math

import torch

from .noise_estimate import NoiseEstimate
from .tensors import at_least_float32, piecewise_linear

Scalar = float | torch.Tensor  # a number, or a tensor that broadcasts against x

LARGEST_C_NOISE = 177.0  # ln(σ)/4 at about the largest σ of float64
ZERO_SNR_SIGMA = 2.0**40  # replaces σ = ∞: x̂ is then below the rounding error of x, even in float64


class Preconditioning:
    """The plain convention: the network's input is x and σ, without scaling.

    Attributes:
        allows_distant_x: whether x may be so far from the data that x̂ = x − σ F is lost in the rounding of x, as at
            small D.
    """

    allows_distant_x = True

    def noise_level(self, x: torch.Tensor, sigma: Scalar) -> Scalar:
        """The noise level for which the coefficients at x (B, *) and σ are computed: σ, or an estimate from x."""
        return sigma

    def c_in(self, sigma: Scalar) -> Scalar:
        """The factor of x in the network's input."""
        return 1.0

    def c_noise(self, sigma: Scalar) -> Scalar:
        """The timestep passed to the network at σ."""
        return sigma

    def sigma(self, c_noise: Scalar) -> Scalar:
        """The inverse of `c_noise`: σ at a timestep."""
        return c_noise

    def state_scale(self, sigma: Scalar) -> Scalar:
        """The factor by which x in data units is multiplied to give a scheduler's state at σ."""
        return 1.0

    def epsilon_coefficients(self, sigma: Scalar) -> tuple[Scalar, Scalar]:
        """c_skip and c_out of a network that predicts ε."""
        return 1.0, -sigma

    def v_coefficients(self, sigma: Scalar) -> tuple[Scalar, Scalar]:
        """c_skip and c_out of a network that predicts v."""
        return 1 / (1 + sigma**2), -sigma / (1 + sigma**2) ** 0.5


class EDMPreconditioning(Preconditioning):
    """The preconditioning of EDM, and of PFGM++ at any D.

    Args:
        sigma_data: σ_d > 0, the standard deviation of the data.
    """

    allows_distant_x = False

    def __init__(self, sigma_data: float) -> None:
        self.sigma_data = sigma_data

    def c_in(self, sigma: Scalar) -> Scalar:
        return (sigma**2 + self.sigma_data**2) ** -0.5

    def c_noise(self, sigma: Scalar) -> Scalar:
        return (sigma.log() if isinstance(sigma, torch.Tensor) else math.log(sigma)) / 4

    def sigma(self, c_noise: Scalar) -> Scalar:
        if isinstance(c_noise, torch.Tensor):
            return (4 * c_noise).exp()
        return math.exp(4 * c_noise) if c_noise < LARGEST_C_NOISE else math.inf

    def epsilon_coefficients(self, sigma: Scalar) -> tuple[Scalar, Scalar]:
        total = sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / total, self.sigma_data * sigma / total**0.5

    def v_coefficients(self, sigma: Scalar) -> tuple[Scalar, Scalar]:
        c_skip, c_out = self.epsilon_coefficients(sigma)
        return c_skip, -c_out


class StudentTPreconditioning(EDMPreconditioning):
    """The preconditioning of EDM at the noise level that is estimated from a sample, for finite D.

    Args:
        sigma_data: σ_d > 0, the standard deviation of the data.
        estimate: the estimate ŝ(x, σ) of the noise level.
    """

    def __init__(self, sigma_data: float, estimate: NoiseEstimate) -> None:
        super().__init__(sigma_data)
        self.estimate = estimate

    def noise_level(self, x: torch.Tensor, sigma: Scalar) -> Scalar:
        return self.estimate(x, sigma)


class DDPMPreconditioning(Preconditioning):
    """The preconditioning of networks that were trained with a beta schedule.

    Args:
        train_sigmas: noise level σ of each training timestep, increasing.
    """

    allows_distant_x = False

    def __init__(self, train_sigmas: tuple[float, ...]) -> None:
        self.train_sigmas = train_sigmas

    def c_in(self, sigma: Scalar) -> Scalar:
        return (1 + sigma**2) ** -0.5

    def state_scale(self, sigma: Scalar) -> Scalar:
        return self.c_in(sigma)

    def c_noise(self, sigma: Scalar) -> Scalar:
        if not isinstance(sigma, torch.Tensor):
            return float(self.c_noise(torch.tensor(sigma, dtype=torch.float64, device="cpu")))
        timesteps, log_sigmas = self._table(sigma)
        return piecewise_linear(at_least_float32(sigma).log(), log_sigmas, timesteps)

    def sigma(self, c_noise: Scalar) -> Scalar:
        if not isinstance(c_noise, torch.Tensor):
            return float(self.sigma(torch.tensor(c_noise, dtype=torch.float64, device="cpu")))
        timesteps, log_sigmas = self._table(c_noise)
        return piecewise_linear(at_least_float32(c_noise), timesteps, log_sigmas).exp()

    def _table(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The training timesteps and their ln σ, on the device of `like`, in its dtype or at least float32."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        log_sigmas = _log_sigmas(self.train_sigmas, dtype, like.device)
        return torch.arange(len(log_sigmas), dtype=dtype, device=like.device), log_sigmas


@functools.lru_cache(maxsize=8)
def _log_sigmas(train_sigmas: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.tensor(train_sigmas, dtype=dtype, device=device).log()
