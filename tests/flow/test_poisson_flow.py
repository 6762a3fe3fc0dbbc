"""The invertible flow: its log-density equals that of charges in closed form, and decoding inverts encoding."""

import functools
import math
from typing import Any

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    UNet2DModel,
)
from scipy import stats

from diffusers_pfgm import (
    ChargeField,
    Parameterization,
    PoissonFlow,
    PoissonFlowScheduler,
    PoissonKernel,
    SuperResolution,
)
from diffusers_pfgm.inverse.measurement_guidance import GuidedByMeasurement
from diffusers_pfgm.pipelines.class_conditioning import GuidedModel
from tests.conftest import ExactNetwork, make_tiny_unet, seeded


def charges_in(dim: int, count: int = 7) -> torch.Tensor:
    return torch.rand(count, dim, generator=seeded(dim), dtype=torch.float64) * 2 - 1


def flow_of_charges(
    charges: torch.Tensor, aug_dim: float | None = 1.0, prediction_type: str = "field", **options: Any
) -> PoissonFlow:
    scheduler = PoissonFlowScheduler(aug_dim=aug_dim, prediction_type=prediction_type, **options)
    return PoissonFlow(ChargeField(charges, aug_dim, prediction_type), scheduler)


def density(x: torch.Tensor, charges: torch.Tensor, aug_dim: float | None, sigma: float) -> torch.Tensor:
    """The exact log-density of the flow of charges: log of the mean of their kernels."""
    kernels = [PoissonKernel(aug_dim).log_prob(x - charge, sigma) for charge in charges]
    return torch.stack(kernels).logsumexp(0) - math.log(len(charges))


def draw_points(charges: torch.Tensor, aug_dim: float | None, sigma: float, count: int, seed: int = 0) -> torch.Tensor:
    """Random points with the density of charges at σ."""
    noise = PoissonKernel(aug_dim).sample((count, *charges.shape[1:]), sigma, seeded(seed), dtype=torch.float64)
    return charges[torch.arange(count) % len(charges)] + noise


CASES = [(2, 1.0), (3, 2.5), (3, None), (16, 1.0), (16, 64.0), (65, None)]


@pytest.mark.parametrize(("dim", "aug_dim"), CASES)
def test_log_prob_equals_the_density_of_charges(dim: int, aug_dim: float | None) -> None:
    charges = charges_in(dim)
    x = draw_points(charges, aug_dim, 0.3, 4)
    expected = density(x, charges, aug_dim, 0.3)
    result = flow_of_charges(charges, aug_dim, sigma_min=0.3, sigma_max=5000.0).log_prob(x)
    error = (result.log_prob - expected).abs()
    assert error.max() < 3e-4 and (result.truncation >= error).all() and result.truncation.max() < 2e-3
    assert torch.equal(result.standard_error, torch.zeros(4))
    tight = flow_of_charges(charges, aug_dim, sigma_min=0.3, sigma_max=50000.0).log_prob(x, tolerance=1e-5)
    assert (tight.log_prob - expected).abs().max() < 1e-4 and tight.nfe > result.nfe > 20


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
def test_log_prob_with_other_prediction_types(prediction_type: str) -> None:
    charges = charges_in(4).view(7, 1, 2, 2)
    x = draw_points(charges, 1.0, 0.3, 4)
    result = flow_of_charges(charges, 1.0, prediction_type, sigma_min=0.3, sigma_max=5000.0).log_prob(x)
    assert (result.log_prob - density(x, charges, 1.0, 0.3)).abs().max() < 2e-3


@pytest.mark.parametrize(
    "parameterization", [Parameterization("epsilon", sigma_data=0.5), Parameterization("v_prediction")]
)
def test_log_prob_of_preconditioned_networks(parameterization: Parameterization) -> None:
    charges = charges_in(4).view(7, 1, 2, 2)
    options = {
        "prediction_type": parameterization.prediction_type,
        "sigma_data": parameterization.sigma_data,
        "aug_dim": None,
    }
    scheduler = PoissonFlowScheduler(sigma_min=0.3, sigma_max=5000.0, **options)
    x = draw_points(charges, None, 0.3, 2)
    result = PoissonFlow(ExactNetwork(charges, parameterization), scheduler).log_prob(x)
    assert (result.log_prob - density(x, charges, None, 0.3)).abs().max() < 2e-3


