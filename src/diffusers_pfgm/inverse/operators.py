r"""Linear measurements y = A x + noise: the operator A, its adjoint Aᵀ, and solutions of A Aᵀ.

The posterior needs only A x, Aᵀ y (with ⟨A x, y⟩ = ⟨x, Aᵀ y⟩, see `check_adjoint`) and, for s ≥ 0 and ε > 0,

    (s A Aᵀ + ε I)⁻¹ y,        and from it        A⁺ y = Aᵀ (A Aᵀ + ε I)⁻¹ y.

If A Aᵀ is diagonal, this is a division: for a mask (A Aᵀ is the mask), for means over blocks of f × f (I / f²), and for
orthonormal directions (I). Otherwise it is solved by conjugate gradients, with a few dozen products A Aᵀ and no network
call.

A nonlinear measurement is linearized: A is its Jacobian at x (`linearization.py`).

Data are real. A complex measurement, such as in magnetic resonance imaging, is treated as pairs of real numbers: the
inner product is Re⟨y, y'⟩, so Aᵀ y is the real part of the product with the conjugate transpose, and `noise_std` is the
standard deviation of the real part, and of the imaginary part.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch

from ..physics.tensors import append_dims, draw, working_dtype
from ..utils.checks import check_whole_number

Measurement = Callable[[torch.Tensor], torch.Tensor]

# Relative to ‖A x‖ ‖y‖. The error of float32 is about 1e-6; a wrong scale of Aᵀ exceeds 1e-4 up to a size of y of 1e7.
ADJOINT_TOLERANCE = 1e-4
GRAM_TOLERANCE = 1e-3
SOLVE_TOLERANCE = 1e-5
MAX_SOLVE_ITERATIONS = 200
RIDGE = 1e-6
POWER_ITERATIONS = 20
BOUNDARIES = {"zero": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


class LinearOperator:
    """A linear measurement of each sample of a batch (B, *).

    Args:
        forward: function A from (B, *) to (B, *'), whose result may be complex.
        adjoint: function Aᵀ from (B, *') to (B, *). The real part of a complex result is used.
        gram: the diagonal of A Aᵀ if A Aᵀ is diagonal, as a number or a tensor that broadcasts against y; else None.
            For complex measurements it is rarely diagonal, as Aᵀ y is a real part.

    Examples:
        >>> reversal = LinearOperator(lambda x: x.flip(1), lambda y: y.flip(1))
        >>> reversal(torch.tensor([[1.0, 2.0]])), reversal.pseudo_inverse(torch.tensor([[1.0, 2.0]])).round()
        (tensor([[2., 1.]]), tensor([[2., 1.]]))
    """

    tolerance = SOLVE_TOLERANCE  # relative tolerance of `solve`

    def __init__(self, forward: Measurement, adjoint: Measurement, gram: float | torch.Tensor | None = None) -> None:
        self._forward = forward
        self._adjoint = adjoint
        self.gram = gram

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return A x (B, *') of x (B, *)."""
        return self._forward(x)

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """Return Aᵀ y (B, *) of y (B, *')."""
        x = self._adjoint(y)
        return x.real if x.is_complex() else x

    def solve(self, y: torch.Tensor, scale: torch.Tensor | float = 1.0, ridge: float = RIDGE) -> torch.Tensor:
        """Return (scale · A Aᵀ + ridge · I)⁻¹ y (B, *').

        Args:
            y: (B, *').
            scale: a number ≥ 0, or one for each row, (B,).
            ridge: a number > 0.
        """
        if isinstance(scale, torch.Tensor) and scale.ndim:
            scale = append_dims(scale, y.ndim)
        if self.gram is not None:
            return y / (scale * self._diagonal(y) + ridge)
        return _conjugate_gradients(lambda v: scale * self(self.adjoint(v)) + ridge * v, y, self.tolerance)

    def _diagonal(self, like: torch.Tensor) -> torch.Tensor | float:
        return self._on_device_of("gram", like) if isinstance(self.gram, torch.Tensor) else self.gram or 0.0

    def _on_device_of(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """The operator's tensor of this name in the dtype of `like`. It is moved to the device of `like` only once."""
        tensor: torch.Tensor = getattr(self, name)
        if tensor.device != like.device:
            if tensor.dtype == torch.float64:
                tensor = tensor.to(working_dtype(like.device))
            tensor = tensor.to(like.device)
            setattr(self, name, tensor)
        return tensor.to(like.dtype)

    def pseudo_inverse(self, y: torch.Tensor, ridge: float = RIDGE) -> torch.Tensor:
        """Return A⁺ y (B, *), the x of smallest norm with A x = y, up to the error of a small ridge."""
        return self.adjoint(self.solve(y, ridge=ridge))

    def norm(self, x: torch.Tensor) -> float:
        """Estimate the largest ‖A x‖ / ‖x‖ for data of the shape of x (B, *), by power iteration."""
        x = draw(torch.randn, tuple(x.shape), torch.Generator().manual_seed(0), x.device).to(x.dtype)
        for _ in range(POWER_ITERATIONS):
            x = self.adjoint(self(x / torch.linalg.vector_norm(x).clamp(min=torch.finfo(x.dtype).tiny)))
        return math.sqrt(float(torch.linalg.vector_norm(x)))


class Inpainting(LinearOperator):
    """Observation of a part of each sample, y = mask · x. y has the shape of x, and is ignored where the mask is 0.

    Args:
        mask: True or 1 where x is observed. (*) or a shape that broadcasts against it for the same mask of every
            sample, or (B, *) for a mask of each.

    Raises:
        ValueError: if `mask` has other values than 0 and 1, or no 1; in a call if its shape does not fit the data.
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
    """Observation of images (B, C, H, W) at a lower resolution: means over blocks of `factor` × `factor` pixels.

    Args:
        factor: a whole number ≥ 1 that divides H and W.

    Raises:
        ValueError: if `factor` is not a whole number ≥ 1; in a call if it does not divide H and W.
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
    """Observation of blurred images (B, C, H, W), of the same size, with the same kernel for every channel.

    Args:
        kernel: (h, w), both odd.
        boundary: padding beyond the edges: "zero", "reflect", "replicate" or "circular".

    Raises:
        ValueError: if `kernel` has another shape or `boundary` another value.
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
        kernels = self._on_device_of("kernel", x).expand(x.shape[1], 1, *self.kernel.shape)
        return torch.nn.functional.conv2d(padded, kernels, groups=x.shape[1])


class CompressedSensing(LinearOperator):
    """Observation of M random linear combinations of the elements of each sample, y (B, M), with orthonormal rows.

    Args:
        shape: shape of one sample, (*), with N elements.
        num_measurements: M, from 1 to N.
        generator: generator of the random combinations.

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
            lambda x: x.flatten(1) @ self._on_device_of("directions", x),
            lambda y: (y @ self._on_device_of("directions", y).mT).unflatten(1, self.shape),
            gram=1.0,
        )


def check_adjoint(operator: LinearOperator, x: torch.Tensor) -> None:
    """Check that an operator's adjoint, and its `gram` if it has one, belong to its forward function.

    Args:
        operator: the operator.
        x: (B, *), an example of the data, whose shape, dtype and device are used.

    Raises:
        ValueError: if ⟨A x, y⟩ ≠ ⟨x, Aᵀ y⟩ for a random x and y, or `gram` is not the diagonal of A Aᵀ.
    """
    source = torch.Generator().manual_seed(0)
    x = draw(functools.partial(torch.randn, dtype=x.dtype), tuple(x.shape), source, x.device)
    measured = operator(x)
    y = draw(functools.partial(torch.randn, dtype=measured.dtype), tuple(measured.shape), source, x.device)
    pulled = operator.adjoint(y)
    if pulled.shape != x.shape:
        raise ValueError(
            f"`operator` has the wrong adjoint: it returns the shape {tuple(pulled.shape)} for a measurement of data "
            f"of the shape {tuple(x.shape)}. It must return the shape of the data."
        )
    by_forward = float(dot(measured, y).sum())
    by_adjoint = float(dot(x, pulled).sum())
    scale = float(torch.linalg.vector_norm(measured) * torch.linalg.vector_norm(y))
    if not abs(by_forward - by_adjoint) <= ADJOINT_TOLERANCE * scale:
        raise ValueError(
            f"`operator` has the wrong adjoint: <A x, y> = {by_forward:.6g} but <x, adjoint(y)> = {by_adjoint:.6g} for "
            f"random x and y. They differ by more than {ADJOINT_TOLERANCE} |A x| |y| = "
            f"{ADJOINT_TOLERANCE * scale:.2g}. For a matrix it is the transpose, for a complex one the conjugate "
            "transpose; for code that autograd follows, its vector-Jacobian product."
        )
    if operator.gram is None:
        return
    product = operator(pulled)
    error = torch.linalg.vector_norm(product - operator._diagonal(y) * y)
    if not error <= GRAM_TOLERANCE * torch.linalg.vector_norm(product):
        raise ValueError(
            "`operator` has the wrong `gram`: A adjoint(y) is not gram · y for a random y. Leave it out if A Aᵀ is "
            "not diagonal."
        )


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return Re⟨a, b⟩ for each row of a and b (B, *), as (B, 1, ...)."""
    products = (a.conj() * b).real if a.is_complex() or b.is_complex() else a * b
    return products.sum(tuple(range(1, a.ndim)), keepdim=True) if a.ndim > 1 else products


def measurement_like(measurement: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return a measurement on the device of x, in the dtype of x or the complex dtype of the same precision."""
    return measurement.to(x.device, x.dtype.to_complex() if measurement.is_complex() else x.dtype)


def _conjugate_gradients(apply: Measurement, y: torch.Tensor, tolerance: float) -> torch.Tensor:
    """Solve apply(x) = y for each row of y (B, *')."""
    tiny = torch.finfo(y.dtype).tiny
    x = torch.zeros_like(y)
    residual = y
    direction = residual
    square = dot(residual, residual)
    limit = tolerance**2 * square
    for _ in range(MAX_SOLVE_ITERATIONS):
        active = square > limit
        if not active.any():
            break
        product = apply(direction)
        length = torch.where(active, square / dot(direction, product).clamp(min=tiny), 0)
        x = x + length * direction
        residual = residual - length * product
        previous_square = square
        square = dot(residual, residual)
        direction = residual + square / previous_square.clamp(min=tiny) * direction
    return x
