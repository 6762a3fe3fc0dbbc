"""Objectives have their minimum where theory says, and say what is wrong."""

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
    FieldObjective,
    Parameterization,
    PerturbationObjective,
    PoissonFlowScheduler,
    PoissonKernel,
    recommend_hyperparameters,
)
from diffusers_pfgm.losses.loss_output import LossOutput, drop_labels
from diffusers_pfgm.physics.field import FieldOutput
from tests.conftest import ExactNetwork, make_tiny_unet, seeded

HYPERPARAMETERS = recommend_hyperparameters(data_norm=5.0, data_dim=64)


def test_the_exact_field_has_no_field_loss(digits: torch.Tensor) -> None:
    data = digits[:200].float()
    for charges in (data, Charges(data)):
        result = FieldObjective(HYPERPARAMETERS)(ChargeField(data), data[:32], charges, seeded())
        assert result.loss < 1e-10


def test_the_field_loss_is_that_of_the_larger_batch(digits: torch.Tensor) -> None:
    data = digits[:200].float()
    result = FieldObjective(HYPERPARAMETERS)(ChargeField(data), data[:32], generator=seeded())
    assert result.loss > 1e-4  # the field of 32 charges is another


def test_the_field_loss_counts_n_plus_one_components(digits: torch.Tensor) -> None:
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
        def bent(x: torch.Tensor, sigma: torch.Tensor) -> FieldOutput:
            return FieldOutput(scale * field(x, sigma).sample + shift)

        return objective(bent, batch, seeded()).loss.item()

    least = loss(1.0, 0.0)
    assert all(loss(*other) > least for other in [(0.9, 0.0), (1.1, 0.0), (1.0, 0.1), (1.0, -0.1)])


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


def test_bands_average_to_the_loss(digits: torch.Tensor) -> None:
    data = digits[:64].float()
    result = FieldObjective(HYPERPARAMETERS)(make_tiny_unet(), data, generator=seeded())
    bands = result.bands()
    edges = ["0", "0.01", "0.1", "1.0", "10.0", "inf"]
    assert set(bands) <= {f"loss/sigma_{low}_{high}" for low, high in itertools.pairwise(edges)}
    inside = (result.sigma > 0.1) & (result.sigma <= 1.0)
    assert bands["loss/sigma_0.1_1.0"] == pytest.approx(result.per_sample[inside].mean().item())
    assert result.loss.item() == pytest.approx(result.per_sample.mean().item())


def test_a_seed_makes_the_loss_repeatable_and_leaves_the_global_state(digits: torch.Tensor) -> None:
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
    with pytest.raises(ValueError, match="'field' needs the field of many charges: use `FieldObjective`"):
        PerturbationObjective(Parameterization("field"))


def test_the_exact_field_has_no_loss_at_its_gamma(digits: torch.Tensor) -> None:
    data = digits[:50].float()
    result = FieldObjective(HYPERPARAMETERS, gamma=0.5)(ChargeField(data, gamma=0.5), data[:32], data, seeded())
    assert result.loss < 1e-10


def test_the_field_loss_sees_the_mean_of_the_last_channel(digits: torch.Tensor) -> None:
    data = digits[:50].float()

    def uneven(x: torch.Tensor, z: torch.Tensor) -> FieldOutput:
        output = ChargeField(data)(x, z).sample
        noise = torch.randn(output[:, -1].shape, generator=seeded(1))
        output[:, -1] += noise - noise.mean((1, 2), keepdim=True)
        return FieldOutput(output)

    assert FieldObjective(HYPERPARAMETERS)(uneven, data[:32], data, seeded()).loss < 1e-10


def test_what_is_logged_holds_no_graph(digits: torch.Tensor) -> None:
    result = FieldObjective(HYPERPARAMETERS)(make_tiny_unet(), digits[:4].float(), generator=seeded())
    assert result.loss.requires_grad and not result.per_sample.requires_grad


