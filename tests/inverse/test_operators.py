"""Measurements: adjoints, what is solved with them, and what is refused."""

import pytest
import torch

from diffusers_pfgm import Blur, CompressedSensing, Inpainting, LinearOperator, SuperResolution
from diffusers_pfgm.inverse import check_adjoint, linearized
from diffusers_pfgm.inverse.operators import SOLVE_TOLERANCE
from tests.conftest import seeded

SHAPE = (2, 3, 8, 6)
KERNEL = torch.rand(3, 5, generator=seeded(), dtype=torch.float64)
OPERATORS = {
    "inpainting": Inpainting(torch.rand(8, 6, generator=seeded()) < 0.4),
    "super-resolution": SuperResolution(2),
    "compressed sensing": CompressedSensing(SHAPE[1:], 20, seeded()),
} | {f"blur, {boundary}": Blur(KERNEL, boundary) for boundary in ("zero", "reflect", "replicate", "circular")}


def matrix_of(operator: LinearOperator, shape: tuple[int, ...]) -> torch.Tensor:
    """A (M, N), column by column."""
    size = torch.Size(shape).numel()
    return operator(torch.eye(size, dtype=torch.float64).view(size, *shape)).flatten(1).T


@pytest.mark.parametrize("name", OPERATORS)
def test_laws_of_a_linear_operator(name: str) -> None:
    operator, matrix = OPERATORS[name], matrix_of(OPERATORS[name], SHAPE[1:])
    x = torch.randn(SHAPE, generator=seeded(), dtype=torch.float64)
    y = operator(x)
    check_adjoint(operator, x)
    assert torch.allclose(operator.adjoint(y).flatten(1), y.flatten(1) @ matrix)
    scale, ridge = torch.tensor([0.5, 2.0], dtype=torch.float64), 0.1
    for row in range(2):
        gram = scale[row] * matrix @ matrix.T + ridge * torch.eye(len(matrix))
        error = gram @ operator.solve(y, scale, ridge)[row].flatten() - y[row].flatten()
        assert error.norm() <= 2 * SOLVE_TOLERANCE * y[row].norm()
    largest = float(torch.linalg.matrix_norm(matrix, 2))
    assert 0.95 * largest <= operator.norm(x) <= largest * (1 + 1e-9)


def test_pseudo_inverse_is_that_of_the_matrix() -> None:
    for name in ("inpainting", "super-resolution", "compressed sensing"):
        operator, x = OPERATORS[name], torch.randn(SHAPE, generator=seeded(), dtype=torch.float64)
        y = operator(x)
        inverse = torch.linalg.pinv(matrix_of(operator, SHAPE[1:]))
        assert torch.allclose(operator.pseudo_inverse(y).flatten(1), y.flatten(1) @ inverse.T, atol=1e-4)  # the ridge


def test_what_is_not_observed_is_not_looked_at() -> None:
    half = Inpainting(torch.tensor([True, False]))
    assert torch.equal(half(torch.tensor([[2.0, torch.nan]])), torch.tensor([[2.0, 0.0]]))


def test_a_measurement_that_is_not_linear_acts_as_its_jacobian() -> None:
    x = torch.randn(3, 4, generator=seeded(), dtype=torch.float64)
    operator = linearized(torch.tanh, x)
    v = torch.randn(3, 4, generator=seeded(1), dtype=torch.float64)
    slope = 1 - x.tanh() ** 2
    assert torch.allclose(operator(v), slope * v) and torch.allclose(operator.adjoint(v), slope * v)
    ridge = 0.2
    assert torch.allclose(operator.solve(v, ridge=ridge), v / (slope**2 + ridge), rtol=1e-3)


def test_compressed_sensing_draws_from_its_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, second = (CompressedSensing((4, 4), 5, seeded()).directions for _ in range(2))
    assert torch.equal(first, second) and torch.equal(before, torch.random.get_rng_state())
    assert torch.allclose(first.T @ first, torch.eye(5), atol=1e-6)


def test_wrong_adjoints_are_found() -> None:
    x = torch.zeros(1, 1, 4, 4)
    pool = SuperResolution(2)
    scaled = LinearOperator(pool, lambda y: 1.01 * pool.adjoint(y))
    with pytest.raises(ValueError, match=r"wrong adjoint: <A x, y> = .* but <x, adjoint\(y\)> = .*transpose"):
        check_adjoint(scaled, x)
    with pytest.raises(ValueError, match=r"wrong adjoint: it makes the shape \(1, 1, 2, 2\) .* of \(1, 1, 4, 4\)"):
        check_adjoint(LinearOperator(pool, lambda y: y), x)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"`mask` must hold 1 .* from 0.0 to 0.5.*comparison"):
        Inpainting(torch.tensor([0.0, 0.5]))
    with pytest.raises(ValueError, match="with a 1 at least"):
        Inpainting(torch.zeros(4))
    for shape in ((3, 4), (2, 1, 4, 4), (1, 1, 1, 4, 4)):
        with pytest.raises(ValueError, match=r"`mask` must have the shape \(1, 4, 4\) of a sample, or one that"):
            Inpainting(torch.ones(shape))(torch.zeros(2, 1, 4, 4))
    for factor in (0, 1.5):
        with pytest.raises(ValueError, match=f"`factor` must be a whole number >= 1, but is {factor}"):
            SuperResolution(factor)
    with pytest.raises(ValueError, match=r"`factor` = 3 must divide .* shape \(1, 1, 8, 8\)"):
        SuperResolution(3)(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"`kernel` must have the shape \(h, w\), both odd, but has \(3, 2\)"):
        Blur(torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"`boundary` must be one of .*, but is 'none'"):
        Blur(torch.ones(3, 3), "none")
    for count in (0, 17, 2.5):
        with pytest.raises(ValueError, match=f"from 1 to the 16 elements of a sample, but is {count}"):
            CompressedSensing((4, 4), count)
