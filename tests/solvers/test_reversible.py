"""Steps that can be reversed."""

import math

import pytest
import torch

from diffusers_pfgm import posterior_mean
from diffusers_pfgm.solvers.multistep import trapezoid_weights
from diffusers_pfgm.solvers.reversible import integrate_reversible, without_integrand
from diffusers_pfgm.solvers.spacing import geometric_sigmas
from tests.networks import seeded

VARIANCE = 0.25


def gaussian(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """x̂ of data N(0, s²) at D = ∞, whose field lines are x ∝ √(s² + σ²)."""
    return x * VARIANCE / (VARIANCE + sigma**2)


def with_trace(x: torch.Tensor, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
    return gaussian(x, sigma), x.new_full((len(x), 1), 3 * VARIANCE / (VARIANCE + sigma**2))


def test_a_step_solved_for_its_start_is_the_reverse_step() -> None:
    x_coefficient, (start_weight, end_weight) = trapezoid_weights(3.0, 0.7)
    inverse, (inverse_start, inverse_end) = trapezoid_weights(0.7, 3.0)
    assert inverse == pytest.approx(1 / x_coefficient)
    assert inverse_start == pytest.approx(-end_weight / x_coefficient)
    assert inverse_end == pytest.approx(-start_weight / x_coefficient)
    assert x_coefficient + start_weight + end_weight == pytest.approx(1)  # where x̂ = x, x does not change


def test_second_order() -> None:
    x = torch.randn(4, 3, generator=seeded(), dtype=torch.float64)
    exact = x * math.sqrt((VARIANCE + 1600) / (VARIANCE + 1e-4))
    errors, integrals = [], []
    for steps in (40, 80):
        sigmas = geometric_sigmas(40.0, 0.01, steps + 1)[::-1]
        end, integral = integrate_reversible(gaussian, with_trace, x, sigmas, 1e-12)
        errors.append((end - exact).norm().item())
        exact_integral = 1.5 * math.log((VARIANCE / 1e-4 + 1) / (VARIANCE / 1600 + 1))  # ∫ 3 s²/(s² + σ²) d log σ
        integrals.append(abs(integral[0, 0].item() - exact_integral))
    for coarse, fine in (errors, integrals):
        assert math.log2(coarse / fine) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("aug_dim", [1.0, 64.0, None])
def test_few_long_steps_are_reversible(aug_dim: float | None) -> None:
    charges = torch.randn(3, 4, generator=seeded(1), dtype=torch.float64)

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return posterior_mean(x, sigma, charges, aug_dim)

    x = charges[[0, 1, 2, 0]] + torch.randn(4, 4, generator=seeded(), dtype=torch.float64)
    sigmas = geometric_sigmas(40.0, 1.0, 11)
    encoded, _ = integrate_reversible(denoise, without_integrand(denoise), x, sigmas[::-1], 1e-12)
    decoded, _ = integrate_reversible(denoise, without_integrand(denoise), encoded, sigmas, 1e-12)
    finer, _ = integrate_reversible(
        denoise, without_integrand(denoise), x, geometric_sigmas(40.0, 1.0, 401)[::-1], 1e-12
    )
    assert (decoded - x).norm() / x.norm() < 1e-9 < 1e-4 < (encoded - finer).norm() / finer.norm()


def test_a_step_without_a_solution_is_refused() -> None:
    steep = lambda x, sigma: 50 * x.square() + 50  # noqa: E731
    with pytest.raises(
        ValueError, match=r"from sigma 1 to 0.1 cannot be reversed.* 1 of 1 .*larger `num_inference_steps`"
    ):
        integrate_reversible(steep, without_integrand(steep), torch.ones(1, 2), [1.0, 0.1], 1e-6)


def test_a_steep_mean_is_solved() -> None:
    steep = lambda x, sigma: 50 * x  # noqa: E731
    sigmas = [1.0, 0.1, 0.01]
    x = torch.ones(1, 2, dtype=torch.float64)
    decoded, _ = integrate_reversible(steep, without_integrand(steep), x, sigmas, 1e-12)
    encoded, _ = integrate_reversible(steep, without_integrand(steep), decoded, sigmas[::-1], 1e-12)
    assert torch.allclose(encoded, x, atol=1e-10) and (decoded - x).norm() > 0.1


def rounded(x: torch.Tensor, bits: int) -> torch.Tensor:
    """x rounded to `bits` bits of mantissa, as TF32 (10) and bfloat16 (7) have."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2 ** (bits + 1)).round() / 2 ** (bits + 1), exponent)


@pytest.mark.parametrize(("bits", "bound"), [(10, 2e-3), (7, 2e-2)])
def test_a_model_that_rounds_is_reversed_to_its_precision(bits: int, bound: float) -> None:
    matrix = torch.randn(6, 6, generator=seeded(2), dtype=torch.float64) / 3

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return rounded(rounded((rounded(x, bits) @ matrix).tanh(), bits) @ matrix, bits)

    x = torch.randn(4, 6, generator=seeded(), dtype=torch.float64)
    sigmas = geometric_sigmas(40.0, 0.05, 31)
    with pytest.warns(UserWarning, match=r"less precise than `step_tolerance` = 1e-08: .* or pass `step_tolerance="):
        encoded, _ = integrate_reversible(denoise, without_integrand(denoise), x, sigmas[::-1], 1e-8)
        decoded, _ = integrate_reversible(denoise, without_integrand(denoise), encoded, sigmas, 1e-8)
    assert (decoded - x).norm() / x.norm() < bound


def test_a_discontinuous_mean_is_refused() -> None:
    # x̂ has the opposite sign of x and jumps at x = 0, so that no x' solves the equation of the step.
    jumping = lambda x, sigma: -x.sign() * x.new_tensor([1.0, 0.5])  # noqa: E731
    with pytest.raises(ValueError, match=r"cannot be reversed.* 1 of 1 samples"):
        integrate_reversible(
            jumping, without_integrand(jumping), torch.full((1, 2), 0.01, dtype=torch.float64), [1.0, 0.5], 1e-6
        )
