r"""The posterior mean of point charges: one matrix product for the distances, one for the mean.

Charges y_i seen from x at height r = σ√D weigh

    w_i ∝ (‖x − y_i‖² + r²)^(−(N+D)/2),        x̂ = Σ w_i y_i,

so that the direction of their field is (x − x̂, r) (PFGM, arXiv 2209.11178, section 3.1; PFGM++, arXiv
2302.04265, section 3). With m the squared distance to the nearest charge, the weights relative to it are

    w_i = exp(−(N+D)/2 · log1p((d_i² − m) / (m + r²))),        at D = ∞   exp(−(d_i² − m) / 2σ²),

which neither overflow nor lose the limit of large D. The exponent makes the weights (N+D)/2 times less accurate than
the distances, 1,537 times for a 32 × 32 RGB image, so distances are taken in float64. MPS has none: there the expanded
square ‖x‖² + ‖y‖² − 2 x·y only finds the nearest charges, whose distances are then redone from x − y itself. For images
in [−1, 1] and the paper's perturbation that is right to 5e-6 of the field; anywhere for data around 0 to 1e-4; next to
the plane midway between two charges, where x̂ jumps from one to the other, to 1e-5 of their distance. Data far from 0
lose more: subtract their mean first.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator

import torch

from .kernel import check_aug_dim
from .tensors import rescale_for_squaring, working_dtype

MEMORY_BUDGET = 32 * 2**20  # bytes of temporaries beside inputs and outputs; larger chunks were slower
NEAREST = 16  # charges whose distances float32 redoes

Force = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # nearest squared distance, Σ w_i, Σ w_i (y_i − x) or Σ w_i y_i


class Charges:
    """Point charges, made ready once for many evaluations.

    Args:
        charges: (K, *), K ≥ 1 charges of equal strength, in data units.
        dtype: of the prepared copy; float64 where the device has it by default. float32 takes half the memory and
            the compensated route.

    Raises:
        ValueError: if there are no charges, or one holds NaN or infinity (its index is named).
    """

    def __init__(self, charges: torch.Tensor, dtype: torch.dtype | None = None) -> None:
        if charges.ndim < 2 or charges.shape[0] == 0 or charges[0].numel() == 0:
            raise ValueError(
                f"`charges` must have the shape (K, *) with at least one charge, but has {tuple(charges.shape)}."
            )
        self.shape = charges.shape
        self.points = charges.flatten(1).to(dtype or working_dtype(charges.device))
        self.squares = torch.linalg.vector_norm(self.points, dim=1).square()
        check_finite("charges", self.squares.unsqueeze(1))

    @property
    def dtype(self) -> torch.dtype:
        return self.points.dtype

    def __getitem__(self, rows: slice) -> Charges:
        """Some of the charges, as a view."""
        part = copy.copy(self)
        part.points, part.squares = self.points[rows], self.squares[rows]
        part.shape = torch.Size([len(part.points), *self.shape[1:]])
        return part

    def to(self, device: torch.device) -> Charges:
        """The same charges on another device, in its working dtype."""
        if device == self.points.device:
            return self
        points = self.points.to(working_dtype(device)) if device.type == "mps" else self.points  # MPS takes no float64
        return Charges(points.to(device).view(self.shape), working_dtype(device))

    def split(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Points (k, N) and their squared norms (k,), at most `size` at a time."""
        return zip(self.points.split(size), self.squares.split(size), strict=True)


def check_finite(name: str, values: torch.Tensor) -> None:
    """Raise a ValueError that names the rows of `values` (B, *) with NaN or infinity."""
    finite = values.isfinite()
    if not finite.all():
        bad = (~finite.reshape(len(finite), -1).all(1)).nonzero().flatten()
        listed = ", ".join(str(i) for i in bad[:8].tolist()) + (", ..." if len(bad) > 8 else "")
        raise ValueError(f"`{name}` must be finite, but index {listed} holds NaN or infinity. Remove or repair it.")