def test_bands_hold_their_upper_edge() -> None:
    values = torch.tensor([1.0, 2.0, 3.0])
    result = LossOutput(values.mean(), values, torch.tensor([0.1, 0.5, 1.0]))
    assert result.bands() == {"loss/sigma_0.01_0.1": 1.0, "loss/sigma_0.1_1.0": 2.5}


def test_sigma_is_edms_log_normal() -> None:
    clean = torch.zeros(40_000, 1, 1)
    result = PerturbationObjective(Parameterization("sample"))(lambda x, _: FieldOutput(x), clean, seeded())
    log_sigma = result.sigma.log()
    assert log_sigma.mean().item() == pytest.approx(-1.2, abs=0.03)
    assert log_sigma.std().item() == pytest.approx(1.2, abs=0.03)


@pytest.mark.parametrize("aug_dim", [1.0, None])
def test_a_preconditioned_network_sees_what_a_scheduler_shows_it(digits: torch.Tensor, aug_dim: float | None) -> None:
    clean, parameterization, seen = digits[:16].float(), Parameterization("epsilon", sigma_data=0.7), []

    def look(x: torch.Tensor, label: torch.Tensor, class_labels: int) -> FieldOutput:
        seen.append((x, label, class_labels))
        return FieldOutput(torch.zeros_like(x))

    generators = [seeded(i) for i in range(16)]
    result = PerturbationObjective(parameterization, aug_dim)(look, clean, generators, class_labels=3)
    x, label, class_labels = seen[0]
    sigma = result.sigma.view(-1, 1, 1, 1)
    assert class_labels == 3 and torch.allclose(label, result.sigma.log() / 4)
    noisy = x * (sigma**2 + 0.7**2).sqrt()
    expected = parameterization.target(clean, noisy, sigma).flatten(1).square().mean(1)
    assert torch.allclose(result.per_sample, expected, rtol=1e-3)


@pytest.mark.parametrize("name", ["class_labels", "context"])
def test_model_arguments_reach_the_network(digits: torch.Tensor, name: str) -> None:
    data, seen, given = digits[:4].float(), [], torch.tensor([3, 3, 1, 0])

    def look(x: torch.Tensor, z: torch.Tensor, **options: Any) -> FieldOutput:
        seen.append(options)
        return FieldOutput(torch.cat([x, x], dim=1))

    FieldObjective(HYPERPARAMETERS)(look, data, generator=seeded(), **{name: given})
    assert list(seen[0]) == [name] and torch.equal(seen[0][name], given)


def test_each_class_has_the_field_of_its_charges(digits: torch.Tensor) -> None:
    data, labels, null = digits[:40].float(), torch.arange(40) % 4, 4
    told = labels[:20].clone()
    told[::5] = null

    def exact(x: torch.Tensor, z: torch.Tensor, class_labels: torch.Tensor) -> FieldOutput:
        rows = []
        for i, label in enumerate(class_labels.tolist()):
            field = ChargeField(data if label == null else data[labels == label])
            rows.append(field(x[i : i + 1], z[i : i + 1]).sample)
        return FieldOutput(torch.cat(rows))

    objective = FieldObjective(HYPERPARAMETERS)
    options = {"charges": data, "class_labels": told, "charge_labels": labels}
    assert objective(exact, data[:20], generator=seeded(), **options).per_sample.max() < 1e-9
    # The same network is wrong where the classes are not told apart.
    assert objective(exact, data[:20], data, seeded(), class_labels=told, charge_labels=labels * 0).loss > 1e-4


