r"""Training noise: the Poisson kernel conditioned on a bounded norm.

The kernel's unit noise n = g √(D / χ²_D) is heavy-tailed. The smaller D, the more often n is too large for a network to
learn, or for a float to represent: at D = 0.2 half of the norms exceed 13 √N, and one in a hundred exceeds 10⁹ √N.
Training therefore conditions n on

    ‖n‖ ≤ reach = √N c,        c = MAX_RATIO,

so that the root mean square of a sample's noise is at most c times the noise level σ that the network receives. In high
dimensions this is the lower limit 1/c on √(χ²_D / D), which is constant along a field line far from the data.

The flow remains exact. For noise n of any fixed distribution, x = y + σ n is transported by

    dx/dσ = E[n | x] = (x − x̂)/σ,

so a network that has learned x̂ for the conditioned noise maps the conditioned prior, ‖x‖ ≤ σ_max · reach, to the data.
A scheduler draws that prior if its `max_norm` is `PerturbationObjective.max_norm`.
"""

from __future__ import annotations

import functools
import math

import torch

from .kernel import PoissonKernel
from .tensors import Generators, append_dims, chi_squared, draw, working_dtype

MAX_RATIO = 4.0  # c; samples that start farther out remained noise even if the network was trained there
LEAST_AUG_DIM = 0.01  # below it more than 96 % of the kernel is beyond the reach
FAILURE = 28.0  # all candidates of a row are beyond the reach with a probability below exp(-28) = 7e-13


def check_trainable(aug_dim: float) -> None:
    """Raise a ValueError if D is so small that almost all of its kernel is beyond the reach."""
    if aug_dim < LEAST_AUG_DIM:
        raise ValueError(
            f"`aug_dim` = {aug_dim} is too small to train: it must be at least {LEAST_AUG_DIM}, or None for infinity, "
            "since below that hardly any noise is small enough to learn. Use 1.0 for PFGM and larger for PFGM++."
        )


def reach(data_dim: int) -> float:
    """The largest norm of the unit noise in `data_dim` dimensions, √N c."""
    return math.sqrt(data_dim) * MAX_RATIO


def sample_bounded(
    kernel: PoissonKernel,
    shape: tuple[int, ...],
    sigma: torch.Tensor,
    generator: Generators,
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Draw x − y = σ n with ‖n‖ ≤ reach, from the exact conditional distribution and without synchronizing the device.

    A draw of the kernel within the reach is kept. Any other keeps its direction, which is independent of its norm, and
    takes the first norm within the reach among a fixed number of further draws (see `FAILURE`). The Gaussian kernel of
    D = ∞ is not limited.

    Args:
        kernel: kernel with D ≥ `LEAST_AUG_DIM`.
        shape: (B, *).
        sigma: noise levels σ, (B,), in data units.
        generator: one generator, or a list of B of them.
        device: device of the result.
        dtype: dtype of the result. Gaussians are drawn in float32 or wider, radii in float64.

    Returns:
        Tensor of `shape`.
    """
    aug_dim = kernel.aug_dim
    if math.isinf(aug_dim):
        return kernel.sample(shape, sigma, generator, device, dtype)
    dim = math.prod(shape[1:])
    wide = torch.promote_types(dtype, torch.float32)
    limit = reach(dim)
    candidates = _candidates(aug_dim)
    radius_dtype = working_dtype(device)

    def chi2(degrees: float, count: int) -> torch.Tensor:
        def sampler(shape: tuple[int, ...], *, generator: torch.Generator | None, device: torch.device) -> torch.Tensor:
            return chi_squared(shape, degrees, generator, device).to(radius_dtype)

        return draw(sampler, (shape[0], count), generator, device)

    # Only the draws are made row by row: with everything else they would take as long as the network on a GPU.
    gaussian = draw(functools.partial(torch.randn, dtype=wide), shape, generator, device)
    ratio = (aug_dim / chi2(aug_dim, 1)).sqrt()
    norms = (aug_dim * chi2(dim, candidates) / chi2(aug_dim, candidates)).sqrt()
    first = (norms <= limit).byte().argmax(1, keepdim=True)
    length = torch.linalg.vector_norm(gaussian.flatten(1), dim=1, keepdim=True).to(radius_dtype)
    redrawn = norms.gather(1, first).clamp(max=limit) / length
    factor = torch.where(ratio * length <= limit, ratio, redrawn).to(wide)
    noise = gaussian * append_dims(factor, len(shape))
    return (append_dims(sigma.to(device, wide), len(shape)) * noise).to(dtype)


def _candidates(aug_dim: float) -> int:
    """The number of draws of which at least one is within the reach, except with a probability of exp(-FAILURE).

    The probability that a draw is within the reach is P(√(χ²_D / D) ≥ 1/c) in high dimensions, and close to it in low.
    """
    half = torch.tensor([aug_dim / 2, aug_dim / MAX_RATIO**2 / 2], dtype=torch.float64, device="cpu")
    return math.ceil(FAILURE / torch.special.gammaincc(half[0], half[1]).item())
