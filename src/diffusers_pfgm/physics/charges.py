r"""The posterior mean of point charges: one matrix product for the distances, one for the mean.

At a point x with the augmented radius r = σ√D, the charges y_i have the weights

    w_i ∝ (‖x − y_i‖² + r²)^(−(N+D)/2),        x̂ = Σ w_i y_i / Σ w_i,

so that the direction of their field is (x − x̂, r) (PFGM, arXiv 2209.11178, section 3.1; PFGM++, arXiv
2302.04265, section 3). With m the squared distance to the nearest charge, the weights relative to it are

    w_i = exp(−(N+D)/2 · log1p((d_i² − m) / (m + r²))),        at D = ∞   exp(−(d_i² − m) / 2σ²),

which neither overflow nor lose precision at large D. The exponent makes the weights (N+D)/2 times less accurate than
the distances, 1,537 times for a 32 × 32 RGB image at D = 1, so distances are computed in float64. MPS has no float64:
there the expanded square ‖x‖² + ‖y‖² − 2 x·y only selects the nearest charges, whose distances are then recomputed from
x − y itself. For images in [−1, 1] and the paper's perturbation the relative error of the field is then below 5e-6; for
any points x and data centred at 0 it is below 1e-4; close to the plane midway between two charges, where x̂ jumps from
one to the other, the error of x̂ is below 1e-5 of their distance. Data far from 0 lose more: subtract their mean first.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator

import torch

from .kernel import check_aug_dim
from .tensors import move_to, rescale_for_squaring, working_dtype

# Bytes of temporaries in addition to inputs and outputs. On a CPU larger chunks were slower. On an accelerator a small
# chunk takes as long as a large one, since most of the time its operations are being started.
MEMORY_BUDGET = 32 * 2**20
ACCELERATOR_MEMORY_BUDGET = 512 * 2**20
NEAREST = 16  # number of charges whose distances are recomputed in float32

# nearest squared distance (B, 1), Σ w_i (B, 1), and Σ w_i (y_i − x) or Σ w_i y_i (B, N)
WeightedSums = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Charges:
    """Point charges, prepared once for many evaluations.

    Args:
        charges: (K, *), K ≥ 1 charges of equal strength, in data units.
        dtype: dtype of the prepared copy; by default float64, or float32 on MPS. float32 needs half the memory, and
            distances to the nearest charges are recomputed as described above.

    Attributes:
        points: flattened charges, (K, N).
        squares: their squared norms, (K,).
        shape: (K, *).

    Raises:
        ValueError: if `charges` is no tensor, is empty, or holds NaN or infinity (the error names the index).
    """

    def __init__(self, charges: torch.Tensor, dtype: torch.dtype | None = None) -> None:
        if not isinstance(charges, torch.Tensor):
            raise ValueError(
                f"`charges` must be a tensor (K, *), but is {type(charges).__name__}. Convert an array by "
                "`torch.as_tensor`."
            )
        if charges.ndim < 2 or charges.shape[0] == 0 or charges[0].numel() == 0:
            raise ValueError(
                f"`charges` must have the shape (K, *) with at least one charge, but has {tuple(charges.shape)}."
            )
        self.shape = charges.shape
        # A copy even if the dtype is the same: the squares would be wrong if the caller changed the charges in place.
        self.points = charges.flatten(1).to(dtype or working_dtype(charges.device), copy=True)
        self.squares = torch.linalg.vector_norm(self.points, dim=1).square()
        check_finite("charges", self.squares.unsqueeze(1))

    @property
    def dtype(self) -> torch.dtype:
        return self.points.dtype

    def __getitem__(self, rows: slice) -> Charges:
        """A slice of the charges, as a view."""
        part = copy.copy(self)
        part.points = self.points[rows]
        part.squares = self.squares[rows]
        part.shape = torch.Size([len(part.points), *self.shape[1:]])
        return part

    def to(self, device: torch.device | str) -> Charges:
        """The same charges on `device`, in the working dtype of that device."""
        device = torch.device(device)
        if device == self.points.device:
            return self
        return Charges(move_to(self.points, device).view(self.shape), working_dtype(device))


def check_finite(name: str, values: torch.Tensor) -> None:
    """Raise a ValueError that names the rows of `values` (B, *) that hold NaN or infinity."""
    finite = values.isfinite()
    if not finite.all():
        bad = (~finite.reshape(len(finite), -1).all(1)).nonzero().flatten()
        indices = ", ".join(str(i) for i in bad[:8].tolist()) + (", ..." if len(bad) > 8 else "")
        raise ValueError(f"`{name}` must be finite, but index {indices} holds NaN or infinity. Remove or repair it.")


def mean_of_charges(
    x: torch.Tensor,
    sigma: torch.Tensor,
    charges: torch.Tensor | Charges,
    aug_dim: float | None,
    chunk_size: int | None = None,
    from_x: bool = False,
) -> torch.Tensor:
    """x̂, or x̂ − x, in blocks of points and chunks of charges that fit the memory budget.

    Args:
        x: (B, N), in data units.
        sigma: noise levels σ = r/√D, (B,), in data units.
        charges: (K, *) with N elements each, in data units.
        aug_dim: D; None for ∞.
        chunk_size: charges per chunk; by default as many as the memory budget of the device allows.
        from_x: return x̂ − x, computed without cancellation next to a charge, rather than x̂, computed without
            cancellation far from the charges.

    Returns:
        (B, N), in float64, or float32 on MPS and for float32 `Charges`. A row is NaN if its x or σ, or any charge, is
        NaN.

    Raises:
        ValueError: if a charge does not have N elements, there are no charges, D is not positive or `chunk_size` < 1.
    """
    dim = x.shape[1]
    aug_dim = check_aug_dim(aug_dim)
    if math.prod(charges.shape[1:]) != dim:
        raise ValueError(
            f"`charges` have the shape {tuple(charges.shape[1:])} each, but a sample has {dim} elements. Both must "
            "have the same number."
        )
    if not isinstance(charges, Charges) and charges.shape[0] == 0:
        raise ValueError(f"`charges` must have at least one charge, but have the shape {tuple(charges.shape)}.")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"`chunk_size` must be at least 1, but is {chunk_size}. Leave it out for a default.")
    dtype = charges.points.dtype if isinstance(charges, Charges) else working_dtype(x.device)
    # Four numbers per pair and, for charges that are not prepared, their copy in the working dtype.
    recomputed = 4 * NEAREST * dim if dtype == torch.float32 else 0
    budget = MEMORY_BUDGET if x.device.type == "cpu" else ACCELERATOR_MEMORY_BUDGET
    rows = max(1, budget // (64 * min(charges.shape[0], 1024) + recomputed))
    size = chunk_size or max(1, budget // (8 * (dim + 4 * min(rows, x.shape[0]))))
    results = []
    for block, sigmas in zip(x.to(dtype).split(rows), sigma.to(dtype).unsqueeze(1).split(rows), strict=True):
        # At distances whose squares overflow, all charges have equal weights to every digit, so x may be moved closer.
        closer = rescale_for_squaring(block)[0]
        result = _weighted(closer, sigmas, _chunks(charges, size), aug_dim, from_x)
        results.append(result + (closer - block) if from_x else result)
    return torch.cat(results)


def _chunks(charges: torch.Tensor | Charges, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Iterate over points (k, N) and their squared norms (k,) in chunks of k ≤ `size`."""
    if isinstance(charges, Charges):
        yield from zip(charges.points.split(size), charges.squares.split(size), strict=True)
        return
    for part in charges.flatten(1).split(size):
        points = part.to(working_dtype(part.device))
        yield points, torch.linalg.vector_norm(points, dim=1).square()


