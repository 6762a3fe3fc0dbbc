"""The perturbation objective has the minimum that the theory predicts, and is bounded at small D."""

import math

import pytest
import torch

from diffusers_pfgm import (
    ChargeField,
    Parameterization,
    PerturbationObjective,
    PoissonFlowScheduler,
    PoissonKernel,
)
from diffusers_pfgm.physics.field import FieldOutput
from tests.networks import ExactNetwork, make_tiny_unet, seeded


class Recorder:
    """A network whose output is 0, and which keeps its last input."""

    def __call__(self, x: torch.Tensor, timestep: torch.Tensor) -> FieldOutput:
        self.x = x
        return FieldOutput(torch.zeros_like(x))


@pytest.mark.parametrize("aug_dim", [2.5, 64.0, math.inf])
@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
def test_the_posterior_mean_minimises_the_perturbation_loss(
    digits: torch.Tensor, aug_dim: float, prediction_type: str
) -> None:
    data = digits[:50].float()
    field = ChargeField(data, aug_dim, prediction_type)
    objective = PerturbationObjective(Parameterization(prediction_type), aug_dim, p_mean=0.0)
    batch = data.repeat(40, 1, 1, 1)

    def loss(scale: float, shift: float) -> float:
        def changed(x: torch.Tensor, sigma: torch.Tensor) -> FieldOutput:
            return FieldOutput(scale * field(x, sigma).sample + shift)

        return objective(changed, batch, seeded()).loss.item()

    minimum = loss(1.0, 0.0)
    assert all(loss(*other) > minimum for other in [(0.9, 0.0), (1.1, 0.0), (1.0, 0.1), (1.0, -0.1)])


@pytest.mark.parametrize("aug_dim", [1.0, 64.0, None])
@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction"])
def test_perturbation_trains_a_preconditioned_network(
    digits: torch.Tensor, aug_dim: float | None, prediction_type: str
) -> None:
    unet = make_tiny_unet(out_channels=1)
    objective = PerturbationObjective(Parameterization(prediction_type, sigma_data=0.7), aug_dim)
    result = objective(unet, digits[:8].float(), [seeded(i) for i in range(8)])
    result.loss.backward()
    assert result.loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in unet.parameters())


def test_sigma_is_log_normal_as_in_edm() -> None:
    clean = torch.zeros(40_000, 1, 1)
    result = PerturbationObjective(Parameterization("sample"))(lambda x, _: FieldOutput(x), clean, seeded())
    log_sigma = result.sigma.log()
    assert log_sigma.mean().item() == pytest.approx(-1.2, abs=0.03)
    assert log_sigma.std().item() == pytest.approx(1.2, abs=0.03)


@pytest.mark.parametrize("aug_dim", [1.0, None])
def test_a_preconditioned_network_has_the_inputs_of_the_scheduler(digits: torch.Tensor, aug_dim: float | None) -> None:
    clean, inputs = digits[:16].float(), []
    parameterization = Parameterization("epsilon", sigma_data=0.7)

    def record(x: torch.Tensor, timestep: torch.Tensor, class_labels: int) -> FieldOutput:
        inputs.append((x, timestep, class_labels))
        return FieldOutput(torch.zeros_like(x))

    generators = [seeded(i) for i in range(16)]
    result = PerturbationObjective(parameterization, aug_dim)(record, clean, generators, class_labels=3)
    x, timestep, class_labels = inputs[0]
    sigma = result.sigma.view(-1, 1, 1, 1)
    assert class_labels == 3 and torch.allclose(timestep, result.sigma.log() / 4)
    noisy = x * (sigma**2 + 0.7**2).sqrt()
    expected = parameterization.target(clean, noisy, sigma).flatten(1).square().mean(1)
    assert torch.allclose(result.per_sample, expected, rtol=1e-3)


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction"])
def test_the_exact_network_of_the_ddpm_family_has_no_loss(digits: torch.Tensor, prediction_type: str) -> None:
    scheduler = PoissonFlowScheduler(None, prediction_type=prediction_type, beta_schedule="linear")
    parameterization, charge = scheduler.parameterization, digits[:1]
    network = ExactNetwork(charge, parameterization)  # for a single charge x̂ is that charge
    objective = PerturbationObjective(parameterization, None)
    loss = objective(network, charge.expand(16, -1, -1, -1), seeded()).loss
    # Where σ is below that of the first timestep, the network is called at the first timestep, with an error.
    assert loss < 1e-3 < objective(lambda x, t: FieldOutput(x), charge, seeded()).loss


def test_a_seed_makes_the_perturbation_loss_repeatable_without_the_global_generator(digits: torch.Tensor) -> None:
    data, before = digits[:16].float(), torch.get_rng_state()
    objective = PerturbationObjective(Parameterization("epsilon"))
    losses = [objective(make_tiny_unet(out_channels=1), data, seeded(3)).loss for _ in range(2)]
    assert torch.equal(*losses) and torch.equal(before, torch.get_rng_state())


