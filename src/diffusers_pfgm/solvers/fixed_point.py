r"""Equations x = G(x) by Anderson's mixing, each sample for itself.

With f_k = G(x_k) − x_k, plain iteration x_(k+1) = x_k + f_k converges where G contracts. Anderson's mixing takes from
it what the last m rounds have shown of G,

    x_(k+1) = x_k + f_k − (ΔX + ΔF) γ,        γ the least-squares solution of ΔF γ = f_k,

with the columns of ΔX and ΔF the changes of x and f from round to round. On a linear G it is GMRES, and it converges in
a few rounds where a few directions of G do not contract.

Reference: Walker and Ni, Anderson acceleration for fixed-point iterations, SIAM J. Numer. Anal. 49, 1715 (2011).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..physics.tensors import linalg_with_cpu_fallback

MEMORY = 5  # m
PATIENCE = 8  # rounds after which a change within the noise should have halved


def solve_fixed_point(
    update: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    tolerance: float,
    max_rounds: int,
    noise: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x with x = update(x).

    Args:
        update: G, from (B, *) to (B, *), each row of its own.
        x: (B, *), where to begin.
        tolerance: of the change f of a sample, relative to its norm. It then keeps its place.
        max_rounds: calls of `update` at most.
        noise: a change, relative as well, that may be due to rounding in G. When the changes of all samples are within
            it and fall no more, they are as small as they get.

    Returns:
        x (B, *), and the change of each sample there relative to its norm (B,): more than `tolerance`, or infinite,
        where it has not converged; x is then where the change was smallest.

    Example:
        >>> turn = torch.tensor([[0.0, 3.0], [-3.0, 0.0]])  # no contraction
        >>> x, change = solve_fixed_point(lambda x: 1 + x @ turn, torch.ones(1, 2), 1e-6, 20)
        >>> torch.allclose(x, 1 + x @ turn, atol=1e-5), bool(change <= 1e-6)
        (True, True)
    """
    shape, x = x.shape, x.flatten(1)
    best, least = x, x.new_full((len(x),), torch.inf)
    history: list[torch.Tensor] = []
    changes_x: list[torch.Tensor] = []
    changes_f: list[torch.Tensor] = []
    before: tuple[torch.Tensor, torch.Tensor] | None = None
    for _ in range(max_rounds):
        f = update(x.view(shape)).flatten(1) - x
        sizes = f.norm(dim=1) / x.norm(dim=1).clamp(min=torch.finfo(x.dtype).tiny)
        # A sample that has converged keeps its place; one that does not ends where it was best.
        better = (sizes < least) & (least > tolerance)
        best = torch.where(better.unsqueeze(1), torch.where((sizes <= tolerance).unsqueeze(1), x + f, x), best)
        least = torch.where(better, sizes, least)
        settled = least <= tolerance
        finished = settled | ~sizes.isfinite()
        if len(history) >= PATIENCE:
            finished = finished | ((least <= noise) & (least > history[-PATIENCE] / 2))
        if finished.all():
            break
        history.append(least)
        if before is not None:
            changes_x = [*changes_x, x - before[0]][-MEMORY:]
            changes_f = [*changes_f, f - before[1]][-MEMORY:]
        before = x, f
        x = x + (f - _mixed(changes_x, changes_f, f).masked_fill(settled.unsqueeze(1), 0))
    return best.view(shape), least


def _mixed(changes_x: list[torch.Tensor], changes_f: list[torch.Tensor], f: torch.Tensor) -> torch.Tensor:
    """(ΔX + ΔF) γ, (B, N)."""
    if not changes_f:
        return torch.zeros_like(f)
    columns = torch.stack(changes_f, dim=2)
    scale = columns.norm(dim=1, keepdim=True).clamp(min=torch.finfo(f.dtype).tiny)
    columns = columns / scale
    ridge = 10 * torch.finfo(f.dtype).eps * torch.eye(columns.shape[2], dtype=f.dtype, device=f.device)
    gamma = linalg_with_cpu_fallback(torch.linalg.solve_ex, columns.mT @ columns + ridge, columns.mT @ f.unsqueeze(2))
    return ((torch.stack(changes_x, dim=2) / scale + columns) @ gamma).squeeze(2)
