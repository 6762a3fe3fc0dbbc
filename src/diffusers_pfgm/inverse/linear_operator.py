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
from collections.abc import Callable

import torch

from ..physics.tensors import append_dims, draw, move_to

Operator = Callable[[torch.Tensor], torch.Tensor]  # a function of a batch, such as A from (B, *) to (B, *')

# Tolerance of ⟨A x, y⟩ = ⟨x, Aᵀ y⟩, relative to ‖A x‖ ‖y‖. The error of float32 is about 1e-6; a wrong scale of Aᵀ
# exceeds 1e-4 if y has up to 1e7 elements.
ADJOINT_TOLERANCE = 1e-4
GRAM_TOLERANCE = 1e-3  # relative tolerance of the check of `gram`
SOLVE_TOLERANCE = 1e-5  # relative tolerance of conjugate gradients
MAX_SOLVE_ITERATIONS = 200  # the largest number of iterations of conjugate gradients
RIDGE = 1e-6  # the default ε; also the smallest variance of the noise
POWER_ITERATIONS = 20  # the number of power iterations that estimate ‖A‖


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

    tolerance = SOLVE_TOLERANCE

    def __init__(self, forward: Operator, adjoint: Operator, gram: float | torch.Tensor | None = None) -> None:
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
            scale: a number ≥ 0, or one for each row, (B,). Defaults to 1.
            ridge: a number > 0. Defaults to 1e-6.
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
            tensor = move_to(tensor, like.device)
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


def _conjugate_gradients(apply: Operator, y: torch.Tensor, tolerance: float) -> torch.Tensor:
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
