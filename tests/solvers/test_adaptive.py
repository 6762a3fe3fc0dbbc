"""RK45 gives the same samples as the fixed steps, and counts its network calls."""

import math
from typing import Any

import pytest
import torch
from diffusers import EDMEulerScheduler

from diffusers_pfgm import ChargeField, Parameterization, PFGMPipeline, PoissonFlow, PoissonFlowScheduler
from diffusers_pfgm.physics.denoiser import Denoiser
from diffusers_pfgm.solvers.adaptive import integrate_adaptive
from tests.networks import ExactNetwork, make_tiny_pipeline, seeded


def quiet(network: Any, scheduler: Any) -> PFGMPipeline:
    pipe = PFGMPipeline(network, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_field_lines_of_a_gaussian_are_exact() -> None:
    # Data N(0, s²) at D = ∞: x̂ = x s²/(s² + σ²), so that x is proportional to √(s² + σ²).
    x = torch.randn(5, 3, generator=seeded(), dtype=torch.float64)
    denoise = lambda x, sigma: x * 0.25 / (0.25 + sigma**2)  # noqa: E731
    decoded = integrate_adaptive(denoise, x, 40.0, 0.01, 1e-8)
    assert torch.allclose(decoded, x * math.sqrt((0.25 + 1e-4) / (0.25 + 1600)), rtol=1e-6)
    assert torch.allclose(integrate_adaptive(denoise, decoded, 0.01, 40.0, 1e-10), x, rtol=1e-5)


def test_the_model_is_not_called_beyond_the_noise_levels() -> None:
    # The velocity of a point on a charge is so small that the solver looks far ahead for its first step.
    charges, sigmas = torch.rand(6, 1, 4, 4, generator=seeded()) * 2 - 1, []
    field = ChargeField(charges)
    field.register_forward_pre_hook(lambda module, inputs: sigmas.append(float(inputs[1])))
    flow = PoissonFlow(field, PoissonFlowScheduler())
    latents = flow.encode(charges[:2], tolerance=1e-3).latents
    assert torch.allclose(flow.decode(latents, tolerance=1e-3).sample, charges[:2], atol=1e-3)
    assert min(sigmas) >= 0.01 * (1 - 1e-6) and max(sigmas) <= 40 * (1 + 1e-6)


def test_end_points_are_the_authors(endpoints: dict[str, torch.Tensor]) -> None:
    charges = endpoints["charges"].view(-1, 1, 4, 4).double()
    denoiser = Denoiser(ChargeField(charges), Parameterization("field"))
    end = integrate_adaptive(denoiser, endpoints["x_init"].double(), 40.0, 1e-3, 1e-4).flatten(1)
    expected = torch.cdist(endpoints["rk45"].flatten(1).double(), charges.flatten(1)).argmin(1)
    assert torch.equal(torch.cdist(end, charges.flatten(1)).argmin(1), expected)
    assert denoiser.nfe == pytest.approx(endpoints["rk45_nfe"].item(), abs=20)


def test_calls_are_counted_and_close_to_the_papers(digits: torch.Tensor) -> None:
    field, calls = ChargeField(digits), []
    field.register_forward_hook(lambda *_: calls.append(1))
    output = quiet(field, PoissonFlowScheduler())(64, tolerance=1e-3, generator=seeded(), output_type="pt")
    assert output.nfe == len(calls) and 60 < output.nfe < 160  # the paper: about 104


@pytest.mark.parametrize(
    "scheduler",
    [
        PoissonFlowScheduler(prediction_type="epsilon", aug_dim=None, sigma_data=0.5),
        PoissonFlowScheduler(prediction_type="v_prediction", aug_dim=None, beta_schedule="linear"),
        EDMEulerScheduler(),
    ],
    ids=lambda scheduler: f"{type(scheduler).__name__} {scheduler.config.prediction_type}",
)
def test_every_kind_of_network_is_integrated(scheduler: Any) -> None:
    parameterization = Parameterization("epsilon", sigma_data=0.5)
    if isinstance(scheduler, PoissonFlowScheduler):
        parameterization = scheduler.parameterization
    charges = torch.tensor([-0.7, 0.1, 0.6]).view(3, 1, 1, 1).expand(3, 1, 4, 4).contiguous()
    pipe = quiet(ExactNetwork(charges, parameterization), scheduler)
    adaptive, fixed = (
        pipe(16, generator=seeded(), output_type="pt", **options).images
        for options in ({"tolerance": 1e-4}, {"num_inference_steps": 300})
    )
    assert len(adaptive.flatten(1).mean(1).mul(10).round().unique()) == 3
    # A field line is determined by its initial point, which EDM's own scheduler draws with a norm 0.01 % larger.
    assert (adaptive - fixed).abs().max() < 0.02


def test_no_model_is_called_beyond_the_last_sigma() -> None:
    sigmas = []

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        sigmas.append(sigma.item())
        return x / (1 + sigma**2)

    x = torch.ones(1, 2, dtype=torch.float64)
    for ends in ((0.01, 40.0), (40.0, 0.01)):
        integrate_adaptive(denoise, x, *ends, 1e-3)
    assert min(sigmas) > 0.01 * (1 - 1e-9) and max(sigmas) < 40 * (1 + 1e-9)


def test_the_calls_of_a_rough_model_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusers_pfgm.solvers.adaptive.MAX_CALLS", 1_200)
    calls = []

    def rough(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        calls.append(sigma)
        return x + (1e4 * sigma.log()).sin() * sigma

    with pytest.raises(ValueError, match=r"has taken 1,200 calls of `model` between .* Raise `tolerance`, or pass"):
        integrate_adaptive(rough, torch.ones(1, 1, dtype=torch.float64), 1.0, 40.0, 1e-9)
    assert 1_190 < len(calls) <= 1_203


def test_a_run_may_end_at_sigma_min() -> None:
    charges = torch.zeros(1, 1, 2, 2)
    ends = []
    for final in ("zero", "sigma_min"):
        scheduler = PoissonFlowScheduler(sigma_min=0.5, final_sigmas_type=final, prediction_type="sample")
        pipe = quiet(ChargeField(charges, prediction_type="sample"), scheduler)
        ends.append(pipe(2, tolerance=1e-5, generator=seeded(), output_type="pt").images)
    assert torch.equal(ends[0], torch.full_like(ends[0], 0.5)) and not torch.allclose(ends[1], ends[0], atol=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.0}, "`tolerance` must be a finite number > 0, such as 1e-3, but is 0.0"),
        ({"tolerance": math.nan}, "but is nan"),
        (
            {"tolerance": 1e-3, "sigmas": [2.0, 1.0]},
            "lets the solver choose its steps, so leave out `sigmas`",
        ),
        ({"tolerance": 1e-3, "callback_on_step_end": print}, "`callback_on_step_end`"),
    ],
)
def test_bad_requests_are_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_tiny_pipeline()(**options)
