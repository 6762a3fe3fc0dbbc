"""Linear operators: adjoints, solutions, and errors."""

import numpy as np
import pytest
import torch

from diffusers_pfgm import Blur, CompressedSensing, Inpainting, LinearOperator, SuperResolution
from diffusers_pfgm.inverse import check_adjoint
from diffusers_pfgm.inverse.linear_operator import SOLVE_TOLERANCE
from tests.networks import seeded

SHAPE = (2, 3, 8, 6)
KERNEL = torch.rand(3, 5, generator=seeded(), dtype=torch.float64)
OPERATORS = {
    "inpainting": Inpainting(torch.rand(8, 6, generator=seeded()) < 0.4),
    "super-resolution": SuperResolution(2),
    "compressed sensing": CompressedSensing(SHAPE[1:], 20, seeded()),
} | {f"blur, {boundary}": Blur(KERNEL, boundary) for boundary in ("zero", "reflect", "replicate", "circular")}


def matrix_of(operator: LinearOperator, shape: tuple[int, ...]) -> torch.Tensor:
    """The matrix A (M, N), column by column."""
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


def test_pseudo_inverse_equals_that_of_the_matrix() -> None:
    for name in ("inpainting", "super-resolution", "compressed sensing"):
        operator, x = OPERATORS[name], torch.randn(SHAPE, generator=seeded(), dtype=torch.float64)
        y = operator(x)
        inverse = torch.linalg.pinv(matrix_of(operator, SHAPE[1:]))
        assert torch.allclose(
            operator.pseudo_inverse(y).flatten(1), y.flatten(1) @ inverse.T, atol=1e-4
        )  # the error of the ridge


def test_values_that_are_not_observed_are_ignored() -> None:
    half = Inpainting(torch.tensor([True, False]))
    assert torch.equal(half(torch.tensor([[2.0, torch.nan]])), torch.tensor([[2.0, 0.0]]))


def test_arrays_are_taken_as_tensors() -> None:
    mask, kernel = np.array([[True, False, True]]), np.full((3, 3), 1 / 9)
    x = torch.randn(2, 1, 4, 3, generator=seeded())
    assert torch.equal(Inpainting(mask)(x), Inpainting(torch.from_numpy(mask))(x))
    assert torch.equal(Blur(kernel)(x), Blur(torch.from_numpy(kernel))(x))
    with pytest.raises(ValueError, match=r"`mask` must hold 1 .* but has the values \[\]"):
        Inpainting(np.zeros((0, 3)))


def test_a_mask_for_each_sample() -> None:
    masks, x = torch.rand(SHAPE, generator=seeded()) < 0.4, torch.randn(SHAPE, generator=seeded(1))
    operator, ridge = Inpainting(masks), torch.tensor([0.5, 2.0])
    check_adjoint(operator, x)
    for row in range(2):
        alone, rows = Inpainting(masks[row]), slice(row, row + 1)
        for name in ("__call__", "adjoint", "pseudo_inverse"):
            assert torch.equal(getattr(operator, name)(x)[rows], getattr(alone, name)(x[rows]))
        assert torch.equal(operator.solve(x, ridge)[rows], alone.solve(x[rows], ridge[rows]))


def scan(x: torch.Tensor) -> torch.Tensor:
    """Some lines of the Fourier transform, as in magnetic resonance."""
    return torch.fft.fft2(x, norm="ortho")[..., :3]


def unscan(y: torch.Tensor) -> torch.Tensor:
    return torch.fft.ifft2(torch.nn.functional.pad(y, (0, 3)), norm="ortho")  # its real part is the adjoint


