"""Traces of Jacobians, compared with the Jacobians themselves."""

import pytest
import torch

from diffusers_pfgm import posterior_mean
from diffusers_pfgm.solvers.divergence import check_divergence, draw_probes, estimate_trace
from tests.networks import seeded

MATRIX = torch.randn(6, 6, generator=seeded(1), dtype=torch.float64)


def linear(x: torch.Tensor) -> torch.Tensor:
    return (x.flatten(1) @ MATRIX.T).view_as(x)


def points(count: int = 1) -> torch.Tensor:
    return torch.randn(count, 2, 3, generator=seeded(), dtype=torch.float64)


def probes(x: torch.Tensor, count: int, distribution: str = "rademacher") -> torch.Tensor:
    return draw_probes(tuple(x.shape), count, distribution, seeded(2), x)


def test_exact_trace_of_a_field_is_autograds() -> None:
    charges = torch.randn(5, 2, 3, generator=seeded(3), dtype=torch.float64)
    x = points(4)

    def denoise(x: torch.Tensor) -> torch.Tensor:
        return posterior_mean(x, 0.7, charges, 2.5)

    denoised, trace = estimate_trace(denoise, x)
    assert torch.equal(denoised, denoise(x)) and not trace.requires_grad and trace.shape == (4, 1)
    for row, value in zip(x, trace[:, 0], strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda row: denoise(row[None])[0].flatten(), row)
        assert value == pytest.approx(jacobian.view(6, 6).trace().item(), rel=1e-10)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased(distribution: str) -> None:
    x = points()
    estimates = estimate_trace(linear, x, "hutchinson", probes(x, 2000, distribution))[1][0]
    error = estimates.std() / 2000**0.5
    assert abs(estimates.mean() - MATRIX.trace()) < 3 * error
    # Var vᵀJv, with S the symmetric part: 2 Σ S_ij² without the diagonal for ±1, with it for a Gaussian
    squares = (2 * ((MATRIX + MATRIX.T) / 2).square()).fill_diagonal_(0 if distribution == "rademacher" else torch.nan)
    if distribution == "gaussian":
        squares = 2 * ((MATRIX + MATRIX.T) / 2).square()
    assert estimates.var() == pytest.approx(squares.sum().item(), rel=0.15)


def test_hutch_plus_plus_is_exact_for_a_low_rank() -> None:
    x = points(2)
    low_rank = MATRIX[:, :2] @ MATRIX[:2]

    def denoise(x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1) @ low_rank.T).view_as(x)

    estimates = estimate_trace(denoise, x, "hutch++", probes(x, 6))[1]  # a sketch of two columns
    assert estimates.shape == (2, 2) and torch.allclose(estimates, low_rank.trace().expand(2, 2), rtol=1e-9)


def test_hutch_plus_plus_is_unbiased() -> None:
    x = points(3000)
    estimates = estimate_trace(linear, x, "hutch++", probes(x, 6))[1].mean(1)
    assert abs(estimates.mean() - MATRIX.trace()) < 3 * estimates.std() / 3000**0.5


def test_probes_of_a_sample_are_drawn_from_its_generator() -> None:
    x = points(3)
    state = torch.get_rng_state()
    whole = draw_probes((3, 2, 3), 4, "rademacher", [seeded(i) for i in range(3)], x)
    alone = draw_probes((1, 2, 3), 4, "rademacher", [seeded(2)], x)
    assert torch.equal(whole[2:], alone) and torch.equal(whole.abs(), torch.ones_like(whole))
    assert whole.dtype == x.dtype and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("guess", 1, "rademacher"), "`divergence` must be one of .*'exact', 'hutchinson', 'hutch\\+\\+'.*'guess'"),
        (("hutchinson", 0, "rademacher"), "`num_probes` must be a whole number >= 1, but is 0"),
        (("hutchinson", -2, "rademacher"), "but is -2"),
        (("hutchinson", 1.5, "rademacher"), "but is 1.5"),
        (("hutch++", 4, "rademacher"), "multiple of 3 for 'hutch\\+\\+', but is 4. Use 3, 6"),
        (("hutchinson", 1, "uniform"), "`probe_distribution` must be one of .*'uniform'"),
    ],
)
def test_bad_requests_are_explained(arguments: tuple[str, int, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_divergence(*arguments)


def test_an_estimator_needs_probes_and_a_known_name() -> None:
    with pytest.raises(ValueError, match=r"`method` must be one of .*, but is 'exakt'"):
        estimate_trace(linear, points(), "exakt")
    with pytest.raises(ValueError, match=r"`method` 'hutchinson' needs `probes`, but they are None. Draw them"):
        estimate_trace(linear, points(), "hutchinson")
    with pytest.raises(ValueError, match=r"`method` 'exact' needs no `probes`, but there are some. Leave them out"):
        estimate_trace(linear, points(), probes=probes(points(), 2))
