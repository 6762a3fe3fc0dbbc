r"""The trace of a posterior mean's Jacobian, all that a density along the flow needs: exact, or from random probes.

Along a field line, in t = log σ, dx/dt = x − x̂. A density that the flow carries along changes by its divergence
(instantaneous change of variables, arXiv 1806.07366; for PFGM arXiv 2209.11178, section 3.3),

    d log p / dt = −(N − tr J),        J = ∂x̂/∂x.

J comes in products vᵀJ, each one pass back through the network, whose pass forward they share. Of the ways to have them
this is the one that every layer of every network knows. From them

- **exact**: tr J = Σ_i e_iᵀJ e_i, N products;
- **hutchinson**: tr J = E[vᵀJ v] for probes v of independent entries of variance 1 (arXiv 1810.01367), one each;
- **hutch++**: with Q an orthonormal basis of Jᵀ S, tr J = tr QᵀJQ + E[wᵀJ w], w = (1 − QQᵀ) v (arXiv 2010.09649,
  algorithm 1). A third of the products each go to S, Q and v. Far better where a few directions hold most of J.

The probes stay the same along a line, so that the equation remains one that a solver can follow. Each probe's integral
is unbiased on its own; their spread is the standard error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from ..physics.tensors import Generators, draw, linalg_with_cpu_fallback
from ..utils.checks import check_whole_number

METHODS = ("exact", "hutchinson", "hutch++")
DISTRIBUTIONS = ("rademacher", "gaussian")

Denoise = Callable[[torch.Tensor], torch.Tensor]  # x̂ from x at some height


def check_divergence(method: str, num_probes: int, distribution: str) -> None:
    """Raises ValueError unless there is such a method, with so many of such probes."""
    if method not in METHODS:
        raise ValueError(f"`divergence` must be one of {METHODS}, but is {method!r}.")
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"`probe_distribution` must be one of {DISTRIBUTIONS}, but is {distribution!r}.")
    check_whole_number("num_probes", num_probes, 1)
    if method == "hutch++" and num_probes % 3:
        raise ValueError(f"`num_probes` must be a multiple of 3 for 'hutch++', but is {num_probes}. Use 3, 6, ...")


def draw_probes(
    shape: tuple[int, ...], num_probes: int, distribution: str, generator: Generators, like: torch.Tensor
) -> torch.Tensor:
    """(B, num_probes, *) for points of `shape` (B, *), on the device and in the dtype of `like`."""

    def sampler(size: tuple[int, ...], *, generator: torch.Generator | None, device: torch.device) -> torch.Tensor:
        normal = torch.randn(size, generator=generator, device=device)
        return normal if distribution == "gaussian" else torch.where(normal < 0, -1.0, 1.0)

    return draw(sampler, (shape[0], num_probes, *shape[1:]), generator, like.device).to(like.dtype)


def estimate_trace(
    denoise: Denoise, x: torch.Tensor, method: str = "exact", probes: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """x̂ and estimates of tr J at the same height, whose mean is the estimate.

    Args:
        denoise: x̂ from x; each row of its own.
        x: (B, *).
        method: "exact", "hutchinson" or "hutch++".
        probes: (B, P, *) from `draw_probes`; not for "exact".

    Returns:
        x̂ (B, *), and (B, P) for "hutchinson", (B, P / 3) for "hutch++", (B, 1) for "exact".

    Example:
        >>> points = torch.tensor([[3.0, 4.0]])
        >>> estimate_trace(lambda x: x * torch.tensor([0.5, 2.0]), points)[1]
        tensor([[2.5000]])
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        denoised = denoise(x)

    def products(vectors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """vᵀJ for each v (B, *)."""
        return [torch.autograd.grad(denoised, x, vector, retain_graph=True)[0] for vector in vectors]

    if method == "exact":
        trace = torch.zeros_like(x).flatten(1)
        for i, direction in enumerate(_basis(x)):
            trace[:, i] = products([direction])[0].flatten(1)[:, i]
        return denoised.detach(), trace.sum(1, keepdim=True)
    assert probes is not None  # drawn by the caller of every other method
    rest, known = probes.flatten(2).mT, x.new_zeros(len(x), 1)
    if method == "hutch++":
        sketch, rest = rest.chunk(3, dim=2)[:2]
        image = products(sketch.mT.reshape(len(x), -1, *x.shape[1:]).unbind(1))
        basis = linalg_with_cpu_fallback(torch.linalg.qr, torch.stack([column.flatten(1) for column in image], dim=2))
        rest, known = rest - basis @ (basis.mT @ rest), _quadratic(basis, products, x).sum(1, keepdim=True)
    return denoised.detach(), known + _quadratic(rest, products, x)


def _basis(x: torch.Tensor) -> Iterable[torch.Tensor]:
    """Each e_i of a sample, for all of them."""
    direction = torch.zeros_like(x).flatten(1)
    for i in range(direction.shape[1]):
        direction[:, i] = 1
        yield direction.view_as(x)
        direction[:, i] = 0


def _quadratic(
    columns: torch.Tensor, products: Callable[[Iterable[torch.Tensor]], list[torch.Tensor]], x: torch.Tensor
) -> torch.Tensor:
    """vᵀJ v (B, k) for each of the columns (B, N, k)."""
    vectors = columns.unbind(2)
    pulled = products(vector.reshape(x.shape) for vector in vectors)
    values = [(vector * product.flatten(1)).sum(1) for vector, product in zip(vectors, pulled, strict=True)]
    return torch.stack(values, dim=1)
