r"""The trace of the Jacobian of x̂, which determines the density along the flow: exact, or estimated from random probes.

Along a field line, with t = log σ, dx/dt = x − x̂. The log-density of the points changes by minus the divergence of this
velocity (instantaneous change of variables, arXiv 1806.07366; for PFGM arXiv 2209.11178, section 3.3),

    d log p / dt = −(N − tr J),        J = ∂x̂/∂x.

J is evaluated in vector-Jacobian products vᵀJ. Each is one backward pass through the network, and all of them share one
forward pass. Reverse mode is used because every layer of every network supports it. From these products

- **exact**: tr J = Σ_i e_iᵀJ e_i, N products;
- **hutchinson**: tr J = E[vᵀJ v] for probes v of independent entries of variance 1 (arXiv 1810.01367), one each;
- **hutch++**: with Q an orthonormal basis of Jᵀ S, tr J = tr QᵀJQ + E[wᵀJ w], w = (1 − QQᵀ) v (arXiv 2010.09649,
  algorithm 1). S, Q and v each use a third of the products. The variance is much smaller if J has a few dominant
  directions.

The probes are the same along a whole field line, so that the integrand is smooth for the solver. The integral of each
probe is an unbiased estimate; the standard deviation over probes gives the standard error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from ..physics.tensors import Generators, draw, linalg_with_cpu_fallback
from ..utils.checks import check_whole_number

DIVERGENCES = ("exact", "hutchinson", "hutch++")
DISTRIBUTIONS = ("rademacher", "gaussian")

DenoiseAtSigma = Callable[[torch.Tensor], torch.Tensor]  # x̂ as a function of x at a fixed σ


def check_divergence(method: str, num_probes: int, distribution: str) -> None:
    """Raise a ValueError that names the argument unless all three have allowed values."""
    if method not in DIVERGENCES:
        raise ValueError(f"`divergence` must be one of {DIVERGENCES}, but is {method!r}.")
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"`probe_distribution` must be one of {DISTRIBUTIONS}, but is {distribution!r}.")
    check_whole_number("num_probes", num_probes, 1)
    if method == "hutch++" and num_probes % 3:
        raise ValueError(f"`num_probes` must be a multiple of 3 for 'hutch++', but is {num_probes}. Use 3, 6, ...")


def draw_probes(
    shape: tuple[int, ...], num_probes: int, distribution: str, generator: Generators, like: torch.Tensor
) -> torch.Tensor:
    """Draw random probes with independent entries of mean 0 and variance 1.

    Args:
        shape: shape (B, *) of the points.
        num_probes: P, the number of probes for each point.
        distribution: "rademacher" or "gaussian".
        generator: one generator, or a list of B of them.
        like: tensor whose device and dtype the probes take.

    Returns:
        (B, P, *).
    """

    def sampler(size: tuple[int, ...], *, generator: torch.Generator | None, device: torch.device) -> torch.Tensor:
        normal = torch.randn(size, generator=generator, device=device)
        return normal if distribution == "gaussian" else torch.where(normal < 0, -1.0, 1.0)

    return draw(sampler, (shape[0], num_probes, *shape[1:]), generator, like.device).to(like.dtype)


def estimate_trace(
    denoise: DenoiseAtSigma, x: torch.Tensor, method: str = "exact", probes: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute x̂, and independent estimates of tr J at the same points.

    Args:
        denoise: x̂ as a function of x, independently for each row.
        x: points, (B, *), in data units.
        method: "exact", "hutchinson" or "hutch++". Defaults to "exact".
        probes: probes from `draw_probes`, (B, P, *); None, the default, for "exact".

    Returns:
        x̂ (B, *), and estimates of the trace: (B, P) for "hutchinson", (B, P / 3) for "hutch++", (B, 1) for "exact".

    Raises:
        ValueError: if `method` is another word, needs `probes` and there are none, or needs none and there are some.

    Examples:
        >>> points = torch.tensor([[3.0, 4.0]])
        >>> estimate_trace(lambda x: x * torch.tensor([0.5, 2.0]), points)[1]
        tensor([[2.5000]])
    """
    if method not in DIVERGENCES:
        raise ValueError(f"`method` must be one of {DIVERGENCES}, but is {method!r}.")
    if method != "exact" and probes is None:
        raise ValueError(f"`method` {method!r} needs `probes`, but they are None. Draw them by `draw_probes`.")
    if method == "exact" and probes is not None:
        raise ValueError("`method` 'exact' needs no `probes`, but there are some. Leave them out.")
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        denoised = denoise(x)

    def products(vectors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """vᵀJ for each v (B, *)."""
        return [torch.autograd.grad(denoised, x, vector, retain_graph=True)[0] for vector in vectors]

    if probes is None:
        trace = torch.zeros_like(x).flatten(1)
        for i, direction in enumerate(_basis_vectors(x)):
            trace[:, i] = products([direction])[0].flatten(1)[:, i]
        return denoised.detach(), trace.sum(1, keepdim=True)
    columns = probes.flatten(2).mT
    known_trace = x.new_zeros(len(x), 1)
    if method == "hutch++":
        sketch, columns = columns.chunk(3, dim=2)[:2]
        rows = products(sketch.mT.reshape(len(x), -1, *x.shape[1:]).unbind(1))
        basis = linalg_with_cpu_fallback(torch.linalg.qr, torch.stack([row.flatten(1) for row in rows], dim=2))
        columns = columns - basis @ (basis.mT @ columns)
        known_trace = _quadratic_forms(basis, products, x).sum(1, keepdim=True)
    return denoised.detach(), known_trace + _quadratic_forms(columns, products, x)


def _basis_vectors(x: torch.Tensor) -> Iterable[torch.Tensor]:
    """The unit vectors e_i of a sample, each repeated for the batch, (B, *)."""
    direction = torch.zeros_like(x).flatten(1)
    for i in range(direction.shape[1]):
        direction[:, i] = 1
        yield direction.view_as(x)
        direction[:, i] = 0


def _quadratic_forms(
    columns: torch.Tensor, products: Callable[[Iterable[torch.Tensor]], list[torch.Tensor]], x: torch.Tensor
) -> torch.Tensor:
    """The quadratic forms vᵀJ v (B, k) of k columns v (B, N, k)."""
    vectors = columns.unbind(2)
    vector_jacobian = products(vector.reshape(x.shape) for vector in vectors)
    values = [(vector * product.flatten(1)).sum(1) for vector, product in zip(vectors, vector_jacobian, strict=True)]
    return torch.stack(values, dim=1)
