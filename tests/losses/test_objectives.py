"""Objectives have the minimum that the theory predicts, and explain bad input."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_pfgm import (
    ChargeField,
    Charges,
    ClassCharges,
    ConsistencyObjective,
    FieldObjective,
    Parameterization,
    PerturbationObjective,
    PoissonFlowScheduler,
    PoissonKernel,
    recommend_hyperparameters,
)
from diffusers_pfgm.losses.loss_output import LossOutput, drop_labels
from diffusers_pfgm.physics.field import FieldOutput
from diffusers_pfgm.physics.noise_estimate import NoiseEstimate
from tests.networks import ExactNetwork, make_tiny_unet, seeded

HYPERPARAMETERS = recommend_hyperparameters(data_norm=5.0, data_dim=64)


def test_the_exact_field_has_no_loss(digits: torch.Tensor) -> None:
    data = digits[:200].float()
    for charges in (data, Charges(data)):
        result = FieldObjective(HYPERPARAMETERS)(ChargeField(data), data[:32], charges, seeded())
        assert result.loss < 1e-10


def test_the_field_of_another_batch_has_a_loss(digits: torch.Tensor) -> None:
    data = digits[:200].float()
    result = FieldObjective(HYPERPARAMETERS)(ChargeField(data), data[:32], generator=seeded())
    assert result.loss > 1e-4  # the field of 32 charges differs


def test_the_field_loss_is_a_mean_over_n_plus_one_components(digits: torch.Tensor) -> None:
    data = digits[:50].float()

    def off_by_one_along_z(x: torch.Tensor, z: torch.Tensor) -> FieldOutput:
        output = ChargeField(data)(x, z).sample
        output[:, -1] += 1
        return FieldOutput(output)

    result = FieldObjective(HYPERPARAMETERS)(off_by_one_along_z, data[:32], data, seeded())
    assert result.loss.item() == pytest.approx(1 / 65, rel=1e-4)


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


def test_bands_have_the_mean_loss_of_their_samples(digits: torch.Tensor) -> None:
    data = digits[:64].float()
    result = FieldObjective(HYPERPARAMETERS)(make_tiny_unet(), data, generator=seeded())
    bands = result.bands()
    edges = ["0", "0.01", "0.1", "1.0", "10.0", "inf"]
    assert set(bands) <= {f"loss/sigma_{low}_{high}" for low, high in itertools.pairwise(edges)}
    in_band = (result.sigma > 0.1) & (result.sigma <= 1.0)
    assert bands["loss/sigma_0.1_1.0"] == pytest.approx(result.per_sample[in_band].mean().item())
    assert result.loss.item() == pytest.approx(result.per_sample.mean().item())


def test_a_seed_makes_the_field_loss_repeatable_without_the_global_generator(digits: torch.Tensor) -> None:
    data, before = digits[:16].float(), torch.get_rng_state()
    losses = [FieldObjective(HYPERPARAMETERS)(make_tiny_unet(), data, generator=seeded(3)).loss for _ in range(2)]
    assert torch.equal(*losses) and torch.equal(before, torch.get_rng_state())


def test_bad_input_is_explained(digits: torch.Tensor) -> None:
    data = digits[:8].float()
    objective = FieldObjective(HYPERPARAMETERS)
    with pytest.raises(ValueError, match="returns one channel more than the data"):
        objective(make_tiny_unet(out_channels=1), data)
    broken = data.clone()
    broken[3, 0, 2, 2] = math.nan
    with pytest.raises(ValueError, match="`clean` must be finite, but index 3 holds"):
        objective(make_tiny_unet(), broken)
    with pytest.raises(ValueError, match="`charges` must be finite, but index 3 holds"):
        objective(make_tiny_unet(), data, broken)
    with pytest.raises(ValueError, match="`clean` must be finite, but index 3 holds"):
        PerturbationObjective(Parameterization("epsilon"))(make_tiny_unet(out_channels=1), broken)
    for name in ("p_mean", "p_std"):
        with pytest.raises(ValueError, match=f"`{name}` must be a finite number, but is nan"):
            PerturbationObjective(Parameterization("epsilon"), **{name: math.nan})
    for probability in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=f"`probability` must be a number from 0 to 1, but is {probability}"):
            drop_labels(torch.zeros(3), probability, 7)
    with pytest.raises(ValueError, match="'field' needs the field of many charges: use `FieldObjective`"):
        PerturbationObjective(Parameterization("field"))


def test_the_exact_field_of_another_gamma_has_no_loss(digits: torch.Tensor) -> None:
    data = digits[:50].float()
    result = FieldObjective(HYPERPARAMETERS, gamma=0.5)(ChargeField(data, gamma=0.5), data[:32], data, seeded())
    assert result.loss < 1e-10


def test_the_field_loss_uses_the_mean_of_the_last_channel(digits: torch.Tensor) -> None:
    data = digits[:50].float()

    def uneven(x: torch.Tensor, z: torch.Tensor) -> FieldOutput:
        output = ChargeField(data)(x, z).sample
        noise = torch.randn(output[:, -1].shape, generator=seeded(1))
        output[:, -1] += noise - noise.mean((1, 2), keepdim=True)
        return FieldOutput(output)

    assert FieldObjective(HYPERPARAMETERS)(uneven, data[:32], data, seeded()).loss < 1e-10


def test_the_loss_of_each_sample_is_detached(digits: torch.Tensor) -> None:
    result = FieldObjective(HYPERPARAMETERS)(make_tiny_unet(), digits[:4].float(), generator=seeded())
    assert result.loss.requires_grad and not result.per_sample.requires_grad


def test_bands_include_their_upper_edge() -> None:
    values = torch.tensor([1.0, 2.0, 3.0])
    result = LossOutput(values.mean(), values, torch.tensor([0.1, 0.5, 1.0]))
    assert result.bands() == {"loss/sigma_0.01_0.1": 1.0, "loss/sigma_0.1_1.0": 2.5}


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


@pytest.mark.parametrize("name", ["class_labels", "context"])
def test_keyword_arguments_are_passed_to_the_network(digits: torch.Tensor, name: str) -> None:
    data, inputs, value = digits[:4].float(), [], torch.tensor([3, 3, 1, 0])

    def record(x: torch.Tensor, z: torch.Tensor, **options: Any) -> FieldOutput:
        inputs.append(options)
        return FieldOutput(torch.cat([x, x], dim=1))

    FieldObjective(HYPERPARAMETERS)(record, data, generator=seeded(), **{name: value})
    assert list(inputs[0]) == [name] and torch.equal(inputs[0][name], value)


def test_each_class_has_the_field_of_its_charges(digits: torch.Tensor) -> None:
    data, labels, null = digits[:40].float(), torch.arange(40) % 4, 4
    class_labels = labels[:20].clone()
    class_labels[::5] = null

    def exact(x: torch.Tensor, z: torch.Tensor, class_labels: torch.Tensor) -> FieldOutput:
        rows = []
        for i, label in enumerate(class_labels.tolist()):
            field = ChargeField(data if label == null else data[labels == label])
            rows.append(field(x[i : i + 1], z[i : i + 1]).sample)
        return FieldOutput(torch.cat(rows))

    objective = FieldObjective(HYPERPARAMETERS)
    options = {"charges": data, "class_labels": class_labels, "charge_labels": labels}
    assert objective(exact, data[:20], generator=seeded(), **options).per_sample.max() < 1e-9
    # The same network has a loss if all charges have the same class.
    options["charge_labels"] = labels * 0
    assert objective(exact, data[:20], generator=seeded(), **options).loss > 1e-4


def test_every_charge_needs_a_label(digits: torch.Tensor) -> None:
    data = digits[:8].float()
    for charges, labels in ((data, torch.zeros(4)), (Charges(data), torch.zeros(8))):
        with pytest.raises(
            ValueError,
            match=r"`charge_labels` must have one label for each of the 8 charges|must be a tensor or ClassCharges",
        ):
            FieldObjective(HYPERPARAMETERS)(
                ChargeField(data), data[:4], charges, class_labels=torch.zeros(4), charge_labels=labels
            )


def test_charge_labels_without_class_labels_are_refused(digits: torch.Tensor) -> None:
    data = digits[:8].float()
    with pytest.raises(ValueError, match="`charge_labels` were given without `class_labels`"):
        FieldObjective(HYPERPARAMETERS)(ChargeField(data), data, charge_labels=torch.zeros(8))


def test_labels_are_dropped_at_random() -> None:
    labels, before = torch.arange(20_000) % 7, torch.get_rng_state()
    dropped = drop_labels(labels, 0.3, 7, seeded())
    # Five standard errors of a proportion of 20,000 draws.
    assert (dropped == 7).double().mean().item() == pytest.approx(0.3, abs=0.016)
    assert torch.equal(dropped[dropped < 7], labels[dropped < 7]) and torch.equal(labels, torch.arange(20_000) % 7)
    assert torch.equal(drop_labels(labels, 0.0, 7), labels)
    assert torch.equal(drop_labels(labels, 0.3, 7, seeded()), dropped)
    torch.set_rng_state(before)


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_of_half_precision_are_computed_in_float32(digits: torch.Tensor, dtype: torch.dtype) -> None:
    data = digits[:8].to(dtype)
    field = FieldObjective(HYPERPARAMETERS)(ChargeField(data), data, generator=seeded())
    sample = PerturbationObjective(Parameterization("sample"))(ChargeField(data, 1.0, "sample"), data, seeded())
    assert field.loss.dtype == sample.loss.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("default_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("statistics", [None, NoiseEstimate(1.0, 0.0, 0.5, 0.1)])
def test_a_network_is_called_in_the_dtype_of_the_data(
    digits: torch.Tensor, dtype: torch.dtype, default_dtype: torch.dtype, statistics: NoiseEstimate | None
) -> None:
    parameterization = Parameterization("epsilon", sigma_data=0.5, noise_estimate=statistics)
    consistency = Parameterization("epsilon", sigma_data=0.5, noise_estimate=statistics, boundary=0.05)
    for objective, channels in [
        (PerturbationObjective(parameterization), 1),
        (PerturbationObjective(parameterization, aug_dim=None), 1),
        (ConsistencyObjective(consistency, 80.0, 0.5), 1),
        (FieldObjective(HYPERPARAMETERS, sigma_data=0.5), 2),
    ]:
        unet = make_tiny_unet(out_channels=channels).to(dtype)
        torch.set_default_dtype(default_dtype)
        try:
            loss = objective(unet, digits[:4].to(dtype), generator=seeded()).loss
        finally:
            torch.set_default_dtype(torch.float32)
        assert loss.isfinite() and loss.dtype == torch.promote_types(loss.dtype, torch.float32)


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
    clean, inputs = digits[:1000].float(), []
    parameterization = Parameterization(prediction_type, sigma_data=0.5)

    def record(x: torch.Tensor, timestep: torch.Tensor) -> FieldOutput:
        inputs.append(x)
        return FieldOutput(torch.zeros_like(x))

    result = PerturbationObjective(parameterization, aug_dim)(record, clean, seeded())
    # The root mean square of the noise is at most 4 σ, that of a digit at most 1.
    assert inputs[0].flatten(1).square().mean(1).max().sqrt() <= 4 + 1 / 0.5
    assert result.per_sample.max().sqrt() <= 4 + 1 / 0.5


def test_the_noise_of_diffusion_is_not_limited(digits: torch.Tensor) -> None:
    clean, inputs = digits[:16].float(), []

    def record(x: torch.Tensor, timestep: torch.Tensor) -> FieldOutput:
        inputs.append(x)
        return FieldOutput(torch.zeros_like(x))

    result = PerturbationObjective(Parameterization("sample"), None)(record, clean, seeded(5))
    generator = seeded(5)
    sigma = (-1.2 + 1.2 * torch.randn(16, generator=generator)).exp()
    noise = torch.randn(clean.shape, generator=generator)
    assert torch.equal(result.sigma, sigma) and torch.equal(inputs[0], clean + sigma.view(-1, 1, 1, 1) * noise)


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
    clean, inputs = digits[:64].float(), []

    def record(x: torch.Tensor, timestep: torch.Tensor) -> FieldOutput:
        inputs.append(x)
        return FieldOutput(torch.zeros_like(x))

    objective = PerturbationObjective(Parameterization("sample"), 1.0, bounded=False)
    sigma = objective(record, clean, seeded()).sigma
    generator = seeded()
    torch.randn(64, generator=generator)
    assert torch.equal(inputs[0], clean + PoissonKernel(1.0).sample(clean.shape, sigma, generator))
    assert objective.max_norm(80.0, 64) is None


class LargestTensor(TorchDispatchMode):
    """Record the bytes of the largest tensor that an operation returns, without views."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result._base is None:
            self.bytes = max(self.bytes, result.nbytes)
        return result


def test_only_one_class_of_charges_is_copied_at_a_time() -> None:
    charges = torch.randn(1000, 1, 8, 8, generator=seeded())
    labels = torch.arange(1000) % 10
    objective = FieldObjective(recommend_hyperparameters(data_norm=8, data_dim=64))
    model = lambda x, z, class_labels: SimpleNamespace(sample=torch.zeros(len(x), 2, 8, 8))  # noqa: E731
    with LargestTensor() as largest:
        options = {"generator": seeded(), "class_labels": labels[:8], "charge_labels": labels}
        result = objective(model, charges[:8], charges, **options)
    assert largest.bytes <= 100 * 64 * 8  # one class in float64
    prepared = objective(model, charges[:8], ClassCharges(charges, labels), seeded(), labels[:8])
    assert torch.allclose(result.per_sample, prepared.per_sample, rtol=1e-6)
