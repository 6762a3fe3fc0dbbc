"""The package runs on an emulated MPS device: without float64, missing functions or generators of another device."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from diffusers_pfgm import (
    Blur,
    ChargeField,
    Charges,
    ClassCharges,
    CompressedSensing,
    DistributionMatchingObjective,
    FieldObjective,
    HemisphereLatents,
    Inpainting,
    Parameterization,
    PerturbationObjective,
    PFGMEditingPipeline,
    PFGMInversePipeline,
    PFGMLikelihoodPipeline,
    PFGMPipeline,
    PoissonFlow,
    PoissonFlowScheduler,
    PoissonKernel,
    SuperResolution,
    normalized_field,
    perturb,
    posterior_mean,
    recommend_hyperparameters,
)
from diffusers_pfgm.metrics.sliced_wasserstein import sliced_wasserstein
from diffusers_pfgm.physics import hemisphere_points, interpolate, with_temperature
from diffusers_pfgm.physics.denoiser import Denoiser
from diffusers_pfgm.physics.tensors import to_tensor
from diffusers_pfgm.plots import AngleLaw
from diffusers_pfgm.plots.animation import even_moments, plot_moment
from diffusers_pfgm.schedulers import fit_sigmas as fitting
from tests.networks import make_tiny_unet, seeded
from tests.physics.mps_policy import MPS, MPSGenerator, MPSPolicy, transfers

CHARGES = torch.rand(10, 1, 8, 8, generator=seeded(), dtype=torch.float64) * 2 - 1
MASK = torch.rand(8, 8, generator=seeded(1)) < 0.5


@pytest.fixture(autouse=True)
def policy() -> Iterator[None]:
    with MPSPolicy():
        yield


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def mps(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=seeded()).to(MPS)


def test_the_policy_refuses_what_mps_lacks() -> None:
    x = mps(3, 4)
    refused: list[Callable[[], Any]] = [
        x.double,
        lambda: x.to("cpu", torch.float64),
        lambda: torch.ones(2, dtype=torch.float64).to(MPS),
        lambda: torch.ones(2, dtype=torch.float64, device=MPS),
        lambda: torch.linalg.qr(x),
        lambda: torch.take(x, torch.zeros(1, dtype=torch.long).to(MPS)),
        lambda: torch._standard_gamma(x),
        lambda: x + torch.ones(3, 4),
        lambda: torch.randn(3, generator=MPSGenerator()),
        lambda: torch.randn(3, generator=seeded(), device=MPS),
    ]
    for call in refused:
        with pytest.raises((TypeError, NotImplementedError, RuntimeError), match=r"MPS|mps|same device"):
            call()
    assert (x * 2 + 1.0).device == MPS and torch.allclose(
        x.cpu().double(), torch.randn(3, 4, generator=seeded()).double()
    )


def test_the_policy_counts_what_waits_for_the_device() -> None:
    x, mask = mps(3, 4), torch.tensor([True, False, True])
    waiting: list[Callable[[], Any]] = [
        x.sum().item,
        x.tolist,
        x.cpu,
        lambda: torch.ones(3).to(MPS),
        lambda: x.copy_(torch.ones(3, 4)),
        lambda: x[mask.to(MPS)],
        lambda: torch.as_tensor(2.0, device=MPS),
    ]
    for call in waiting:
        before = len(transfers)
        call()
        assert len(transfers) > before
    before = len(transfers)
    (x * 2 + x[1:2]).clone()
    to_tensor(2.0, torch.float32, MPS)
    assert len(transfers) == before


@pytest.mark.parametrize("aug_dim", [0.5, 1.0, None])
def test_draws_are_those_of_the_cpu(aug_dim: float | None) -> None:
    kernel = PoissonKernel(aug_dim)
    noise, expected = (kernel.sample((3, 2, 4), torch.ones(3), seeded(), device) for device in (MPS, "cpu"))
    assert noise.device == MPS and torch.equal(noise.cpu(), expected)
    assert torch.allclose(kernel.log_prob(noise, 2.0).cpu(), kernel.log_prob(expected, 2.0), rtol=1e-4)
    assert kernel.sample((3, 4), 2.0, None, MPS, max_norm=1e6).device == MPS


def test_a_generator_of_mps_seeds_the_cpu_and_advances() -> None:
    def draws() -> tuple[torch.Tensor, torch.Tensor]:
        generator, kernel = MPSGenerator().manual_seed(3), PoissonKernel(1.0)
        return tuple(kernel.sample((2, 5), 1.0, generator, MPS).cpu() for _ in range(2))

    first, second = draws()
    again = draws()
    assert not torch.equal(first, second) and torch.equal(first, again[0]) and torch.equal(second, again[1])
    assert PoissonKernel(1.0).sample((2, 5), 1.0, [MPSGenerator(), MPSGenerator()], MPS).device == MPS


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"aug_dim": 4.0, "prediction_type": "epsilon", "sigma_data": 0.5},
        {"aug_dim": None, "prediction_type": "v_prediction", "beta_schedule": "linear"},
    ],
)
def test_scheduler(config: dict[str, Any]) -> None:
    scheduler = PoissonFlowScheduler(**config)
    scheduler.set_timesteps(5, device=MPS)
    x = scheduler.sample_prior((2, 1, 8, 8), None, MPS)
    for t in scheduler.timesteps:
        output = torch.tanh(scheduler.scale_model_input(x, t))
        if scheduler.config.prediction_type == "field":
            output = torch.cat([output, -torch.ones_like(output)], dim=1)
        x = scheduler.step(output, t, x).prev_sample
    assert x.device == MPS
    scheduler.add_noise(x, scheduler.sample_noise(x.shape, None, MPS), scheduler.timesteps[:2])
    scheduler.set_timesteps(timesteps=scheduler.timesteps, device=MPS)
    scheduler.set_timesteps(sigmas=torch.tensor([3.0, 2.0, 1.0], device=MPS), device=MPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("prediction_type", ["field", "sample", "epsilon"])
def test_charge_field_moves_to_mps_and_back(dtype: torch.dtype, prediction_type: str) -> None:
    x = torch.randn(2, 1, 8, 8, generator=seeded())
    on_cpu = ChargeField(CHARGES.to(dtype), prediction_type=prediction_type)
    on_mps = ChargeField(CHARGES.to(dtype), prediction_type=prediction_type).to(MPS)
    assert on_mps.dtype == torch.float32 and on_mps.device == MPS
    for sigma in (2.0, torch.tensor(2.0, dtype=torch.float64), torch.tensor(2.0).to(MPS)):
        assert torch.allclose(on_mps(x.to(MPS), sigma).sample.cpu(), on_cpu(x, 2.0).sample, atol=1e-4)
    assert torch.allclose(on_mps.to("cpu")(x, 2.0).sample, on_cpu(x, 2.0).sample, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"generator": MPSGenerator()}, {"generator": seeded()}, {"tolerance": 0.1}])
def test_pipeline(options: dict[str, Any]) -> None:
    pipe = quiet(PFGMPipeline(ChargeField(CHARGES).to(MPS), PoissonFlowScheduler()))
    steps = {} if "tolerance" in options else {"num_inference_steps": 4}
    assert len(pipe(batch_size=2, **steps, **options).images) == 2


@pytest.mark.parametrize("beta_schedule", [None, "linear"])
def test_pipeline_of_a_network(beta_schedule: str | None) -> None:
    kind = "epsilon" if beta_schedule else "field"
    scheduler = PoissonFlowScheduler(None if beta_schedule else 1.0, prediction_type=kind, beta_schedule=beta_schedule)
    network = make_tiny_unet(1, 1 if beta_schedule else 2).to(MPS)
    assert quiet(PFGMPipeline(network, scheduler))(num_inference_steps=3, output_type="np").images.shape == (1, 8, 8, 1)


def test_images_of_float64() -> None:
    # NumPy divides bytes to float64, which must become float32 before it is moved.
    images = np.arange(128).reshape(2, 8, 8, 1) / 255
    components = {"unet": ChargeField(CHARGES).to(MPS), "scheduler": PoissonFlowScheduler(sigma_min=0.5)}
    editing = quiet(PFGMEditingPipeline(**components))
    latents = editing.encode(images, num_inference_steps=4).latents
    assert latents.device == MPS and latents.dtype == torch.float32
    assert len(editing.decode(CHARGES[:2] * 40, num_inference_steps=4, output_type="np").images) == 2
    likelihood = quiet(PFGMLikelihoodPipeline(**components))
    assert likelihood(images, num_inference_steps=2, step_tolerance=1e-3).log_prob.shape == (2,)


def test_objectives() -> None:
    clean, labels = CHARGES.float().to(MPS), torch.arange(10) % 2
    field = FieldObjective(recommend_hyperparameters(3.0, 64))
    network = make_tiny_unet(num_class_embeds=3).to(MPS)
    for charges in (None, ClassCharges(clean, labels)):
        output = field(network, clean[:4], charges, seeded(), class_labels=labels[:4].to(MPS))
        output.loss.backward()
    field(make_tiny_unet().to(MPS), clean[:4], Charges(clean), MPSGenerator())
    perturbation = PerturbationObjective(Parameterization("epsilon", sigma_data=0.5), aug_dim=2.0)
    output = perturbation(make_tiny_unet(1, 1).to(MPS), clean[:4], MPSGenerator())
    output.loss.backward()
    assert output.bands()


@pytest.mark.parametrize("aug_dim", [1.0, None])
def test_distribution_matching(aug_dim: float | None) -> None:
    teacher = Denoiser(make_tiny_unet(1, 1).to(MPS), Parameterization("epsilon", sigma_data=0.5))
    objective = DistributionMatchingObjective(
        Parameterization("epsilon", sigma_data=0.5, boundary=0.05),
        teacher.parameterization,
        lambda x, sigma, class_labels: teacher(x, sigma),
        [80.0, 0.8],
        0.5,
        aug_dim,
    )
    critic = make_tiny_unet(1, 1, num_class_embeds=2).to(MPS)
    output = objective(make_tiny_unet(1, 1).to(MPS), CHARGES.float().to(MPS)[:4], MPSGenerator(), critic=critic)
    output.loss.backward()
    assert output.bands()


def test_field_of_charges() -> None:
    x, charges = mps(3, 64), CHARGES.flatten(1).float()
    sigmas = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    for function in (posterior_mean, normalized_field):
        assert torch.allclose(function(x, sigmas, charges.to(MPS)).cpu(), function(x.cpu(), sigmas, charges), atol=1e-4)
    perturbed, z = perturb(CHARGES.float().to(MPS), recommend_hyperparameters(3.0, 64), generator=MPSGenerator())
    assert perturbed.device == z.device == MPS


FLOWS: dict[str, Callable[[PoissonFlow, torch.Tensor], Any]] = {
    "encode": lambda flow, x: flow.encode(x, 10, tolerance=1e-4),
    "encode, adaptive": lambda flow, x: flow.encode(x, tolerance=1e-3),
    "log_prob": lambda flow, x: flow.log_prob(x, num_inference_steps=4),
    "log_prob, hutch++": lambda flow, x: flow.log_prob(x, tolerance=10.0, divergence="hutch++", num_probes=3),
    "divergence": lambda flow, x: flow.divergence(x, 2.0, "hutch++", 6),
    "fit_sigmas": lambda flow, x: fitting.fit_sigmas(flow.model, flow.scheduler, (1, 2, 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOWS)
def test_flow(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "FINE_STEPS", 20)
    # Few steps at the tolerance of 10.
    monkeypatch.setattr("diffusers_pfgm.solvers.adaptive.MAX_STEP_ERROR", 10.0)
    monkeypatch.setattr("diffusers_pfgm.solvers.adaptive.FIRST_STEP", 1.0)
    flow = PoissonFlow(ChargeField(CHARGES[..., :2, :2]).to(MPS), PoissonFlowScheduler(sigma_min=0.5, sigma_max=50.0))
    FLOWS[name](flow, mps(2, 1, 2, 2))


MEASURES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "inpainting": Inpainting(MASK.double()),
    "super-resolution": SuperResolution(2),
    "blur": Blur(torch.ones(3, 3, dtype=torch.float64) / 9),
    "compressed sensing": CompressedSensing((1, 8, 8), 10),
    "function": torch.tanh,
    "complex": torch.fft.fft2,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURES)
def test_inverse_problems(name: str) -> None:
    measure = MEASURES[name]
    pipe = quiet(PFGMInversePipeline(ChargeField(CHARGES).to(MPS), PoissonFlowScheduler()))
    y = measure(CHARGES[:2].float())
    generators = [MPSGenerator(), MPSGenerator()]
    for method in ("guidance", "latent") if name == "inpainting" else ("guidance",):
        samples = pipe(y, measure, 0.3, method, num_inference_steps=4, num_sweeps=1, generator=generators).samples
        assert samples.device == MPS


def test_latents_on_the_hemisphere() -> None:
    first, second = (HemisphereLatents.from_latents(mps(3, 1, 4, 4) + shift) for shift in (1.0, 2.0))
    path = interpolate(first, second, torch.linspace(0, 1, 3, dtype=torch.float64))
    assert hemisphere_points(with_temperature(path, 0.5, first.direction[0]), 40.0).device == MPS


def test_figures() -> None:
    lines = even_moments(mps(5, 4, 3), 3)
    plot_moment(lines[1].to(MPS), lines.to(MPS), mps(2, 2))
    assert AngleLaw(0.0, 1.0, 0.0).density(torch.tensor([0.5]).to(MPS)).dtype == torch.float64
    assert sliced_wasserstein(mps(20, 4), mps(20, 4)) == 0
