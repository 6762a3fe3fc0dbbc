"""x̂ from the output of every prediction type: the inverse of the target, equal to diffusers', exact for the field."""

import dataclasses
import math
import pickle

import pytest
import torch
from diffusers import EDMEulerScheduler

from diffusers_pfgm import Parameterization
from diffusers_pfgm.physics.parameterization import PREDICTIONS
from diffusers_pfgm.physics.preconditioning import DDPMPreconditioning, EDMPreconditioning, Preconditioning
from tests.networks import seeded

X = 3 * torch.randn(6, 2, 4, 3, generator=seeded(0), dtype=torch.float64)
DENOISED = torch.randn(6, 2, 4, 3, generator=seeded(1), dtype=torch.float64)
SIGMA = torch.tensor([0.002, 0.1, 1.0, 4.9, 5.1, 80.0], dtype=torch.float64).view(-1, 1, 1, 1)


PRECONDITIONINGS = (
    Preconditioning(),
    EDMPreconditioning(sigma_data=0.5),
    DDPMPreconditioning(tuple(torch.logspace(-3, 2, 50, dtype=torch.float64).tolist())),
)


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize(
    "preconditioning", PRECONDITIONINGS, ids=lambda preconditioning: type(preconditioning).__name__
)
def test_denoised_inverts_the_target_of_every_network(name: str, preconditioning: Preconditioning) -> None:
    prediction = PREDICTIONS[name](preconditioning, 5.0)
    output = prediction.target(DENOISED, X, SIGMA)
    assert output.shape[1] == prediction.output_channels(2)
    # The field loses digits where σ = 0.002 is small compared with γ; the other predictions are linear.
    tolerance = 1e-9 if name == "field" else 1e-12
    assert torch.allclose(prediction.denoised(output, X, SIGMA), DENOISED, rtol=0, atol=tolerance)
    one = slice(3, 4)  # σ as a number
    denoised = prediction.denoised(output[one], X[one], SIGMA[3].item())
    assert torch.allclose(denoised, DENOISED[one], rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "preconditioning", PRECONDITIONINGS, ids=lambda preconditioning: type(preconditioning).__name__
)
def test_sigma_inverts_the_timestep_of_every_preconditioning(preconditioning: Preconditioning) -> None:
    assert torch.allclose(preconditioning.sigma(preconditioning.c_noise(SIGMA)), SIGMA, rtol=1e-12)
    assert preconditioning.sigma(preconditioning.c_noise(4.9)) == pytest.approx(4.9)


def field_to(denoised: torch.Tensor, x: torch.Tensor, z: torch.Tensor, gamma: float) -> torch.Tensor:
    """The paper's v for a known x̂, as C + 1 channels."""
    offset = (denoised - x).flatten(1)
    length = (offset.square().sum(1) + z.flatten().square()).sqrt() + gamma
    scale = (math.sqrt(offset.shape[1]) / length).view(-1, 1, 1, 1)
    v_z = (-z * scale).expand(-1, 1, *x.shape[2:])
    return torch.cat([(denoised - x) * scale, v_z], dim=1)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 5.0])
def test_field_gives_the_posterior_mean_near_and_far(gamma: float) -> None:
    parameterization = Parameterization("field", gamma)
    output = field_to(DENOISED, X, SIGMA, gamma)
    # At σ = 0.002, v_z is a thousandth of v.
    assert torch.allclose(parameterization.denoised(output, X, SIGMA), DENOISED, atol=1e-9)
    for i, sigma in enumerate(SIGMA.flatten().tolist()):
        denoised = parameterization.denoised(output[i : i + 1], X[i : i + 1], sigma)
        assert torch.allclose(denoised, DENOISED[i : i + 1], atol=1e-9)


def test_only_the_mean_of_the_last_channel_has_an_effect() -> None:
    output = field_to(DENOISED, X, SIGMA, 5.0)
    noise = torch.randn(6, 1, 4, 3, generator=seeded(2), dtype=torch.float64)
    output[:, -1:] += noise - noise.mean((1, 2, 3), keepdim=True)
    assert torch.allclose(Parameterization("field").denoised(output, X, SIGMA), DENOISED, atol=1e-9)


