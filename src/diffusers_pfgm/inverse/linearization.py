r"""A measurement that is not linear, as the linear one that it is near a point: products with its Jacobian A.

Aᵀ y is a pass back through the measurement's graph, all that autograd must know of it. A v comes from the first of
these that agrees with it:

- the derivative of that pass, which is linear in y: A v = ∂⟨Aᵀ u, v⟩ / ∂u. Every function of the graph must be
  differentiable twice, which `grid_sample`, `cdist`, fused attention and some functions of one's own are not;
- a central difference along v, for any smooth measurement;
- nothing, for one with a gradient of its own making, such as rounding. Then A Aᵀ is taken, in a solve, for the number
  ‖Aᵀ y‖² / ‖y‖² that it is along the given y.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch

from ..physics.tensors import append_dims, draw
from .operators import LinearOperator, Measurement, dot

AGREEMENT = 1e-2  # between ⟨A Aᵀ u, u⟩ and ‖Aᵀ u‖²: a difference is right to 1e-4 or so, a wrong A to nothing
DIFFERENCE_TOLERANCE = 1e-3  # of a solve whose products are differences
FLOOR = 1e-2  # least root mean square of a point, in data units, against which the step of a difference is short

Product = Callable[[torch.Tensor], torch.Tensor]


def linearized(measure: Measurement, x: torch.Tensor) -> LinearOperator:
    """The operator itself, or the Jacobian at x (B, *) of a measurement that is not linear.

    Raises:
        ValueError: if autograd does not follow the measurement.
    """
    if isinstance(measure, LinearOperator):
        return measure
    with torch.inference_mode(False), torch.enable_grad():
        point = x.detach().clone().requires_grad_()
        measured = measure(point)
    if not (isinstance(measured, torch.Tensor) and measured.requires_grad):
        raise ValueError(
            "`operator` must be a LinearOperator or a function that autograd follows, but what it makes of x has no "
            "gradient. Use differentiable operations of torch throughout, or give `LinearOperator` its adjoint."
        )

    @torch.inference_mode(False)
    def pull(y: torch.Tensor) -> torch.Tensor:
        y = y.to(measured.dtype, copy=True)  # one that autograd may keep, also under inference mode
        try:
            found = torch.autograd.grad(measured, point, y, retain_graph=True, allow_unused=True)[0]
        except RuntimeError as error:
            if "use_reentrant" not in str(error):
                raise
            raise ValueError(
                "`operator` uses torch.utils.checkpoint with `use_reentrant=True`, its default, which "
                "torch.autograd.grad cannot follow. Pass `use_reentrant=False` to it."
            ) from error
        return torch.zeros_like(x) if found is None else found

    values = measured.detach()
    for make, tolerance in (
        (functools.partial(_twice, measured, point), LinearOperator.tolerance),
        (functools.partial(_difference, measure, x), DIFFERENCE_TOLERANCE),
    ):
        push = _agreeing(make, pull, values)
        if push is not None:
            operator = LinearOperator(push, pull)
            operator.tolerance = tolerance
            return operator
    return _GradientOnly(lambda v: torch.zeros_like(values), pull)


class _GradientOnly(LinearOperator):
    """A measurement of which only Aᵀ is known."""

    def solve(self, y: torch.Tensor, scale: torch.Tensor | float = 1.0, ridge: float = 1e-6) -> torch.Tensor:
        pulled = self.adjoint(y)
        gram = dot(pulled, pulled).flatten() / dot(y, y).flatten().clamp(min=torch.finfo(pulled.dtype).tiny)
        return y / append_dims(scale * gram + ridge, y.ndim)


def _agreeing(make: Callable[[], Product], pull: Product, values: torch.Tensor) -> Product | None:
    """A product A v if it can be made, and is that of Aᵀ."""
    normal = functools.partial(torch.randn, dtype=values.dtype)
    u = draw(normal, tuple(values.shape), torch.Generator().manual_seed(0), values.device)
    pulled = pull(u)
    try:
        push = make()
        pushed = push(pulled)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # torch's word for a derivative that it does not know
        return None
    there, here = dot(pushed, u).sum(), dot(pulled, pulled).sum()
    return push if bool((there - here).abs() <= AGREEMENT * here) else None


def _twice(measured: torch.Tensor, point: torch.Tensor) -> Product:
    """A v by the derivative of Aᵀ u by u."""
    with torch.inference_mode(False), torch.enable_grad():
        u = torch.zeros_like(measured).requires_grad_()
        (pulled,) = torch.autograd.grad(measured, point, u, create_graph=True)

    @torch.inference_mode(False)
    def push(v: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.autograd.grad(pulled, u, v.clone(), retain_graph=True)[0]
        return found

    return push


def _difference(measure: Measurement, x: torch.Tensor) -> Product:
    """A v by a central difference, whose step balances curvature and rounding."""

    def push(v: torch.Tensor) -> torch.Tensor:
        norm, length = (dot(each, each).sqrt() for each in (x, v))
        size = norm + FLOOR * math.sqrt(x[0].numel())
        step = torch.finfo(x.dtype).eps ** (1 / 3) * size / torch.where(length > 0, length, 1)
        with torch.no_grad():
            change = measure(x + step * v) - measure(x - step * v)
        return change / append_dims(2 * step, change.ndim)

    return push
