r"""Measurements y = A x + noise: the linear A with its adjoint, and what can be solved with them.

All that a posterior needs of A is A x, Aᵀ y (with ⟨A x, y⟩ = ⟨x, Aᵀ y⟩, which is checked) and, for s ≥ 0 and ε > 0,

    (s A Aᵀ + ε I)⁻¹ y,        and from it        A⁺ y = Aᵀ (A Aᵀ + ε I)⁻¹ y.

Where A Aᵀ is diagonal this is a division: a mask (A Aᵀ is the mask), means over blocks of f × f (I / f²), orthonormal
directions (I). Elsewhere conjugate gradients solve it, a few dozen products A Aᵀ without a call of any network.

A measurement h that is not linear acts as one near x: A is its Jacobian there (`linearization.py`).

Data are real. Complex measurements, such as those of magnetic resonance, count as pairs of real numbers: the product of
two is Re⟨y, y'⟩, so that Aᵀ y is the real part of the conjugate transpose's, and noise has its standard deviation in
the real and in the imaginary part each.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch

from ..physics.tensors import append_dims, draw, working_dtype
from ..utils.checks import check_whole_number

Measurement = Callable[[torch.Tensor], torch.Tensor]

ADJOINT_TOLERANCE = 1e-4  # of ‖A x‖ ‖y‖: float32 is right to 1e-6, a wrong scale misses 1e-4 up to 1e7 measured numbers
GRAM_TOLERANCE = 1e-3
SOLVE_TOLERANCE, MAX_SOLVE_ITERATIONS = 1e-5, 200
RIDGE = 1e-6
POWER_ITERATIONS = 20
BOUNDARIES = {"zero": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


class LinearOperator:
    """A linear measurement of data (B, *), each row for itself.

    Args:
        forward: A, from (B, *) to (B, *'), which may be complex.
        adjoint: Aᵀ, from (B, *') to (B, *). Of a complex result the real part is taken.
        gram: the diagonal of A Aᵀ, a number or a tensor that broadcasts against y, if it is diagonal. With complex
            measurements it seldom is: A Aᵀ takes the real part in between.

    Example:
        >>> reversal = LinearOperator(lambda x: x.flip(1), lambda y: y.flip(1))
        >>> reversal(torch.tensor([[1.0, 2.0]])), reversal.pseudo_inverse(torch.tensor([[1.0, 2.0]])).round()
        (tensor([[2., 1.]]), tensor([[2., 1.]]))
    """

    tolerance = SOLVE_TOLERANCE  # of a solve, relative

    def __init__(self, forward: Measurement, adjoint: Measurement, gram: float | torch.Tensor | None = None) -> None:
        self._forward, self._adjoint, self.gram = forward, adjoint, gram

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """A x (B, *')."""
        return self._forward(x)

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """Aᵀ y (B, *)."""
        found = self._adjoint(y)
        return found.real if found.is_complex() else found

    def solve(self, y: torch.Tensor, scale: torch.Tensor | float = 1.0, ridge: float = RIDGE) -> torch.Tensor:
        """(scale · A Aᵀ + ridge · I)⁻¹ y.

        Args:
            y: (B, *').
            scale: a number ≥ 0, or (B,).
            ridge: a number > 0.
        """
        if isinstance(scale, torch.Tensor) and scale.ndim:
            scale = append_dims(scale, y.ndim)
        if self.gram is not None:
            return y / (scale * self._diagonal(y) + ridge)
        return _conjugate_gradients(lambda v: scale * self(self.adjoint(v)) + ridge * v, y, self.tolerance)

    def _diagonal(self, like: torch.Tensor) -> torch.Tensor | float:
        return self._kept("gram", like) if isinstance(self.gram, torch.Tensor) else self.gram or 0.0

    def _kept(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """A tensor of the operator in the dtype of `like`; it stays on that device once it has been there."""
        kept: torch.Tensor = getattr(self, name)
        if kept.device != like.device:
            if kept.dtype == torch.float64:
                kept = kept.to(working_dtype(like.device))
            kept = kept.to(like.device)
            setattr(self, name, kept)
        return kept.to(like.dtype)

    def pseudo_inverse(self, y: torch.Tensor, ridge: float = RIDGE) -> torch.Tensor:
        """A⁺ y (B, *), the smallest x with A x = y, but for a small ridge."""
        return self.adjoint(self.solve(y, ridge=ridge))

    def norm(self, x: torch.Tensor) -> float:
        """The largest ‖A x‖ / ‖x‖ over x of the given one's shape (B, *), by power iteration."""
        x = draw(torch.randn, tuple(x.shape), torch.Generator().manual_seed(0), x.device).to(x.dtype)
        for _ in range(POWER_ITERATIONS):
            x = self.adjoint(self(x / torch.linalg.vector_norm(x).clamp(min=torch.finfo(x.dtype).tiny)))
        return math.sqrt(float(torch.linalg.vector_norm(x)))


class Inpainting(LinearOperator):
    """Part of each sample is seen, y = mask · x; y has x's shape and is not looked at elsewhere.

    Args:
        mask: (*) or a shape that broadcasts against it, the same for every sample, or (B, *) with one for each; True or
            1 where x is observed.

    Raises:
        ValueError: if `mask` holds anything but 0 and 1, or nothing is observed; on a call if it does not fit.
    """

    def __init__(self, mask: torch.Tensor) -> None:
        if not ((mask == 0) | (mask == 1)).all() or not mask.any():
            raise ValueError(
                f"`mask` must hold 1 (observed) and 0 only, with a 1 at least, but has values from {mask.min().item()} "
                f"to {mask.max().item()}. Make one by a comparison, such as `mask > 0.5`."
            )
        self.mask = mask.bool()
        super().__init__(self._hide, self._hide, gram=mask)

    def _hide(self, x: torch.Tensor) -> torch.Tensor:
        sizes = zip(reversed(self.mask.shape), reversed(x.shape), strict=False)
        if self.mask.ndim > x.ndim or any(size not in (1, expected) for size, expected in sizes):
            raise ValueError(
                f"`mask` must have the shape {tuple(x.shape[1:])} of a sample, or one that broadcasts against it, or "
                f"{tuple(x.shape)} for a mask for each, but has {tuple(self.mask.shape)}. Masks (B, H, W) are "
                "`mask.unsqueeze(1)`."
            )
        self.mask = self.mask.to(x.device)
        return torch.where(self.mask, x, 0)


class SuperResolution(LinearOperator):
    """Images (B, C, H, W) seen at a lower resolution: means over blocks of `factor` × `factor`.

    Args:
        factor: a whole number ≥ 1 that divides H and W.

    Raises:
        ValueError: if `factor` is not such a number; on a call if it does not divide.
    """

    def __init__(self, factor: int) -> None:
        self.factor = check_whole_number("factor", factor, 1)
        super().__init__(self._mean, self._spread, gram=1 / self.factor**2)

    def _mean(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim != 4 or x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ValueError(
                f"`factor` = {self.factor} must divide height and width of images (B, C, H, W), but `x` has the shape "
                f"{tuple(x.shape)}."
            )
        return torch.nn.functional.avg_pool2d(x, self.factor)

    def _spread(self, y: torch.Tensor) -> torch.Tensor:
        return y.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3) / self.factor**2


class Blur(LinearOperator):
    """Images (B, C, H, W) seen through a blur, the same for every channel, at their own size.

    Args:
        kernel: (h, w), both odd.
        boundary: what lies beyond the edge: "zero", "reflect", "replicate" or "circular".

    Raises:
        ValueError: if `kernel` or `boundary` is not of this kind.
    """

    def __init__(self, kernel: torch.Tensor, boundary: str = "reflect") -> None:
        if kernel.ndim != 2 or not all(size % 2 for size in kernel.shape):
            raise ValueError(f"`kernel` must have the shape (h, w), both odd, but has {tuple(kernel.shape)}.")
        if boundary not in BOUNDARIES:
            raise ValueError(f"`boundary` must be one of {tuple(BOUNDARIES)}, but is {boundary!r}.")
        self.kernel, self.boundary = kernel, boundary
        # The blur is linear, so its derivative at any point, here y, is the blur itself.
        super().__init__(self._blur, lambda y: torch.func.vjp(self._blur, y)[1](y)[0])

    def _blur(self, x: torch.Tensor) -> torch.Tensor:
        height, width = (size // 2 for size in self.kernel.shape)
        padded = torch.nn.functional.pad(x, (width, width, height, height), mode=BOUNDARIES[self.boundary])
        kernels = self._kept("kernel", x).expand(x.shape[1], 1, *self.kernel.shape)
        return torch.nn.functional.conv2d(padded, kernels, groups=x.shape[1])


class CompressedSensing(LinearOperator):
    """Random directions of each sample, orthonormal ones: y (B, M).

    Args:
        shape: (*) of a sample, N elements.
        num_measurements: M, from 1 to N.
        generator: of the directions.

    Raises:
        ValueError: if M is not from 1 to N.
    """

    def __init__(self, shape: Sequence[int], num_measurements: int, generator: torch.Generator | None = None) -> None:
        self.shape = torch.Size(shape)
        size = self.shape.numel()
        num_measurements = check_whole_number("num_measurements", num_measurements, 1)
        if num_measurements > size:
            raise ValueError(
                f"`num_measurements` must be from 1 to the {size} elements of a sample, but is {num_measurements}."
            )
        gaussian = draw(torch.randn, (size, num_measurements), generator, torch.device("cpu"))
        self.directions = torch.linalg.qr(gaussian)[0]  # (N, M)
        super().__init__(
            lambda x: x.flatten(1) @ self._kept("directions", x),
            lambda y: (y @ self._kept("directions", y).mT).unflatten(1, self.shape),
            gram=1.0,
        )


def check_adjoint(operator: LinearOperator, x: torch.Tensor) -> None:
    """Raise a ValueError unless ⟨A x, y⟩ = ⟨x, Aᵀ y⟩ for random x, of the given one's shape, and y.

    Of an operator with a `gram` this must be A Aᵀ, too.
    """
    source = torch.Generator().manual_seed(0)
    x = draw(functools.partial(torch.randn, dtype=x.dtype), tuple(x.shape), source, x.device)
    measured = operator(x)
    y = draw(functools.partial(torch.randn, dtype=measured.dtype), tuple(measured.shape), source, x.device)
    back = operator.adjoint(y)
    if back.shape != x.shape:
        raise ValueError(
            f"`operator` has the wrong adjoint: it makes the shape {tuple(back.shape)} of a measurement of "
            f"{tuple(x.shape)}. It must return what `forward` takes."
        )
    there, here = float(dot(measured, y).sum()), float(dot(x, back).sum())
    scale = float(torch.linalg.vector_norm(measured) * torch.linalg.vector_norm(y))
    if not abs(there - here) <= ADJOINT_TOLERANCE * scale:
        raise ValueError(
            f"`operator` has the wrong adjoint: <A x, y> = {there:.6g} but <x, adjoint(y)> = {here:.6g} for random x "
            f"and y, which differ by more than {ADJOINT_TOLERANCE} |A x| |y| = {ADJOINT_TOLERANCE * scale:.2g}. "
            "For a matrix it is the transpose, for a complex one the conjugate transpose; for code that autograd "
            "follows, its vector-Jacobian product."
        )
    if operator.gram is None:
        return
    image = operator(back)
    if not torch.linalg.vector_norm(image - operator._diagonal(y) * y) <= GRAM_TOLERANCE * torch.linalg.vector_norm(
        image
    ):
        raise ValueError(
            "`operator` has the wrong `gram`: A adjoint(y) is not gram · y for a random y. Leave it out where A Aᵀ is "
            "not diagonal."
        )


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Re⟨a, b⟩ of each row of (B, *), as (B, 1, ...)."""
    products = (a.conj() * b).real if a.is_complex() or b.is_complex() else a * b
    return products.sum(tuple(range(1, a.ndim)), keepdim=True) if a.ndim > 1 else products


def beside(measurement: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A measurement on x's device and in its dtype, or in the complex one of the same precision."""
    return measurement.to(x.device, x.dtype.to_complex() if measurement.is_complex() else x.dtype)


def _conjugate_gradients(apply: Measurement, y: torch.Tensor, tolerance: float) -> torch.Tensor:
    """x with apply(x) = y, for each row of y (B, *') by itself."""
    tiny = torch.finfo(y.dtype).tiny
    x, residual = torch.zeros_like(y), y
    direction, square = residual, dot(residual, residual)
    limit = tolerance**2 * square
    for _ in range(MAX_SOLVE_ITERATIONS):
        active = square > limit
        if not active.any():
            break
        image = apply(direction)
        length = torch.where(active, square / dot(direction, image).clamp(min=tiny), 0)
        x, residual = x + length * direction, residual - length * image
        before, square = square, dot(residual, residual)
        direction = residual + square / before.clamp(min=tiny) * direction
    return x
