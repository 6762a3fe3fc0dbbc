"""The search for the noise levels of a run of few steps."""

import functools
import math
from collections.abc import Sequence

import pytest
import torch

from diffusers_pfgm.solvers.spacing import sigmas_at
from diffusers_pfgm.solvers.step_search import end_errors, search_sigmas


def test_the_error_is_bounded_and_quadratic_near_the_end() -> None:
    reference = torch.randn(100, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert end_errors(reference, reference).tolist() == [0.0] * 100
    assert end_errors(reference + 1e6, reference).tolist() == pytest.approx([1.0] * 100)
    assert end_errors(reference * math.nan, reference).tolist() == [1.0] * 100
    first, second = (end_errors(reference + shift, reference).mean().item() for shift in (1e-4, 2e-4))
    assert second / first == pytest.approx(4, rel=1e-3)


SPACING = functools.partial(sigmas_at, [40.0, 3.0, 0.01])


def test_it_finds_known_noise_levels() -> None:
    best = torch.tensor(SPACING([0.0, 0.2, 0.45, 0.8]), dtype=torch.float64)
    reference = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)

    def run(sigmas: Sequence[float]) -> torch.Tensor:
        return reference + (torch.tensor(sigmas, dtype=torch.float64) / best).log().square().sum().sqrt()

    steps = search_sigmas(run, reference, SPACING, 4)
    assert steps == pytest.approx(best.tolist(), rel=0.05) and steps[0] == 40


def test_the_noise_levels_stay_decreasing_and_in_range() -> None:
    reference = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    runs: list[Sequence[float]] = []

    def run(sigmas: Sequence[float]) -> torch.Tensor:
        runs.append(sigmas)
        return reference + sum(sigmas)  # smaller ones are better

    steps = search_sigmas(run, reference, SPACING, 3)
    for sigmas in [*runs, steps]:
        assert sigmas[0] == 40 > sigmas[1] > sigmas[2] >= 0.01 * (1 - 1e-9)
    assert steps[1] < 0.1 < SPACING([1 / 3])[0]
    assert search_sigmas(run, reference, SPACING, 1) == pytest.approx([40.0])