def test_the_gradient_of_a_float64_network_is_not_rounded_to_float32(digits: torch.Tensor) -> None:
    clean = digits[:4].double()
    objective = PerturbationObjective(Parameterization("sample", sigma_data=0.5))

    def loss(scale: torch.Tensor) -> torch.Tensor:
        return objective(lambda x, t: FieldOutput(scale * x), clean, seeded()).loss

    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, scale, atol=0, rtol=1e-7)  # the loss is quadratic in the scale


def test_a_network_with_one_channel_too_many_is_refused(digits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"must have the shape \(4, 1, 8, 8\)"):
        PerturbationObjective(Parameterization("epsilon"))(make_tiny_unet(out_channels=2), digits[:4].float(), seeded())


@pytest.mark.parametrize("aug_dim", [0.01, 0.2, 1.0])
def test_float16_training_is_stable_at_small_aug_dim(digits: torch.Tensor, aug_dim: float) -> None:
    """Float16 skips steps whose scaled gradients overflow: at D = ∞ the first of 70, until the scale has decreased."""
    batches = digits.float().split(16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = torch.nn.Sequential(torch.nn.Linear(65, 128), torch.nn.SiLU(), torch.nn.Linear(128, 64))

    def network(x: torch.Tensor, timestep: torch.Tensor) -> FieldOutput:
        return FieldOutput(layers(torch.cat([x.flatten(1), timestep.view(-1, 1)], dim=1)).view_as(x))

    optimizer = torch.optim.AdamW(layers.parameters(), lr=1e-3)
    objective = PerturbationObjective(Parameterization("epsilon", sigma_data=0.5), aug_dim)
    scaler, generator = torch.amp.GradScaler("cpu"), seeded()
    for step in range(70):
        with torch.autocast("cpu", torch.float16):
            loss = objective(network, batches[step], generator).loss
        assert loss.item() < 16.0  # 16 = 4² is the largest mean square of the target
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert scaler.get_scale() >= 2**14 and all(weight.isfinite().all() for weight in layers.parameters())


@pytest.mark.parametrize("aug_dim", [0.01, 0.2, 1.0, 2.5])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_inputs_and_targets_are_bounded_at_small_aug_dim(
    digits: torch.Tensor, aug_dim: float, prediction_type: str
) -> None:
    clean, network = digits[:1000].float(), Recorder()
    parameterization = Parameterization(prediction_type, sigma_data=0.5)
    result = PerturbationObjective(parameterization, aug_dim)(network, clean, seeded())
    # The root mean square of the noise is at most 4 σ, that of a digit at most 1.
    assert network.x.flatten(1).square().mean(1).max().sqrt() <= 4 + 1 / 0.5
    assert result.per_sample.max().sqrt() <= 4 + 1 / 0.5


def test_the_noise_of_diffusion_is_not_limited(digits: torch.Tensor) -> None:
    clean, network = digits[:16].float(), Recorder()
    result = PerturbationObjective(Parameterization("sample"), None)(network, clean, seeded(5))
    generator = seeded(5)
    sigma = (-1.2 + 1.2 * torch.randn(16, generator=generator)).exp()
    noise = torch.randn(clean.shape, generator=generator)
    assert torch.equal(result.sigma, sigma) and torch.equal(network.x, clean + sigma.view(-1, 1, 1, 1) * noise)


def test_the_prior_has_the_norms_of_the_training_noise() -> None:
    objective = PerturbationObjective(Parameterization("epsilon", sigma_data=0.5), 1.0)
    limit = objective.max_norm(80.0, 64)
    clean, noise = torch.zeros(4000, 64), []

    def record(x: torch.Tensor, timestep: torch.Tensor) -> FieldOutput:
        sigma = torch.exp(4 * timestep.view(-1, 1))
        noise.append(x * (sigma**2 + 0.25).sqrt() / sigma)
        return FieldOutput(torch.zeros_like(x))

    objective(record, clean, seeded())
    scheduler = PoissonFlowScheduler(1.0, sigma_max=80.0, prediction_type="epsilon", sigma_data=0.5, max_norm=limit)
    prior = scheduler.sample_prior((4000, 64), seeded(1)) / 80
    quantiles = torch.tensor([0.1, 0.5, 0.9, 1.0])
    trained, drawn = (x.norm(dim=1).quantile(quantiles) for x in (noise[0], prior))
    assert torch.allclose(trained, drawn, rtol=0.1) and limit == pytest.approx(80 * 8 * 4)
    assert PerturbationObjective(Parameterization("epsilon"), None).max_norm(80.0, 64) is None


def test_an_aug_dim_that_cannot_train_is_refused() -> None:
    for aug_dim in (1e-3, 1e-300):
        with pytest.raises(ValueError, match=r"`aug_dim` = .* is too small to train: it must be at least 0\.01"):
            PerturbationObjective(Parameterization("epsilon"), aug_dim)


def test_without_a_bound_the_noise_is_that_of_the_kernel(digits: torch.Tensor) -> None:
    clean, network = digits[:64].float(), Recorder()
    objective = PerturbationObjective(Parameterization("sample"), 1.0, bounded=False)
    sigma = objective(network, clean, seeded()).sigma
    generator = seeded()
    torch.randn(64, generator=generator)
    assert torch.equal(network.x, clean + PoissonKernel(1.0).sample(clean.shape, sigma, generator))
    assert objective.max_norm(80.0, 64) is None
