r"""Linearization of a nonlinear measurement at a point: products with its Jacobian A and with Aᵀ.

Aᵀ y is a backward pass through the measurement's autograd graph. A v is computed by the first of these methods that
agrees with it, ⟨A v, u⟩ = ⟨v, Aᵀ u⟩:

- double backward: Aᵀ u is linear in u, so A v = ∂⟨Aᵀ u, v⟩ / ∂u. Every function of the graph must be twice
  differentiable, which `grid_sample`, `cdist`, fused attention and some custom functions are not;
- a central difference along v, for any smooth measurement;
- no A v at all, if the measurement has a custom gradient that is not its derivative, as straight-through rounding has.
  Then `solve` replaces A Aᵀ by its value along y, the number ‖Aᵀ y‖² / ‖y‖².
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch

from ..physics.tensors import append_dims, draw
from .linear_operator import RIDGE, LinearOperator, Operator, dot

# The largest relative difference of ⟨A Aᵀ u, u⟩ and ‖Aᵀ u‖², which are equal if A and Aᵀ are adjoint. Central
# differences have an error of about 1e-4.
AGREEMENT = 1e-2
DIFFERENCE_TOLERANCE = 1e-3  # the tolerance of `solve` if products with A are computed by central differences
FLOOR = 1e-2  # added to the root mean square of a point, in data units, so that the step of a difference is never 0


def linearized(measure: Operator, x: torch.Tensor) -> LinearOperator:
    """Return a linear operator itself, or the Jacobian of a nonlinear measurement at x as a `LinearOperator`.

    Args:
        measure: a `LinearOperator`, or a differentiable function from (B, *) to (B, *').
        x: (B, *), the point of the linearization, in data units.

    Raises:
        ValueError: if the measurement is not differentiable by autograd.
    """
    if isinstance(measure, LinearOperator):
        return measure
    with torch.inference_mode(False), torch.enable_grad():
        point = x.detach().clone().requires_grad_()
        measured = measure(point)
    if not (isinstance(measured, torch.Tensor) and measured.requires_grad):
        raise ValueError(
            "`operator` must be a LinearOperator or a function that autograd follows, but its result at x has no "
            "gradient. Use differentiable operations of torch throughout, or give `LinearOperator` its adjoint."
        )

    @torch.inference_mode(False)
    def pull(y: torch.Tensor) -> torch.Tensor:
        y = y.to(measured.dtype, copy=True)  # a copy outside of inference mode, for autograd
        try:
            product = torch.autograd.grad(measured, point, y, retain_graph=True, allow_unused=True)[0]
        except RuntimeError as error:
            if "use_reentrant" not in str(error):
                raise
            raise ValueError(
                "`operator` uses torch.utils.checkpoint with `use_reentrant=True`, its default, which "
                "torch.autograd.grad cannot follow. Pass `use_reentrant=False` to it."
            ) from error
        return torch.zeros_like(x) if product is None else product

    values = measured.detach()
    for make, tolerance in (
        (functools.partial(_double_backward, measured, point), LinearOperator.tolerance),
        (functools.partial(_difference, measure, x), DIFFERENCE_TOLERANCE),
    ):
        push = _checked_product(make, pull, values)
        if push is not None:
            operator = LinearOperator(push, pull)
            operator.tolerance = tolerance
            return operator
    return _GradientOnly(lambda v: torch.zeros_like(values), pull)


class _GradientOnly(LinearOperator):
    """A measurement for which only Aᵀ y can be computed."""

    def solve(self, y: torch.Tensor, scale: torch.Tensor | float = 1.0, ridge: float = RIDGE) -> torch.Tensor:
        pulled = self.adjoint(y)
        gram = dot(pulled, pulled).flatten() / dot(y, y).flatten().clamp(min=torch.finfo(pulled.dtype).tiny)
        return y / append_dims(scale * gram + ridge, y.ndim)


def _checked_product(make: Callable[[], Operator], pull: Operator, values: torch.Tensor) -> Operator | None:
    """Return the product A v, or None if torch cannot compute it or it does not agree with Aᵀ."""
    normal = functools.partial(torch.randn, dtype=values.dtype)
    u = draw(normal, tuple(values.shape), torch.Generator().manual_seed(0), values.device)
    pulled = pull(u)
    try:
        push = make()
        pushed = push(pulled)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # torch raises it for a derivative that is not implemented
        return None
    by_push = dot(pushed, u).sum()
    by_pull = dot(pulled, pulled).sum()
    return push if bool((by_push - by_pull).abs() <= AGREEMENT * by_pull) else None


def _double_backward(measured: torch.Tensor, point: torch.Tensor) -> Operator:
    """A v as the derivative of ⟨Aᵀ u, v⟩ with respect to u."""
    with torch.inference_mode(False), torch.enable_grad():
        u = torch.zeros_like(measured).requires_grad_()
        (pulled,) = torch.autograd.grad(measured, point, u, create_graph=True)

    @torch.inference_mode(False)
    def push(v: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.autograd.grad(pulled, u, v.clone(), retain_graph=True)[0]
        return product

    return push


def _difference(measure: Operator, x: torch.Tensor) -> Operator:
    """A v as a central difference, with a step that balances the errors of curvature and rounding."""

    def push(v: torch.Tensor) -> torch.Tensor:
        norm, length = (dot(each, each).sqrt() for each in (x, v))
        size = norm + FLOOR * math.sqrt(x[0].numel())
        step = torch.finfo(x.dtype).eps ** (1 / 3) * size / torch.where(length > 0, length, 1)
        with torch.no_grad():
            change = measure(x + step * v) - measure(x - step * v)
        return change / append_dims(2 * step, change.ndim)

    return push
