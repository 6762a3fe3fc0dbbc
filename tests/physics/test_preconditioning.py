"""One converter for every prediction type: inverse of its target, equal to diffusers', exact for the field."""

import math

import pytest
import torch
from diffusers import EDMEulerScheduler

from diffusers_pfgm import Parameterization
from tests.conftest import seeded

X = 3 * torch.randn(6, 2, 4, 3, generator=seeded(0), dtype=torch.float64)
DENOISED = torch.randn(6, 2, 4, 3, generator=seeded(1), dtype=torch.float64)
SIGMA = torch.tensor([0.002, 0.1, 1.0, 4.9, 5.1, 80.0], dtype=torch.float64).view(-1, 1, 1, 1)


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction"])
@pytest.mark.parametrize("sigma_data", [None, 0.5])
def test_reading_inverts_the_target(prediction_type: str, sigma_data: float | None) -> None:
    parameterization = Parameterization(prediction_type, sigma_data=sigma_data)
    output = parameterization.target(DENOISED, X, SIGMA)
    assert torch.allclose(parameterization.denoised(output, X, SIGMA), DENOISED, atol=1e-12)
    assert torch.allclose(parameterization.denoised(output[3:4], X[3:4], SIGMA[3].item()), DENOISED[3:4], atol=1e-12)


def field_towards(denoised: torch.Tensor, x: torch.Tensor, z: torch.Tensor, gamma: float) -> torch.Tensor:
    """The paper's v for a known x̂, as C + 1 channels."""
    offset = (denoised - x).flatten(1)
    length = (offset.square().sum(1) + z.flatten().square()).sqrt() + gamma
    scale = (math.sqrt(offset.shape[1]) / length).view(-1, 1, 1, 1)
    v_z = (-z * scale).expand(-1, 1, *x.shape[2:])
    return torch.cat([(denoised - x) * scale, v_z], dim=1)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 5.0])
def test_field_tells_the_posterior_mean_near_and_far(gamma: float) -> None:
    parameterization = Parameterization("field", gamma)
    output = field_towards(DENOISED, X, SIGMA, gamma)
    # The far formula divides by v_z, at σ = 0.002 a thousandth of v.
    assert torch.allclose(parameterization.denoised(output, X, SIGMA), DENOISED, atol=1e-9)
    for i, sigma in enumerate(SIGMA.flatten().tolist()):
        found = parameterization.denoised(output[i : i + 1], X[i : i + 1], sigma)
        assert torch.allclose(found, DENOISED[i : i + 1], atol=1e-9)


def test_only_the_mean_of_the_last_channel_counts() -> None:
    output = field_towards(DENOISED, X, SIGMA, 5.0)
    noise = torch.randn(6, 1, 4, 3, generator=seeded(2), dtype=torch.float64)
    output[:, -1:] += noise - noise.mean((1, 2, 3), keepdim=True)
    assert torch.allclose(Parameterization("field").denoised(output, X, SIGMA), DENOISED, atol=1e-9)


@pytest.mark.parametrize("v_z", [123.0, -123.0])
def test_near_the_plane_the_last_channel_does_not_count(v_z: float) -> None:
    z = torch.full_like(SIGMA, 0.002)
    output = field_towards(DENOISED, X, z, 5.0)
    output[:, -1:] = v_z
    assert torch.allclose(Parameterization("field").denoised(output, X, z), DENOISED, rtol=0, atol=1e-5)


def test_far_above_it_a_wrong_last_channel_cannot_take_the_mean_away() -> None:
    output = field_towards(DENOISED, X, SIGMA, 5.0)
    output[:, -1:] = 123.0  # of the wrong sign: the distance seems infinite
    assert Parameterization("field").denoised(output, X, SIGMA).norm() < 1e3 * DENOISED.norm()


@pytest.mark.parametrize("z", [1e-3, 0.1, 1.0, 5.0, 30.0])
def test_lengths_are_as_precise_as_both_measurements_of_them_allow(z: float) -> None:
    # p and q both measure w; what an error of each does to a must be its share of the mean by inverse variances.
    x, sigma, error = torch.zeros(1, 1, 8, dtype=torch.float64), torch.tensor([z], dtype=torch.float64), 1e-6
    denoised = torch.full_like(x, 0.7)

    def length(p_error: float, q_error: float) -> float:
        output = field_towards(denoised.unsqueeze(2), x.unsqueeze(2), sigma.view(1, 1, 1, 1), 5.0).squeeze(2)
        output[:, :1] *= 1 + p_error / (output[:, :1].norm() / math.sqrt(8))
        output[:, 1:] -= q_error * math.sqrt(8)
        return Parameterization("field").denoised(output, x, z).norm().item()

    a = denoised.norm().item()
    w = 1 / (math.hypot(a, z) + 5)
    # By differences, against ∂a = ∂p / w − a ∂w / w of a = p / w.
    by_p, by_q = ((length(*errors) - length(0, 0)) / error for errors in ((error, 0.0), (0.0, error)))
    g = 5 * (1 - 5 * w) + z**2 * w
    share = g**2 / (g**2 + (z * a * w) ** 2)  # of w_p
    assert by_p == pytest.approx(1 / w + a / w * share * (a * w) / g, rel=1e-3)
    assert by_q == pytest.approx(-a / w * (1 - share) / z, rel=1e-3, abs=1e-3)


