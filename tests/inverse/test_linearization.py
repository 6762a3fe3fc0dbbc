"""Products and solutions of a linearized measurement are those of its Jacobian, computed row by row by autograd."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import affine_grid, grid_sample, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from diffusers_pfgm.inverse import linearized
from tests.networks import seeded

GRID = affine_grid(torch.tensor([[[0.9, -0.2, 0.0], [0.2, 0.9, 0.0]]]), (1, 1, 4, 4), align_corners=False)
MIXING = torch.randn(16, 16, generator=seeded(5))


class Rounding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return (x * 4).round() / 4

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


class RoundingOnce(Rounding):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * gradient


def rotation(x: torch.Tensor) -> torch.Tensor:
    return grid_sample(x, GRID.to(x).expand(len(x), -1, -1, -1), align_corners=False)


def sparse(x: torch.Tensor) -> torch.Tensor:
    matrix = (MIXING * (MIXING.abs() > 1)).to(x).to_sparse()
    return torch.sparse.mm(matrix, x.flatten(1).T).T


MEASURES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "elementwise": torch.tanh,
    "rotation by grid_sample": rotation,
    "attention": lambda x: scaled_dot_product_attention(x, x, x),
    "distances": lambda x: torch.cdist(x[:, 0], x[:, 0] + 1),
    "sparse": sparse,
    "checkpointed": lambda x: checkpoint(torch.sin, x, use_reentrant=False),
    "norms": lambda x: x.flatten(1).norm(dim=1),
    "spectrum": lambda x: torch.fft.rfft2(x.tanh()),
    "magnitudes": lambda x: torch.fft.fft2(x).abs(),
    "straight-through rounding": Rounding.apply,
    "straight-through rounding, once": RoundingOnce.apply,
    "custom cube": Cube.apply,
    "in part": lambda x: x[:, :, :2].square(),
}


def pairs(y: torch.Tensor) -> torch.Tensor:
    """y as (B, M), with the real and imaginary parts of a complex y."""
    return (torch.view_as_real(y) if y.is_complex() else y).reshape(len(y), -1)


def jacobian_of(measure: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The Jacobian (M, N) at x (1, *), by one backward pass for each measured number."""
    point = x.clone().requires_grad_()
    measured = pairs(measure(point))
    rows = [torch.autograd.grad(value, point, retain_graph=True)[0].flatten() for value in measured[0]]
    return torch.stack(rows)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inference", [False, True])
def test_products_and_solutions_equal_those_of_the_jacobian(name: str, dtype: torch.dtype, inference: bool) -> None:
    measure, x = MEASURES[name], torch.randn(2, 1, 4, 4, generator=seeded(), dtype=dtype)
    jacobians = [jacobian_of(measure, x[row : row + 1]) for row in range(2)]
    values = measure(x)
    y = torch.randn(values.shape, generator=seeded(1), dtype=values.dtype)
    v, ridge, scale = torch.randn(x.shape, generator=seeded(2), dtype=dtype), 0.3, torch.tensor([0.5, 2.0], dtype=dtype)
    with torch.inference_mode(inference):
        operator = linearized(measure, x)
        pulled, solved = operator.adjoint(y), operator.solve(y, scale, ridge)
        pushed = None if "once" in name else operator(v)
        assert solved.shape == y.shape and pulled.shape == x.shape
    for row, jacobian in enumerate(jacobians):
        assert torch.allclose(pulled[row].flatten(), pairs(y)[row] @ jacobian, atol=1e-4)
        gram = scale[row] * jacobian @ jacobian.T + ridge * torch.eye(len(jacobian), dtype=dtype)
        expected = torch.linalg.solve(gram, pairs(y)[row])
        assert (pairs(solved)[row] - expected).norm() < 1e-2 * expected.norm()
        if pushed is not None:
            product = jacobian @ v[row].flatten()
            assert (pairs(pushed)[row] - product).norm() < 1e-3 * product.norm()


def test_solve_with_a_custom_gradient_uses_the_value_along_y() -> None:
    class Half(RoundingOnce):
        @staticmethod
        @once_differentiable
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient / 2

    y = torch.randn(2, 3, generator=seeded())
    operator = linearized(Half.apply, torch.randn(2, 3, generator=seeded(1)))
    assert torch.allclose(operator.solve(y, torch.tensor([1.0, 4.0]), 0.5), y / torch.tensor([[0.75], [1.5]]))


@pytest.mark.parametrize("x", [torch.zeros(2, 1, 4, 4), 1e4 * torch.ones(2, 1, 4, 4)])
def test_the_step_of_differences_follows_the_scale_of_x(x: torch.Tensor) -> None:
    operator, v = linearized(rotation, x), torch.randn(2, 1, 4, 4, generator=seeded())
    expected = rotation(v)
    assert torch.allclose(operator(v), expected, atol=1e-3 * expected.abs().max().item())
    assert torch.equal(operator(torch.zeros_like(v)), torch.zeros_like(expected))


def test_out_of_memory_errors_are_raised() -> None:
    class Full(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            if torch.is_grad_enabled():
                raise torch.OutOfMemoryError("full")
            return gradient

    with pytest.raises(torch.OutOfMemoryError):
        linearized(Full.apply, torch.ones(1, 2))


@pytest.mark.parametrize("measure", [torch.Tensor.detach, lambda x: x > 0, lambda x: math.pi])
def test_measurements_without_a_gradient_raise(measure: Any) -> None:
    with pytest.raises(ValueError, match="`operator` must be a LinearOperator or a function that autograd follows"):
        linearized(measure, torch.ones(1, 2))