def _weighted(
    x: torch.Tensor,
    sigma: torch.Tensor,
    chunks: Iterator[tuple[torch.Tensor, torch.Tensor]],
    aug_dim: float,
    from_x: bool,
) -> torch.Tensor:
    """Σ w_i (y_i − x) / Σ w_i or Σ w_i y_i / Σ w_i.

    The weights of a chunk are relative to its nearest charge, and are rescaled when the sums of two chunks are added.
    """
    dim = x.shape[1]
    x_squares = x.square().sum(1, keepdim=True)
    tiny = torch.finfo(x.dtype).tiny  # avoids 0 / 0 for a point on a charge at σ = 0

    def weight(squares: torch.Tensor, nearest: torch.Tensor) -> torch.Tensor:
        if math.isinf(aug_dim):
            return torch.exp((nearest - squares) / (2 * sigma.square()).clamp(min=tiny))
        ratio = (squares - nearest) / (nearest + aug_dim * sigma.square()).clamp(min=tiny)
        return torch.exp(-(dim + aug_dim) / 2 * torch.log1p(ratio))

    def weighted_sums(chunk: tuple[torch.Tensor, torch.Tensor]) -> WeightedSums:
        points, point_squares = chunk
        squares = torch.addmm(x_squares + point_squares, x, points.T, alpha=-2).clamp(min=0)
        if x.dtype == torch.float32:
            index = squares.topk(min(NEAREST, len(points)), dim=1, largest=False).indices
            offsets = points[index] - x.unsqueeze(1)
            squares = squares.scatter(1, index, offsets.square().sum(2))
        nearest = squares.detach().amin(1, keepdim=True)  # cancels in the quotient, so it needs no gradient
        weights = weight(squares, nearest)
        if not from_x:
            return nearest, weights.sum(1, keepdim=True), weights @ points
        far = weights.scatter(1, index, 0.0) if x.dtype == torch.float32 else weights
        total = torch.addmm(far.sum(1, keepdim=True) * -x, far, points)
        if x.dtype == torch.float32:
            total = total + (weights.gather(1, index).unsqueeze(1) @ offsets).squeeze(1)
        return nearest, weights.sum(1, keepdim=True), total

    def add(first: WeightedSums, second: WeightedSums) -> WeightedSums:
        nearest = torch.minimum(first[0], second[0])
        scales = weight(first[0], nearest), weight(second[0], nearest)
        weights, total = (scales[0] * a + scales[1] * b for a, b in zip(first[1:], second[1:], strict=True))
        return nearest, weights, total

    _, weights, total = functools.reduce(add, map(weighted_sums, chunks))
    return total / weights