@pytest.mark.parametrize("v_z", [123.0, -123.0])
def test_close_to_the_plane_the_last_channel_has_no_effect(v_z: float) -> None:
    z = torch.full_like(SIGMA, 0.002)
    output = field_to(DENOISED, X, z, 5.0)
    output[:, -1:] = v_z
    assert torch.allclose(Parameterization("field").denoised(output, X, z), DENOISED, rtol=0, atol=1e-5)


def test_far_from_the_plane_a_wrong_last_channel_cannot_make_the_mean_infinite() -> None:
    output = field_to(DENOISED, X, SIGMA, 5.0)
    output[:, -1:] = 123.0  # the wrong sign, which implies an infinite distance
    assert Parameterization("field").denoised(output, X, SIGMA).norm() < 1e3 * DENOISED.norm()


@pytest.mark.parametrize("z", [1e-3, 0.1, 1.0, 5.0, 30.0])
def test_distances_are_as_precise_as_both_measurements_allow(z: float) -> None:
    # p and q both measure w. The effect of an error of each must be its weight in the inverse-variance mean.
    x, sigma, error = torch.zeros(1, 1, 8, dtype=torch.float64), torch.tensor([z], dtype=torch.float64), 1e-6
    denoised = torch.full_like(x, 0.7)

    def length(p_error: float, q_error: float) -> float:
        output = field_to(denoised.unsqueeze(2), x.unsqueeze(2), sigma.view(1, 1, 1, 1), 5.0).squeeze(2)
        output[:, :1] *= 1 + p_error / (output[:, :1].norm() / math.sqrt(8))
        output[:, 1:] -= q_error * math.sqrt(8)
        return Parameterization("field").denoised(output, x, z).norm().item()

    a = denoised.norm().item()
    w = 1 / (math.hypot(a, z) + 5)
    # Difference quotients, compared with ∂a = ∂p / w − a ∂w / w for a = p / w.
    by_p, by_q = ((length(*errors) - length(0, 0)) / error for errors in ((error, 0.0), (0.0, error)))
    g = 5 * (1 - 5 * w) + z**2 * w
    weight = g**2 / (g**2 + (z * a * w) ** 2)  # weight of w_p
    assert by_p == pytest.approx(1 / w + a / w * weight * (a * w) / g, rel=1e-3)
    assert by_q == pytest.approx(-a / w * (1 - weight) / z, rel=1e-3, abs=1e-3)