def test_charge_labels_must_fit_the_charges(digits: torch.Tensor) -> None:
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
    # Five standard errors of a share of 20,000.
    assert (dropped == 7).double().mean().item() == pytest.approx(0.3, abs=0.016)
    assert torch.equal(dropped[dropped < 7], labels[dropped < 7]) and torch.equal(labels, torch.arange(20_000) % 7)
    assert torch.equal(drop_labels(labels, 0.0, 7), labels)
    assert torch.equal(drop_labels(labels, 0.3, 7, seeded()), dropped)
    torch.set_rng_state(before)


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction"])
def test_networks_of_the_ddpm_family_learn_the_posterior_mean(digits: torch.Tensor, prediction_type: str) -> None:
    scheduler = PoissonFlowScheduler(None, prediction_type=prediction_type, beta_schedule="linear")
    parameterization, charge = scheduler.parameterization, digits[:1]
    network = ExactNetwork(charge, parameterization)  # of one charge, which is then no guess
    loss = PerturbationObjective(parameterization, None)(network, charge.expand(16, -1, -1, -1), seeded()).loss
    # σ reaches below the first timestep, which the network then sees in its place.
    assert (
        loss < 1e-3 < PerturbationObjective(parameterization, None)(lambda x, t: FieldOutput(x), charge, seeded()).loss
    )


def test_a_seed_makes_the_perturbation_loss_repeatable(digits: torch.Tensor) -> None:
    data, before = digits[:16].float(), torch.get_rng_state()
    objective = PerturbationObjective(Parameterization("epsilon"))
    losses = [objective(make_tiny_unet(out_channels=1), data, seeded(3)).loss for _ in range(2)]
    assert torch.equal(*losses) and torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_of_half_precision_are_taken_in_float32(digits: torch.Tensor, dtype: torch.dtype) -> None:
    data = digits[:8].to(dtype)
    field = FieldObjective(HYPERPARAMETERS)(ChargeField(data), data, generator=seeded())
    sample = PerturbationObjective(Parameterization("sample"))(ChargeField(data, 1.0, "sample"), data, seeded())
    assert field.loss.dtype == sample.loss.dtype == torch.float32


def test_a_network_with_a_channel_too_many_is_refused(digits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"must have the shape \(4, 1, 8, 8\)"):
        PerturbationObjective(Parameterization("epsilon"))(make_tiny_unet(out_channels=2), digits[:4].float(), seeded())