def test_laws_of_a_complex_operator() -> None:
    operator = LinearOperator(scan, unscan)
    matrix = matrix_of(LinearOperator(lambda x: torch.view_as_real(scan(x)), unscan), SHAPE[1:])
    x = torch.randn(SHAPE, generator=seeded(), dtype=torch.float64)
    y = torch.randn(2, 3, 8, 3, generator=seeded(1), dtype=torch.complex128)
    pairs = torch.view_as_real(y).flatten(1)
    check_adjoint(operator, x)
    assert torch.allclose(operator.adjoint(y).flatten(1), pairs @ matrix)
    gram = 0.7 * matrix @ matrix.T + 0.1 * torch.eye(len(matrix))
    error = torch.view_as_real(operator.solve(y, 0.7, 0.1)).flatten(1) @ gram - pairs
    assert error.norm() <= 2 * SOLVE_TOLERANCE * pairs.norm()
    largest = float(torch.linalg.matrix_norm(matrix, 2))
    assert 0.95 * largest <= operator.norm(x) <= largest * (1 + 1e-9)
    with pytest.raises(ValueError, match=r"wrong adjoint: .* for a complex one the conjugate transpose"):
        check_adjoint(LinearOperator(scan, lambda y: unscan(y.conj())), x)
    with pytest.raises(ValueError, match=r"wrong `gram`: .* Leave it out if A Aᵀ is not diagonal"):
        check_adjoint(LinearOperator(scan, unscan, gram=1.0), x)


def test_compressed_sensing_only_uses_its_generator() -> None:
    before = torch.random.get_rng_state()
    first, second = (CompressedSensing((4, 4), 5, seeded()).directions for _ in range(2))
    assert torch.equal(first, second) and torch.equal(before, torch.random.get_rng_state())
    assert torch.allclose(first.T @ first, torch.eye(5), atol=1e-6)


def test_wrong_adjoints_raise() -> None:
    x = torch.zeros(1, 1, 4, 4)
    pool = SuperResolution(2)
    scaled = LinearOperator(pool, lambda y: 1.01 * pool.adjoint(y))
    with pytest.raises(ValueError, match=r"wrong adjoint: <A x, y> = .* but <x, adjoint\(y\)> = .*transpose"):
        check_adjoint(scaled, x)
    with pytest.raises(
        ValueError, match=r"wrong adjoint: it returns the shape \(1, 1, 2, 2\) .* of the shape \(1, 1, 4, 4\)"
    ):
        check_adjoint(LinearOperator(pool, lambda y: y), x)


def test_invalid_arguments_raise() -> None:
    with pytest.raises(ValueError, match=r"`mask` must hold 1 .* values \[0.0, 0.5\].*comparison"):
        Inpainting(torch.tensor([0.0, 0.5]))
    with pytest.raises(ValueError, match="with a 1 at least"):
        Inpainting(torch.zeros(4))
    for shape in ((3, 4), (3, 1, 4, 4), (1, 1, 1, 4, 4)):
        with pytest.raises(
            ValueError, match=r"`mask` .* \(1, 4, 4\) of a sample, .* or \(2, 1, 4, 4\) for a mask for each"
        ):
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
    # torch pads by fewer pixels than an image has for "reflect", and by no more for "circular".
    for boundary, length, largest in (("reflect", 9, 7), ("circular", 11, 9)):
        for shape, allowed in (((length, 1), (largest, 1)), ((1, length), (1, largest))):
            with pytest.raises(ValueError, match=rf"`kernel` .* is too large for images \(1, 1, 4, 4\) .*{boundary}"):
                Blur(torch.ones(shape), boundary)(torch.zeros(1, 1, 4, 4))
            assert Blur(torch.ones(allowed), boundary)(torch.zeros(1, 1, 4, 4)).shape == (1, 1, 4, 4)
    with pytest.raises(ValueError, match=r"`x` must be images \(B, C, H, W\), but has the shape \(2, 16\)"):
        Blur(torch.ones(3, 3))(torch.zeros(2, 16))
    with pytest.raises(
        ValueError, match=r"`shape` \(4, 4\) has 16 elements, but a sample of `x` \(2, 3, 4, 4\) has 48"
    ):
        CompressedSensing((4, 4), 5)(torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"`shape` must be the shape of one sample, .* but is 64"):
        CompressedSensing(64, 5)  # type: ignore[arg-type]
    for count, allowed in ((0, "a whole number >= 1"), (17, "from 1 to the 16 elements of a sample"), (2.5, "a whole")):
        with pytest.raises(ValueError, match=f"`num_measurements` must be {allowed}.*, but is {count}"):
            CompressedSensing((4, 4), count)
