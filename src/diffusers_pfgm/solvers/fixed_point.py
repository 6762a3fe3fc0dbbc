r"""Anderson mixing for fixed-point equations x = G(x), separately for each sample of a batch.

With f_k = G(x_k) − x_k, plain iteration x_(k+1) = x_k + f_k converges if G is a contraction. Anderson mixing corrects
it by the last m iterations,

    x_(k+1) = x_k + f_k − (ΔX + ΔF) γ,        γ the least-squares solution of ΔF γ = f_k,

where the columns of ΔX and ΔF are the changes of x and f between iterations. For a linear G it is equivalent to GMRES,
and it converges in a few iterations if G is a contraction except in a few directions.

Reference: Walker and Ni, Anderson acceleration for fixed-point iterations, SIAM J. Numer. Anal. 49, 1715 (2011).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..physics.tensors import linalg_with_cpu_fallback

MEMORY = 5  # the number m of iterations that correct the next one
PATIENCE = 8  # iterations in which a change within the noise must halve, or else the search ends


def solve_fixed_point(
    update: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    tolerance: float,
    max_iterations: int,
    noise: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Solve x = update(x).

    Args:
        update: G, from (B, *) to (B, *), independently for each row.
        x: initial guess, (B, *).
        tolerance: tolerance of the change f of a sample, relative to its norm. A sample within it is not changed again.
        max_iterations: maximal number of calls of `update`.
        noise: relative change that may be due to rounding in G, 0 by default. The iteration also ends when the changes
            of all samples are within the noise and no longer decrease.

    Returns:
        The solution x (B, *), and the last change of each sample relative to its norm (B,). The change is larger than
        `tolerance`, or infinite, for a sample that has not converged; x is then the iterate with the smallest change.

    Examples:
        >>> matrix = torch.tensor([[0.0, 3.0], [-3.0, 0.0]])  # not a contraction
        >>> x, change = solve_fixed_point(lambda x: 1 + x @ matrix, torch.ones(1, 2), 1e-6, 20)
        >>> torch.allclose(x, 1 + x @ matrix, atol=1e-5), bool(change <= 1e-6)
        (True, True)
    """
    shape = x.shape
    x = x.flatten(1)
    best = x
    least = x.new_full((len(x),), torch.inf)
    history: list[torch.Tensor] = []
    changes_x: list[torch.Tensor] = []
    changes_f: list[torch.Tensor] = []
    previous: tuple[torch.Tensor, torch.Tensor] | None = None
    for _ in range(max_iterations):
        f = update(x.view(shape)).flatten(1) - x
        sizes = f.norm(dim=1) / x.norm(dim=1).clamp(min=torch.finfo(x.dtype).tiny)
        # A sample that has converged is not changed again; any other returns its iterate with the smallest change.
        better = (sizes < least) & (least > tolerance)
        best = torch.where(better.unsqueeze(1), torch.where((sizes <= tolerance).unsqueeze(1), x + f, x), best)
        least = torch.where(better, sizes, least)
        converged = least <= tolerance
        finished = converged | ~sizes.isfinite()
        if len(history) >= PATIENCE:
            finished = finished | ((least <= noise) & (least > history[-PATIENCE] / 2))
        if finished.all():
            break
        history.append(least)
        if previous is not None:
            changes_x = [*changes_x, x - previous[0]][-MEMORY:]
            changes_f = [*changes_f, f - previous[1]][-MEMORY:]
        previous = x, f
        x = x + (f - _mixing_term(changes_x, changes_f, f).masked_fill(converged.unsqueeze(1), 0))
    return best.view(shape), least


def _mixing_term(changes_x: list[torch.Tensor], changes_f: list[torch.Tensor], f: torch.Tensor) -> torch.Tensor:
    """The correction (ΔX + ΔF) γ, (B, N)."""
    if not changes_f:
        return torch.zeros_like(f)
    columns = torch.stack(changes_f, dim=2)
    scale = columns.norm(dim=1, keepdim=True).clamp(min=torch.finfo(f.dtype).tiny)
    columns = columns / scale
    ridge = 10 * torch.finfo(f.dtype).eps * torch.eye(columns.shape[2], dtype=f.dtype, device=f.device)
    gamma = linalg_with_cpu_fallback(torch.linalg.solve_ex, columns.mT @ columns + ridge, columns.mT @ f.unsqueeze(2))
    return ((torch.stack(changes_x, dim=2) / scale + columns) @ gamma).squeeze(2)