@pytest.mark.parametrize("aug_dim", [0.01, 0.2, 1.0])
def test_float16_trains_at_small_aug_dim_as_it_does_for_diffusion(digits: torch.Tensor, aug_dim: float) -> None:
    """Float16 skips steps whose scaled gradients overflow: at D = ∞ the first of 70, until the scale has fallen."""
    batches = digits.float().split(16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = torch.nn.Sequential(torch.nn.Linear(65, 128), torch.nn.SiLU(), torch.nn.Linear(128, 64))

    def network(x: torch.Tensor, label: torch.Tensor) -> FieldOutput:
        return FieldOutput(layers(torch.cat([x.flatten(1), label.view(-1, 1)], dim=1)).view_as(x))

    optimizer = torch.optim.AdamW(layers.parameters(), lr=1e-3)
    objective = PerturbationObjective(Parameterization("epsilon", sigma_data=0.5), aug_dim)
    scaler, generator = torch.amp.GradScaler("cpu"), seeded()
    for step in range(70):
        with torch.autocast("cpu", torch.float16):
            loss = objective(network, batches[step], generator).loss
        assert loss.item() < 16.0  # 16 = 4² is the largest mean square of the target of a network that knows nothing
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
    clean, seen = digits[:1000].float(), []
    parameterization = Parameterization(prediction_type, sigma_data=0.5)

    def look(x: torch.Tensor, label: torch.Tensor) -> FieldOutput:
        seen.append(x)
        return FieldOutput(torch.zeros_like(x))

    result = PerturbationObjective(parameterization, aug_dim)(look, clean, seeded())
    # Rms of the noise is at most 4 σ, that of a digit at most 1.
    assert seen[0].flatten(1).square().mean(1).max().sqrt() <= 4 + 1 / 0.5
    assert result.per_sample.max().sqrt() <= 4 + 1 / 0.5


def test_diffusion_is_not_limited(digits: torch.Tensor) -> None:
    clean, seen = digits[:16].float(), []

    def look(x: torch.Tensor, label: torch.Tensor) -> FieldOutput:
        seen.append(x)
        return FieldOutput(torch.zeros_like(x))

    result = PerturbationObjective(Parameterization("sample"), None)(look, clean, seeded(5))
    generator = seeded(5)
    sigma = (-1.2 + 1.2 * torch.randn(16, generator=generator)).exp()
    noise = torch.randn(clean.shape, generator=generator)
    assert torch.equal(result.sigma, sigma) and torch.equal(seen[0], clean + sigma.view(-1, 1, 1, 1) * noise)


def test_the_scheduler_of_a_trained_network_draws_what_training_saw() -> None:
    objective = PerturbationObjective(Parameterization("epsilon", sigma_data=0.5), 1.0)
    limit = objective.max_norm(80.0, 64)
    clean, norms = torch.zeros(4000, 64), []

    def look(x: torch.Tensor, label: torch.Tensor) -> FieldOutput:
        norms.append(x * (torch.exp(4 * label.view(-1, 1)) ** 2 + 0.25).sqrt() / torch.exp(4 * label.view(-1, 1)))
        return FieldOutput(torch.zeros_like(x))

    objective(look, clean, seeded())
    scheduler = PoissonFlowScheduler(1.0, sigma_max=80.0, prediction_type="epsilon", sigma_data=0.5, max_norm=limit)
    prior = scheduler.sample_prior((4000, 64), seeded(1)) / 80
    quantiles = torch.tensor([0.1, 0.5, 0.9, 1.0])
    trained, drawn = (x.norm(dim=1).quantile(quantiles) for x in (norms[0], prior))
    assert torch.allclose(trained, drawn, rtol=0.1) and limit == pytest.approx(80 * 8 * 4)
    assert PerturbationObjective(Parameterization("epsilon"), None).max_norm(80.0, 64) is None


def test_an_aug_dim_that_cannot_train_is_refused() -> None:
    for aug_dim in (1e-3, 1e-300):
        with pytest.raises(ValueError, match=r"`aug_dim` = .* is too small to train: it must be at least 0\.01"):
            PerturbationObjective(Parameterization("epsilon"), aug_dim)


def test_the_whole_kernel_is_there_where_it_is_asked_for(digits: torch.Tensor) -> None:
    clean, seen = digits[:64].float(), []

    def look(x: torch.Tensor, label: torch.Tensor) -> FieldOutput:
        seen.append(x)
        return FieldOutput(torch.zeros_like(x))

    objective = PerturbationObjective(Parameterization("sample"), 1.0, bounded=False)
    sigma = objective(look, clean, seeded()).sigma
    generator = seeded()
    torch.randn(64, generator=generator)
    assert torch.equal(seen[0], clean + PoissonKernel(1.0).sample(clean.shape, sigma, generator))
    assert objective.max_norm(80.0, 64) is None


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that an operation returns, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found._base is None:
            self.bytes = max(self.bytes, found.nbytes)
        return found


def test_charges_of_classes_are_not_copied_as_a_whole() -> None:
    charges = torch.randn(1000, 1, 8, 8, generator=seeded())
    labels = torch.arange(1000) % 10
    objective = FieldObjective(recommend_hyperparameters(data_norm=8, data_dim=64))
    model = lambda x, z, class_labels: SimpleNamespace(sample=torch.zeros(len(x), 2, 8, 8))  # noqa: E731
    with LargestTensor() as largest:
        options = {"generator": seeded(), "class_labels": labels[:8], "charge_labels": labels}
        found = objective(model, charges[:8], charges, **options)
    assert largest.bytes <= 100 * 64 * 8  # one class in float64
    prepared = objective(model, charges[:8], ClassCharges(charges, labels), seeded(), labels[:8])
    assert torch.allclose(found.per_sample, prepared.per_sample, rtol=1e-6)