def test_fixed_steps_converge_to_the_density(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusers_pfgm.flow.poisson_flow.DENSITY_TOLERANCE", 3e-9)  # of the equations of fixed steps
    charges = charges_in(3)
    x = draw_points(charges, 1.0, 0.3, 8)
    flow = flow_of_charges(charges, sigma_min=0.3, sigma_max=5000.0)
    exact = density(x, charges, 1.0, 0.3)
    errors = [(flow.log_prob(x, num_inference_steps=n).log_prob - exact).abs().max() for n in (60, 120)]
    assert 3 < errors[0] / errors[1] < 6 and errors[1] < 0.01  # second order, beside a truncation of 2e-4


@pytest.mark.parametrize(("aug_dim", "sigma_max"), [(1.0, 40.0), (64.0, 40.0), (None, 40.0), (2.5, 10.0)])
def test_truncation_bounds_the_error_of_ending_at_sigma_max(aug_dim: float | None, sigma_max: float) -> None:
    charges = charges_in(3) + 0.5
    x = draw_points(charges, aug_dim, 0.3, 16)
    result = flow_of_charges(charges, aug_dim, sigma_min=0.3, sigma_max=sigma_max).log_prob(x, tolerance=1e-6)
    error = (result.log_prob - density(x, charges, aug_dim, 0.3)).abs()
    assert (error <= result.truncation).all() and (error > 1e-6).any()
    assert result.truncation.max() < 3 * 3 / sigma_max**2  # terms of second order, N + D = 4 and ‖y‖² of about 1


def outliers(charges: torch.Tensor, aug_dim: float | None, sigma: float) -> torch.Tensor:
    """Four random points with the density of charges, and four at 3, 5, 8 and 10 standard deviations from a charge."""
    dim = charges.shape[1]
    directions = torch.nn.functional.normalize(torch.randn(4, dim, generator=seeded(9), dtype=torch.float64), dim=1)
    distances = torch.tensor([3.0, 5.0, 8.0, 10.0], dtype=torch.float64).unsqueeze(1) * sigma * dim**0.5
    return torch.cat([draw_points(charges, aug_dim, sigma, 4), charges[:4] + directions * distances])


@pytest.mark.parametrize("aug_dim", [1.0, 5.0, 64.0, None])
@pytest.mark.parametrize("dim", [1, 2, 16])
def test_errors_are_within_the_tolerance_and_the_bound(dim: int, aug_dim: float | None) -> None:
    charges = charges_in(dim, 5)
    x = outliers(charges, aug_dim, 0.03)
    exact = density(x, charges, aug_dim, 0.03)
    flow = flow_of_charges(charges, aug_dim, sigma_min=0.03, sigma_max=5000.0)
    for tolerance in (3e-2, 3e-5) if dim < 16 else (3e-3,):
        result = flow.log_prob(x, tolerance=tolerance)
        error = (result.log_prob - exact).abs()
        assert (error <= tolerance).all() and (error <= result.truncation).all()
        assert result.truncation.max() < 10 * tolerance


class GaussianMixture(torch.nn.Module):
    """x̂ of a mixture of isotropic Gaussians at D = ∞."""

    def __init__(self, means: torch.Tensor, stds: torch.Tensor) -> None:
        super().__init__()
        self.means, self.stds, self.dtype = means, stds, means.dtype

    def log_parts(self, x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        variances = self.stds.square() + sigma**2
        squares = (x.unsqueeze(1) - self.means).square().sum(2)
        return -squares / (2 * variances) - x.shape[1] / 2 * (2 * math.pi * variances).log() - math.log(len(self.stds))

    def log_prob(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        return self.log_parts(x, sigma).logsumexp(1)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
        shares = self.log_parts(sample, timestep).softmax(1).unsqueeze(2)
        shrunk = (self.stds.square() / (self.stds.square() + timestep**2)).view(1, -1, 1)
        return ((shares * torch.lerp(self.means, sample.unsqueeze(1), shrunk)).sum(1),)


@pytest.mark.parametrize(("dim", "stds"), [(1, [0.5]), (2, [0.5]), (2, [0.02, 0.3, 0.1]), (3072, [0.5])])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_outliers_of_smooth_data(dim: int, stds: list[float], dtype: torch.dtype) -> None:
    # Isotropic, so that a single probe of ±1 gives the exact trace of one Gaussian.
    means = torch.randn(len(stds), dim, generator=seeded(dim), dtype=dtype) * (0.5 if len(stds) > 1 else 0.1)
    model = GaussianMixture(means, torch.tensor(stds, dtype=dtype))
    directions = torch.nn.functional.normalize(torch.randn(5, dim, generator=seeded(1), dtype=torch.float64), dim=1)
    deviations = torch.tensor([1.0, 3.0, 5.0, 8.0, 10.0], dtype=torch.float64).unsqueeze(1)
    x = means[-1].double() + directions * deviations * stds[-1] * (1.0 if dim < 3 else dim**0.5)
    exact = GaussianMixture(means.double(), model.stds.double()).log_prob(x, 0.002)
    options = {"aug_dim": None, "prediction_type": "sample", "sigma_min": 0.002, "sigma_max": 8000.0}
    flow = PoissonFlow(model, PoissonFlowScheduler(**options))
    for tolerance in (3e-2, 3e-4):
        result = flow.log_prob(x, None, "exact" if dim < 3 else "hutchinson", 1, seeded(), tolerance=tolerance)
        error = (result.log_prob - exact).abs()
        assert (error <= result.truncation).all()
        assert (error <= tolerance).all() or (dtype == torch.float32 and result.truncation.max() > tolerance)


@pytest.mark.parametrize(("method", "num_probes"), [("hutchinson", 10), ("hutch++", 30)])
def test_standard_error_of_random_divergences(method: str, num_probes: int) -> None:
    charges = charges_in(64, 20)
    x = draw_points(charges, None, 0.3, 200)
    flow = flow_of_charges(charges, None, sigma_min=0.3, sigma_max=5000.0)
    exact = flow.log_prob(x[:1]).log_prob
    result = flow.log_prob(x, None, method, num_probes, seeded(), tolerance=1e-3)
    error = result.log_prob - density(x, charges, None, 0.3)
    within = (error.abs() <= result.standard_error + result.truncation).double().mean()
    # With ten estimates Student's t (9 degrees of freedom) is within ± 1 in 66 % of cases; 200 points: ± 10 % is 3 σ.
    assert 0.56 <= within <= 0.76 and abs(error.mean()) < 3 * error.std() / 200**0.5
    assert abs(exact - result.log_prob[0]) < 5 * result.standard_error[0] + 0.05


def test_one_probe_has_no_standard_error() -> None:
    x = draw_points(charges_in(3), 1.0, 0.3, 2)
    flow = flow_of_charges(charges_in(3), sigma_min=0.3)
    assert flow.log_prob(x, divergence="hutchinson", generator=seeded()).standard_error is None


@pytest.mark.parametrize("aug_dim", [1.0, 2.5])
def test_density_integrates_to_one(aug_dim: float) -> None:
    # x = tan(u) maps the heavy tails to a finite interval.
    u = (torch.arange(400, dtype=torch.float64) + 0.5) * math.pi / 400 - math.pi / 2
    flow = flow_of_charges(charges_in(1), aug_dim, sigma_min=0.3, sigma_max=5000.0)
    density = flow.log_prob(u.tan().unsqueeze(1)).log_prob.exp()
    assert (density / u.cos().square()).mean() * math.pi == pytest.approx(1, abs=1e-3)


class SmoothNetwork(torch.nn.Module):
    """A random network, which is not the field of charges, and has no attributes `dtype` and `device`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(3, 16), torch.nn.Linear(16, 2)
        for number, weights in enumerate(self.parameters()):
            torch.nn.init.normal_(weights, 0.0, 0.2, generator=seeded(number))

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
        log_sigma = timestep.log().expand(len(sample), 1)
        return (self.last(self.first(torch.cat([sample, log_sigma.to(sample)], dim=1)).tanh()),)


def test_the_tolerance_is_in_nats_in_many_dimensions() -> None:
    charges = charges_in(150, 10)
    x = draw_points(charges, 1.0, 0.05, 1)
    result = flow_of_charges(charges, sigma_min=0.05, sigma_max=1e6).log_prob(x, tolerance=3e-2)
    error = (result.log_prob - density(x, charges, 1.0, 0.05)).abs()
    assert error < result.truncation < 3e-2


def test_the_density_of_an_untrained_network_integrates_to_one() -> None:
    scheduler = PoissonFlowScheduler(aug_dim=None, prediction_type="sample", sigma_min=0.5)
    flow = PoissonFlow(SmoothNetwork().double(), scheduler)
    u = ((torch.arange(80, dtype=torch.float64) + 0.5) / 80 - 0.5) * 16
    grid = torch.cartesian_prod(u, u)
    total = flow.log_prob(grid, tolerance=1e-6).log_prob.exp().sum() * (16 / 80) ** 2
    assert total == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("aug_dim", [1.0, 64.0, None])
def test_decoding_inverts_encoding_on_the_exact_field(aug_dim: float | None) -> None:
    charges = charges_in(16).view(7, 1, 4, 4)
    flow = flow_of_charges(charges, aug_dim, sigma_min=0.3)
    x = draw_points(charges, aug_dim, 0.3, 16)
    for options in ({"tolerance": 1e-10}, {"num_inference_steps": 60, "step_tolerance": 1e-10}):
        encoded = flow.encode(x, **options)
        decoded = flow.decode(encoded.latents, **options)
        assert (decoded.sample - x).norm() / x.norm() < 1e-6
        again = flow.encode(decoded.sample, **options).latents
        assert (again - encoded.latents).norm() / again.norm() < 1e-6
    assert encoded.nfe > 60 and decoded.sample.shape == x.shape


def test_decoding_inverts_encoding_of_a_network() -> None:
    unet = make_tiny_unet(out_channels=1)
    flow = PoissonFlow(unet, PoissonFlowScheduler(prediction_type="sample", max_norm=300.0))
    x = torch.rand(3, 1, 8, 8, generator=seeded()) * 2 - 1
    for options, bound in (({"step_tolerance": 1e-5}, 1e-3), ({"tolerance": 1e-6}, 1e-4)):
        latents = flow.encode(x, **options).latents
        assert latents.dtype == torch.float32 and latents.norm() > 40
        assert (flow.decode(latents, **options).sample - x).norm() / x.norm() < bound


def test_step_tolerance_is_at_least_the_precision_of_the_network() -> None:
    flow = PoissonFlow(make_tiny_unet(out_channels=1), PoissonFlowScheduler(prediction_type="sample", max_norm=300.0))
    x = torch.rand(3, 1, 8, 8, generator=seeded()) * 2 - 1
    latents = flow.encode(x, 20, step_tolerance=1e-12).latents
    assert (flow.decode(latents, 20, step_tolerance=1e-12).sample - x).norm() / x.norm() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_flow_of_any_module(dtype: torch.dtype) -> None:
    flow = PoissonFlow(SmoothNetwork().to(dtype), PoissonFlowScheduler(prediction_type="sample"))
    latents = flow.encode(torch.zeros(2, 2), 20).latents
    assert flow.decode(latents, 20).sample.abs().max() < 1e-4
    assert flow.sample((3, 2), 5, seeded()).sample.dtype == dtype
    assert flow.log_prob(torch.zeros(2, 2), tolerance=1e-3).log_prob.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64])
def test_latents_are_at_least_float32(dtype: torch.dtype) -> None:
    flow = flow_of_charges(charges_in(3), sigma_max=1e6)
    x = torch.ones(2, 3, dtype=dtype)
    latents = flow.encode(x).latents
    assert latents.dtype == flow.log_prob(x).latents.dtype == torch.float32
    assert latents.norm() > torch.finfo(torch.float16).max
    assert torch.allclose(flow.decode(latents).sample, torch.ones(2, 3), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_networks_need_few_calls(dtype: torch.dtype) -> None:
    unet = make_tiny_unet(out_channels=1).to(dtype)
    flow = PoissonFlow(unet, PoissonFlowScheduler(prediction_type="epsilon", sigma_data=0.5, sigma_max=100.0))
    for options in ({"tolerance": 1e-6}, {"num_inference_steps": 20}):
        result = flow.encode(torch.full((1, 1, 8, 8), 0.1), **options)
        assert result.latents.isfinite().all() and result.nfe < 300


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_latents_of_a_beta_schedule_are_at_its_last_timestep(spacing: str) -> None:
    charges, calls = charges_in(4), []
    scheduler = PoissonFlowScheduler(
        aug_dim=None, prediction_type="epsilon", beta_schedule="linear", timestep_spacing=spacing
    )
    network = ExactNetwork(charges, scheduler.parameterization, None)

    def model(sample: torch.Tensor, timestep: torch.Tensor) -> Any:
        calls.append((sample, timestep))
        return network(sample, timestep)

    flow = PoissonFlow(model, scheduler)
    latents = flow.encode(charges, tolerance=1e-3).latents
    calls.clear()
    assert torch.allclose(flow.sample(latents=latents).sample, charges, atol=1e-2)
    assert calls[0][1] == 999 and torch.allclose(calls[0][0], latents / math.hypot(1, flow.sigma_max))


def test_encoded_points_are_uniform_on_the_hemisphere() -> None:
    # Theorem 1 of PFGM, with fixed seeds.
    charges = charges_in(4)
    z = 2000.0
    x = draw_points(charges, 1.0, 0.3, 2000, seed=5)
    latents = flow_of_charges(charges, sigma_min=0.3, sigma_max=z).encode(x).latents
    points = torch.cat([latents, torch.full((2000, 1), z)], dim=1)
    points = points / points.norm(dim=1, keepdim=True)
    # For a coordinate u of a uniform point of the sphere in R^5, (1 + u) / 2 ~ Beta(2, 2); z is |u|.
    law = stats.beta(2, 2)
    for coordinate in points[:, :4].T:
        assert stats.kstest((1 + coordinate) / 2, law.cdf).pvalue > 0.01
    assert stats.kstest(points[:, 4], lambda u: 2 * law.cdf((1 + u) / 2) - 1).pvalue > 0.01
    rotated = (points[:, 0] + points[:, 1]) / math.sqrt(2)
    assert stats.kstest((1 + rotated) / 2, law.cdf).pvalue > 0.01
    cosines = (points[:1000] * points[1000:])[:, :4].sum(1) / (
        points[:1000, :4].norm(dim=1) * points[1000:, :4].norm(dim=1)
    )
    assert stats.kstest((1 + cosines) / 2, stats.beta(1.5, 1.5).cdf).pvalue > 0.01


def test_samples_equal_a_run_of_the_scheduler(digits: torch.Tensor) -> None:
    flow = flow_of_charges(digits[:50])
    scheduler = flow.scheduler
    scheduler.set_timesteps(12)
    x = latents = scheduler.sample_prior((4, 1, 8, 8), seeded(), dtype=torch.float64)
    for timestep in scheduler.timesteps:
        x = scheduler.step(flow.model(x, timestep).sample, timestep, x).prev_sample
    output = flow.sample((4, 1, 8, 8), 12, seeded())
    assert torch.equal(output.sample, x) and output.nfe == 12
    assert torch.equal(flow.sample(latents=latents, num_inference_steps=12).sample, x)


def test_class_labels_are_passed_to_the_model() -> None:
    charges = torch.stack([torch.full((1, 2, 2), -0.5), torch.full((1, 2, 2), 0.5)]).double()
    parameterization = Parameterization("sample")
    network = ExactNetwork(charges, parameterization, 1.0, torch.tensor([0, 1]))
    flow = PoissonFlow(network, PoissonFlowScheduler(prediction_type="sample", sigma_min=0.1, sigma_max=2000.0))
    x = draw_points(charges, 1.0, 0.1, 2)
    log_prob = flow.log_prob(x, class_labels=torch.tensor([0, 0])).log_prob
    expected = PoissonKernel(1.0).log_prob(x - charges[0], 0.1)
    assert (log_prob - expected).abs().max() < 5e-3 and log_prob[0] > log_prob[1]
    swapped = flow.sample(
        latents=flow.encode(x[:1], class_labels=torch.tensor([0])).latents, class_labels=torch.ones(1)
    )
    assert torch.allclose(swapped.sample, charges[1:])


def test_large_batches_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = flow_of_charges(charges_in(3), sigma_min=0.3)
    x = draw_points(charges_in(3), 1.0, 0.3, 10)
    generators = [seeded(number) for number in range(10)]
    monkeypatch.setattr("diffusers_pfgm.flow.poisson_flow.DENSITY_TOLERANCE", 3e-12)  # of the equations of fixed steps
    whole = flow.log_prob(x, 20, "hutchinson", 2, generators)
    monkeypatch.setattr("diffusers_pfgm.flow.poisson_flow.GRAPH_NUMBERS", 9)
    generators = [seeded(number) for number in range(10)]
    parts = flow.log_prob(x, 20, "hutchinson", 2, generators)
    assert torch.allclose(parts.log_prob, whole.log_prob, rtol=1e-9) and parts.latents.shape == (10, 3)


def test_divergence_at_one_noise_level() -> None:
    flow = flow_of_charges(charges_in(5), sigma_min=0.1)
    x = draw_points(charges_in(5), 1.0, 0.5, 3)
    exact = flow.divergence(x, 0.5)
    estimates = flow.divergence(x, 0.5, "hutchinson", 2000, seeded())
    assert exact.shape == (3, 1) and estimates.shape == (3, 2000)
    assert ((estimates.mean(1) - exact[:, 0]).abs() < 3 * estimates.std(1) / 2000**0.5).all()
    # For one charge y, dx/dσ = (x − y)/σ.
    assert torch.allclose(flow_of_charges(torch.zeros(1, 5)).divergence(x, 0.5), torch.full((3, 1), 10.0).double())


def test_log_prob_works_in_inference_mode() -> None:
    flow = flow_of_charges(charges_in(3), sigma_min=0.3)
    with torch.inference_mode():
        inference_flow = flow_of_charges(charges_in(3), sigma_min=0.3)  # its tensors are inference tensors
        x = torch.ones(2, 3, dtype=torch.float64)
        log_prob = inference_flow.log_prob(x, divergence="hutchinson", generator=seeded()).log_prob
        divergence = inference_flow.divergence(x, 1.0)
    x = torch.ones(2, 3, dtype=torch.float64)
    assert torch.equal(log_prob, flow.log_prob(x, divergence="hutchinson", generator=seeded()).log_prob)
    assert torch.equal(divergence, flow.divergence(x, 1.0))


def test_classes_work_in_inference_mode() -> None:
    flow = PoissonFlow(
        make_tiny_unet(out_channels=1, num_class_embeds=3), PoissonFlowScheduler(prediction_type="sample")
    )
    x = torch.zeros(2, 1, 8, 8)
    log_probs = []
    for mode in (False, True):
        with torch.inference_mode(mode):
            labels = torch.tensor([0, 2])
            options = {"divergence": "hutchinson", "generator": seeded(), "class_labels": labels}
            log_probs.append(flow.log_prob(x, 5, **options).log_prob)
            flow.divergence(x, 1.0, **options)
    assert torch.equal(*log_probs)


def without_dtype(network: Any) -> Any:
    """The network as a function without an attribute `dtype`."""
    return lambda sample, timestep: network(sample, timestep)


@pytest.mark.parametrize(
    "wrap", [without_dtype, functools.partial, lambda network: network.forward, torch.nn.DataParallel]
)
def test_wrapped_models_are_called_in_their_dtype(wrap: Any) -> None:
    network = SmoothNetwork()
    network.first.register_forward_pre_hook(lambda module, inputs: dtypes.add(inputs[0].dtype))
    scheduler, x, dtypes = PoissonFlowScheduler(prediction_type="sample"), torch.zeros(2, 2), set()
    for options in ({"num_inference_steps": 20, "step_tolerance": 1e-4}, {"tolerance": 1e-4}):
        latents = PoissonFlow(wrap(network), scheduler).encode(x, **options).latents
        assert torch.equal(latents, PoissonFlow(network, scheduler).encode(x, **options).latents)
    PoissonFlow(wrap(network), scheduler).log_prob(x, 5)
    assert dtypes == {torch.float32}


def test_densities_of_float16_networks_at_large_sigma() -> None:
    class Point(torch.nn.Module):
        """One charge at 0, predicted as "epsilon" x/σ. Only the factor σ of gradients exceeds the range of float16."""

        dtype = torch.float16

        def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
            return ((sample.float() / timestep).half(),)

    options = {"prediction_type": "epsilon", "aug_dim": None, "sigma_min": 0.5, "sigma_max": 1e5}
    flow = PoissonFlow(Point(), PoissonFlowScheduler(**options))
    x = torch.tensor([[0.15, -0.1]])
    expected = PoissonKernel(None).log_prob(x.double(), 0.5)
    for steps in (None, 100):
        assert (flow.log_prob(x, steps).log_prob - expected).abs() < 0.02


@pytest.mark.parametrize(
    "scheduler",
    [
        DDPMScheduler(),
        EulerAncestralDiscreteScheduler(),
        DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
        EDMDPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
    ],
)
def test_log_prob_of_stochastic_schedulers_raises(scheduler: Any) -> None:
    flow = PoissonFlow(make_tiny_unet(out_channels=1), scheduler)
    with pytest.raises(ValueError, match="adds noise at every step, so data and prior have no one-to-one map"):
        flow.log_prob(torch.zeros(1, 1, 8, 8))


def test_log_prob_of_guided_models_raises() -> None:
    unet, parameterization = make_tiny_unet(), Parameterization()
    by_class = GuidedModel(unet, parameterization, torch.zeros(1, dtype=torch.int64), 10, 2.0)
    by_measurement = GuidedByMeasurement(unet, parameterization, SuperResolution(2), torch.zeros(1, 1, 4, 4), 0.1)
    for guided in (by_class, by_measurement):
        with pytest.raises(
            ValueError,
            match=rf"`model` \({type(guided).__name__}\) is guided.*likelihood of the model.*Set `guidance_scale=1`",
        ) as error:
            PoissonFlow(guided, PoissonFlowScheduler()).log_prob(torch.zeros(1, 1, 8, 8))
        with pytest.raises(ValueError) as divergence_error:
            PoissonFlow(guided, PoissonFlowScheduler()).divergence(torch.zeros(1, 1, 8, 8), 1.0)
        assert str(divergence_error.value) == str(error.value)


def test_invalid_arguments_raise() -> None:
    flow = flow_of_charges(charges_in(3))
    x = torch.zeros(2, 3, dtype=torch.float64)
    x[1, 2] = math.nan
    for call in (flow.encode, flow.log_prob, lambda x: flow.divergence(x, 1.0)):
        with pytest.raises(ValueError, match="`x` must be finite, but index 1 holds NaN"):
            call(x)
    with pytest.raises(ValueError, match="`latents` must be finite"):
        flow.decode(x)
    for options in ({}, {"shape": (2, 3), "latents": torch.ones(2, 3)}):
        with pytest.raises(ValueError, match="Pass either the `shape`"):
            flow.sample(**options)
    for call in (flow.encode, flow.log_prob, lambda x: flow.divergence(x, 1.0)):
        with pytest.raises(
            ValueError, match=r"`x` must have the shape \(B, \*\) of one point or more, but has \(0, 3\)"
        ):
            call(torch.zeros(0, 3))
        with pytest.raises(ValueError, match=r"but has \(3,\). A single point \(N,\) is `x.unsqueeze\(0\)`"):
            call(torch.zeros(3))
    x = torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"`num_inference_steps` must be a whole number >= 1, but is 0"):
        flow.encode(x, 0)
    with pytest.raises(ValueError, match="`tolerance` must be a finite number > 0"):
        flow.decode(x, 10, tolerance=0.0)
    with pytest.raises(ValueError, match="`num_probes` must be a whole number >= 1, but is 0"):
        flow.log_prob(x, divergence="hutchinson", num_probes=0)
    with pytest.raises(ValueError, match=r"`sigma` must be a noise level of the model, from 0.01 to 40, but is 41"):
        flow.divergence(x, 41.0)
    with pytest.raises(ValueError, match=r"`aug_dim` is 1.0 of the field, but 64.0 of the scheduler"):
        PoissonFlow(flow.model, PoissonFlowScheduler(aug_dim=64.0))
    zero_snr = PoissonFlowScheduler(beta_schedule="linear", rescale_betas_zero_snr=True, prediction_type="sample")
    with pytest.raises(ValueError, match="begins at infinite sigma"):
        PoissonFlow(torch.nn.Identity(), zero_snr)


def test_a_network_that_returns_nan_raises() -> None:
    class Broken(UNet2DModel):
        def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
            return (torch.full_like(sample, math.nan),)

    flow = PoissonFlow(Broken(**make_tiny_unet().config), PoissonFlowScheduler(prediction_type="sample"))
    with pytest.raises(ValueError, match="`model` gives NaN or infinity at sigma"):
        flow.encode(torch.zeros(1, 1, 8, 8), 3)
