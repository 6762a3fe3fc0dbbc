"""Equations x = G(x) are solved to the tolerance, in few iterations, independently for each sample."""

import pytest
import torch

from diffusers_pfgm.solvers.fixed_point import MEMORY, solve_fixed_point
from tests.networks import seeded


def test_a_linear_equation_of_low_rank_is_solved_in_little_more_iterations_than_its_rank() -> None:
    # All other directions converge in one iteration, so that mixing works in a small Krylov space.
    directions = torch.linalg.qr(torch.randn(20, MEMORY - 1, generator=seeded(), dtype=torch.float64))[0]
    strengths = torch.tensor([-9.0, -2.0, 1.7, 4.0], dtype=torch.float64)
    matrix = directions * strengths @ directions.mT
    shift = torch.randn(3, 20, generator=seeded(1), dtype=torch.float64)
    iterates = []

    def update(x: torch.Tensor) -> torch.Tensor:
        iterates.append(x)
        return shift + x @ matrix

    x, change = solve_fixed_point(update, torch.zeros(3, 20, dtype=torch.float64), 1e-9, 50)
    exact = torch.linalg.solve(torch.eye(20, dtype=torch.float64) - matrix, shift, left=False)
    assert torch.allclose(x, exact, atol=1e-7) and (change <= 1e-9).all() and len(iterates) <= MEMORY + 2


def test_a_sample_does_not_depend_on_the_others() -> None:
    def update(x: torch.Tensor) -> torch.Tensor:
        return 1 + x.cos() * x.new_tensor([0.1, 0.9, 3.0])[: len(x), None]

    together, _ = solve_fixed_point(update, torch.zeros(3, 4, dtype=torch.float64), 1e-10, 100)
    alone, _ = solve_fixed_point(update, torch.zeros(1, 4, dtype=torch.float64), 1e-10, 100)
    assert torch.equal(together[:1], alone)
    assert torch.allclose(together, update(together), atol=1e-8)


@pytest.mark.parametrize("shape", [(2, 3), (2, 1, 4, 4)])
def test_a_failure_to_converge_is_reported(shape: tuple[int, ...]) -> None:
    x, change = solve_fixed_point(lambda x: x + 1 + x.square(), torch.zeros(shape, dtype=torch.float64), 1e-6, 7)
    assert x.shape == shape and change.shape == (2,) and not (change <= 1e-6).any()
    calls = []
    _, change = solve_fixed_point(lambda x: (calls.append(1), x * torch.nan)[1], torch.ones(shape), 1e-6, 7)
    assert not (change <= 1e-6).any() and len(calls) == 1


def test_changes_within_the_noise_end_the_iteration() -> None:
    calls = []

    def update(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return (x.cos() * 256).round() / 256

    x, change = solve_fixed_point(update, torch.zeros(1, 3, dtype=torch.float64), 1e-9, 50, noise=0.02)
    assert (change <= 0.02).all() and len(calls) < 20
    assert torch.allclose(x, torch.full_like(x, 0.739085), atol=0.01)  # the root of x = cos x