def pull(
    x: torch.Tensor,
    sigma: torch.Tensor,
    charges: torch.Tensor | Charges,
    aug_dim: float | None,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """x̂ − x, where the charges pull a point on its way down; without cancellation next to a charge.

    Args:
        x: (B, N).
        sigma: (B,), the height r/√D.
        charges: (K, *) with N elements each.
        aug_dim: D.
        chunk_size: charges per chunk; by default as many as `MEMORY_BUDGET` holds.

    Returns:
        (B, N), in float64 where the device has it. A row is NaN where x, σ or any charge is.

    Raises:
        ValueError: if sizes do not fit, D is not positive or `chunk_size` < 1.
    """
    return _in_parts(x, sigma, charges, aug_dim, chunk_size, from_x=True)


def mean(
    x: torch.Tensor,
    sigma: torch.Tensor,
    charges: torch.Tensor | Charges,
    aug_dim: float | None,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """x̂ (B, N) itself, without cancellation far from the charges. See `pull`."""
    return _in_parts(x, sigma, charges, aug_dim, chunk_size, from_x=False)


def _in_parts(
    x: torch.Tensor,
    sigma: torch.Tensor,
    charges: torch.Tensor | Charges,
    aug_dim: float | None,
    chunk_size: int | None,
    from_x: bool,
) -> torch.Tensor:
    """x̂ − x or x̂, by blocks of points and chunks of charges that fit the memory budget."""
    dim, aug_dim = x.shape[1], check_aug_dim(aug_dim)
    if math.prod(charges.shape[1:]) != dim:
        raise ValueError(
            f"`charges` have the shape {tuple(charges.shape[1:])} each, but a sample in `x` has {dim} elements."
        )
    if not isinstance(charges, Charges) and charges.shape[0] == 0:
        raise ValueError(f"`charges` must be at least one, but have the shape {tuple(charges.shape)}.")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"`chunk_size` must be at least 1, but is {chunk_size}. Leave it out to choose by memory.")
    dtype = charges.points.dtype if isinstance(charges, Charges) else working_dtype(x.device)
    # Four numbers per pair and, for charges that are not prepared, their copy in the working dtype.
    redone = 4 * NEAREST * dim if dtype == torch.float32 else 0
    rows = max(1, MEMORY_BUDGET // (64 * min(charges.shape[0], 1024) + redone))
    size = chunk_size or max(1, MEMORY_BUDGET // (8 * (dim + 4 * min(rows, x.shape[0]))))
    blocks = zip(x.to(dtype).split(rows), sigma.to(dtype).unsqueeze(1).split(rows), strict=True)
    return torch.cat([_block(block, height, _chunks(charges, size), aug_dim, from_x) for block, height in blocks])


def _chunks(charges: torch.Tensor | Charges, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    if isinstance(charges, Charges):
        yield from charges.split(size)
        return
    for part in charges.flatten(1).split(size):
        points = part.to(working_dtype(part.device))
        yield points, torch.linalg.vector_norm(points, dim=1).square()


def _block(
    x: torch.Tensor,
    sigma: torch.Tensor,
    chunks: Iterator[tuple[torch.Tensor, torch.Tensor]],
    aug_dim: float,
    from_x: bool,
) -> torch.Tensor:
    # From farther away than can be squared the charges weigh the same to all digits.
    near = rescale_for_squaring(x)[0]
    found = _weighted(near, sigma, chunks, aug_dim, from_x)
    return found + (near - x) if from_x else found


def _weighted(
    x: torch.Tensor,
    sigma: torch.Tensor,
    chunks: Iterator[tuple[torch.Tensor, torch.Tensor]],
    aug_dim: float,
    from_x: bool,
) -> torch.Tensor:
    """Σ w_i (y_i − x) / Σ w_i or Σ w_i y_i / Σ w_i, each chunk's sums relative to its nearest charge until they add."""
    dim, x_squares = x.shape[1], x.square().sum(1, keepdim=True)
    tiny = torch.finfo(x.dtype).tiny  # no 0 / 0 for a point on a charge at height 0

    def weight(squares: torch.Tensor, nearest: torch.Tensor) -> torch.Tensor:
        if math.isinf(aug_dim):
            return torch.exp((nearest - squares) / (2 * sigma.square()).clamp(min=tiny))
        ratio = (squares - nearest) / (nearest + aug_dim * sigma.square()).clamp(min=tiny)
        return torch.exp(-(dim + aug_dim) / 2 * torch.log1p(ratio))

    def force(chunk: tuple[torch.Tensor, torch.Tensor]) -> Force:
        points, point_squares = chunk
        squares = torch.addmm(x_squares + point_squares, x, points.T, alpha=-2).clamp(min=0)
        if x.dtype == torch.float32:
            index = squares.topk(min(NEAREST, len(points)), dim=1, largest=False).indices
            steps = points[index] - x.unsqueeze(1)
            squares = squares.scatter(1, index, steps.square().sum(2))
        nearest = squares.detach().amin(1, keepdim=True)  # cancels in the quotient, so it needs no gradient
        weights = weight(squares, nearest)
        if not from_x:
            return nearest, weights.sum(1, keepdim=True), weights @ points
        far = weights.scatter(1, index, 0.0) if x.dtype == torch.float32 else weights
        total = torch.addmm(far.sum(1, keepdim=True) * -x, far, points)
        if x.dtype == torch.float32:
            total = total + (weights.gather(1, index).unsqueeze(1) @ steps).squeeze(1)
        return nearest, weights.sum(1, keepdim=True), total

    def add(first: Force, second: Force) -> Force:
        nearest = torch.minimum(first[0], second[0])
        scales = weight(first[0], nearest), weight(second[0], nearest)
        weights, total = (scales[0] * a + scales[1] * b for a, b in zip(first[1:], second[1:], strict=True))
        return nearest, weights, total

    _, weights, total = functools.reduce(add, map(force, chunks))
    return total / weights