def test_the_mean_is_continuous_in_z() -> None:
    output = field_to(DENOISED, X, torch.full_like(SIGMA, 5.0), 5.0) * 1.01  # a network with a small error
    below, above = (Parameterization("field").denoised(output, X, z) for z in (5 - 1e-6, 5 + 1e-6))
    assert torch.allclose(below, above, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_any_network_output_gives_a_finite_mean(scale: float) -> None:
    output = scale * torch.randn(6, 3, 4, 3, generator=seeded(4), dtype=torch.float64).abs()
    assert Parameterization("field").denoised(output, X, SIGMA).isfinite().all()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_preconditioning_is_that_of_diffusers(prediction_type: str) -> None:
    parameterization = Parameterization(prediction_type, sigma_data=0.7)
    edm = EDMEulerScheduler(sigma_data=0.7, prediction_type=prediction_type)
    for sigma in SIGMA.flatten():
        expected = edm.precondition_outputs(X, DENOISED, sigma)
        assert torch.allclose(parameterization.denoised(DENOISED, X, sigma.item()), expected, atol=1e-12)
        assert torch.allclose(parameterization.c_in(sigma) * X, edm.precondition_inputs(X, sigma), atol=1e-12)
        assert torch.allclose(torch.as_tensor(parameterization.c_noise(sigma)), edm.precondition_noise(sigma))
        assert parameterization.sigma(parameterization.c_noise(sigma.item())) == pytest.approx(sigma.item())


def test_v_is_that_of_variance_preserving_diffusion() -> None:
    # v = α ε − s y with the state (y + σ ε) / √(1 + σ²), α = 1/√(1 + σ²), s = σ α (arXiv 2202.00512).
    epsilon, alpha = (X - DENOISED) / SIGMA, (1 + SIGMA**2) ** -0.5
    target = Parameterization("v_prediction").target(DENOISED, X, SIGMA)
    assert torch.allclose(target, alpha * epsilon - SIGMA * alpha * DENOISED, atol=1e-9)


def test_bad_input_is_explained() -> None:
    with pytest.raises(ValueError, match=r"`prediction_type` must be one of .* but is 'score'"):
        Parameterization("score")
    with pytest.raises(ValueError, match="`gamma` must be a finite number >= 0, but is -1"):
        Parameterization("field", gamma=-1)
    with pytest.raises(ValueError, match="`sigma_data` must be a finite number > 0 or None, but is inf"):
        Parameterization("epsilon", sigma_data=math.inf)
    with pytest.raises(ValueError, match="`sigma_data` must be a finite number > 0 or None, but is 0"):
        Parameterization("epsilon", sigma_data=0)
    with pytest.raises(ValueError, match=r"must have the shape \(6, 3, 4, 3\) for prediction_type 'field'"):
        Parameterization("field").check_output(X, X)


def test_a_field_of_full_length_gives_a_finite_mean() -> None:
    output = torch.ones(6, 3, 4, 3, dtype=torch.float64)  # ‖F_x‖ = √N, which implies an infinite distance
    for sigma in (SIGMA, 1.0):
        denoised = Parameterization("field").denoised(output, X, sigma)
        assert denoised.isfinite().all() and (denoised > X).all()


@pytest.mark.parametrize("prediction_type", ["field", "epsilon"])
@pytest.mark.parametrize("z", [0.01, 1.0, 40.0])
def test_far_from_the_data_the_mean_is_right_to_the_rounding_of_a_point(prediction_type: str, z: float) -> None:
    # At small D points start at any distance. In float32 both x and v have a relative error of 6e-8.
    parameterization = Parameterization(prediction_type)
    directions = torch.nn.functional.normalize(X.flatten(1)).view_as(X)
    for distance in (1e3, 1e4, 1e5, 1e6):
        x = (distance * directions).float()
        output = parameterization.target(DENOISED, x.double(), z).float()
        error = (parameterization.denoised(output, x, z) - DENOISED).flatten(1).norm(dim=1).max().item()
        assert error < 4 * 1.2e-7 * distance + (0.02 if distance == 1e3 else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("prediction_type", ["field", "epsilon"])
def test_where_x_has_too_few_digits_the_mean_remains_among_the_data(prediction_type: str, dtype: torch.dtype) -> None:
    parameterization, largest = Parameterization(prediction_type), torch.finfo(dtype).max * 1e-3
    for distance in (1e8, 1e12, 1e20, 1e35, largest):
        x = torch.nn.functional.normalize(X.flatten(1)).view_as(X).to(dtype) * distance
        output = parameterization.target(DENOISED.to(dtype), x, 40.0)
        denoised = parameterization.denoised(output, x, 40.0)
        assert output.isfinite().all() and denoised.isfinite().all()
        # A mean that is below the rounding error of x is replaced by 0.
        assert (denoised.abs().amax() < 5) or (dtype == torch.float64 and distance < 1e16)


def test_objects_that_version_0_1_0_pickled_load() -> None:
    """They have five options, and neither `preconditioning` nor `prediction`."""
    loaded = object.__new__(Parameterization)
    loaded.__setstate__(dataclasses.asdict(Parameterization("epsilon", sigma_data=0.5)))
    assert loaded == Parameterization("epsilon", sigma_data=0.5) and loaded.c_in(0.0) == 2.0
    assert pickle.loads(pickle.dumps(loaded)).prediction.output_channels(3) == 3