def test_no_jump_between_the_plane_and_the_prior() -> None:
    output = field_towards(DENOISED, X, torch.full_like(SIGMA, 5.0), 5.0) * 1.01  # of a network that is a little wrong
    below, above = (Parameterization("field").denoised(output, X, z) for z in (5 - 1e-6, 5 + 1e-6))
    assert torch.allclose(below, above, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_any_network_output_gives_a_finite_mean(scale: float) -> None:
    output = scale * torch.randn(6, 3, 4, 3, generator=seeded(4), dtype=torch.float64).abs()
    assert Parameterization("field").denoised(output, X, SIGMA).isfinite().all()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_preconditioning_is_diffusers(prediction_type: str) -> None:
    parameterization = Parameterization(prediction_type, sigma_data=0.7)
    edm = EDMEulerScheduler(sigma_data=0.7, prediction_type=prediction_type)
    for sigma in SIGMA.flatten():
        expected = edm.precondition_outputs(X, DENOISED, sigma)
        assert torch.allclose(parameterization.denoised(DENOISED, X, sigma.item()), expected, atol=1e-12)
        assert torch.allclose(parameterization.c_in(sigma) * X, edm.precondition_inputs(X, sigma), atol=1e-12)
        assert torch.allclose(torch.as_tensor(parameterization.c_noise(sigma)), edm.precondition_noise(sigma))
        assert parameterization.sigma(parameterization.c_noise(sigma.item())) == pytest.approx(sigma.item())


def test_velocity_is_that_of_variance_preserving_diffusion() -> None:
    # v = α ε − s y with the state (y + σ ε) / √(1 + σ²), α = 1/√(1 + σ²), s = σ α (arXiv 2202.00512).
    epsilon, alpha = (X - DENOISED) / SIGMA, (1 + SIGMA**2) ** -0.5
    target = Parameterization("v_prediction").target(DENOISED, X, SIGMA)
    assert torch.allclose(target, alpha * epsilon - SIGMA * alpha * DENOISED, atol=1e-9)


def test_bad_input_is_explained() -> None:
    with pytest.raises(ValueError, match=r"`prediction_type` must be one of .* but is 'score'"):
        Parameterization("score")
    with pytest.raises(ValueError, match="`gamma` must be a finite number >= 0, but is -1"):
        Parameterization("field", gamma=-1)
    with pytest.raises(ValueError, match="`sigma_data` must be a number > 0 or None, but is 0"):
        Parameterization("epsilon", sigma_data=0)
    with pytest.raises(ValueError, match=r"must have the shape \(6, 3, 4, 3\) for prediction_type 'field'"):
        Parameterization("field").check_output(X, X)


def test_a_field_of_full_length_gives_a_finite_mean() -> None:
    output = torch.ones(6, 3, 4, 3, dtype=torch.float64)  # ‖F_x‖ = √N: infinitely far
    for sigma in (SIGMA, 1.0):
        found = Parameterization("field").denoised(output, X, sigma)
        assert found.isfinite().all() and (found > X).all()


@pytest.mark.parametrize("prediction_type", ["field", "epsilon"])
@pytest.mark.parametrize("z", [0.01, 1.0, 40.0])
def test_far_from_the_data_the_mean_is_right_to_the_rounding_of_a_point(prediction_type: str, z: float) -> None:
    # Small D starts points at any distance. In float32 x alone is right to 6e-8, and v to as much.
    parameterization, directions = (
        Parameterization(prediction_type),
        torch.nn.functional.normalize(X.flatten(1)).view_as(X),
    )
    for distance in (1e3, 1e4, 1e5, 1e6):
        x = (distance * directions).float()
        output = parameterization.target(DENOISED, x.double(), z).float()
        error = (parameterization.denoised(output, x, z) - DENOISED).flatten(1).norm(dim=1).max().item()
        assert error < 4 * 1.2e-7 * distance + (0.02 if distance == 1e3 else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("prediction_type", ["field", "epsilon"])
def test_farther_than_digits_reach_the_mean_stays_among_the_data(prediction_type: str, dtype: torch.dtype) -> None:
    parameterization, largest = Parameterization(prediction_type), torch.finfo(dtype).max * 1e-3
    for distance in (1e8, 1e12, 1e20, 1e35, largest):
        x = torch.nn.functional.normalize(X.flatten(1)).view_as(X).to(dtype) * distance
        output = parameterization.target(DENOISED.to(dtype), x, 40.0)
        found = parameterization.denoised(output, x, 40.0)
        assert output.isfinite().all() and found.isfinite().all()
        # Relative to x the mean is nothing, and what is not told from rounding is 0.
        assert (found.abs().amax() < 5) or (dtype == torch.float64 and distance < 1e16)
