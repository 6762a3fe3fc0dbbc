"""Consistency tuning: the boundary, the pair of noise levels, the direction of the step, and the loss itself."""

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diffusers_pfgm import ConsistencyObjective, Parameterization, PoissonFlowScheduler, posterior_mean
from diffusers_pfgm.losses.consistency import HUBER, LEAST_SIGMA
from diffusers_pfgm.physics.tensors import append_dims
from tests.networks import make_tiny_unet, seeded

EDM = Parameterization("epsilon", sigma_data=0.5, boundary=0.05)


def no_prediction(x: torch.Tensor, sigma: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
    return torch.zeros_like(x)


def student_t(aug_dim: float = 1.0) -> Parameterization:
    options = {"sigma_data": 0.5, "data_mean": 0.0, "mean_square_std": 0.1, "consistency_boundary": 0.05}
    scheduler = PoissonFlowScheduler(aug_dim, 0.002, 80.0, "epsilon", consistency_sigmas=[80.0], **options)
    return scheduler.parameterization


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction", "field"])
def test_the_boundary_is_x_where_the_noise_vanishes_and_the_network_where_it_is_large(prediction_type: str) -> None:
    sigma_data = None if prediction_type == "field" else 0.5
    plain = Parameterization(prediction_type, sigma_data=sigma_data)
    model = dataclasses.replace(plain, boundary=0.05)
    x = torch.randn(4, 3, 8, 8, generator=seeded(), dtype=torch.float64)
    output = torch.randn(4, 3 + (prediction_type == "field"), 8, 8, generator=seeded(1), dtype=torch.float64)
    assert (model.denoised(output, x, 1e-9) - x).abs().max() < 1e-5
    assert (model.denoised(output, x, 1e7) - plain.denoised(output, x, 1e7)).abs().max() < 1e-8
    # At the noise level σ_b both have the share 1/2.
    assert torch.allclose(model.denoised(output, x, 0.05), (x + plain.denoised(output, x, 0.05)) / 2)


@pytest.mark.parametrize("sigma", [1e-5, 0.01, 0.05, 3.0])
def test_target_is_the_inverse_of_denoised(sigma: float) -> None:
    x, denoised = (torch.randn(4, 1, 8, 8, generator=seeded(seed), dtype=torch.float64) for seed in (0, 1))
    assert torch.allclose(EDM.denoised(EDM.target(denoised, x, sigma), x, sigma), denoised)


def test_the_student_t_boundary_holds_at_the_estimated_noise_level() -> None:
    clean = 0.5 * torch.randn(64, 1, 28, 28, generator=seeded())
    parameterization = student_t()
    for sigma in (1e-4, 1e-3):
        noise_level = parameterization.noise_level(clean, sigma)
        difference = parameterization.denoised(torch.zeros_like(clean), clean, noise_level) - clean
        assert (
            difference.square().mean().sqrt() < 0.5 * (5 * sigma / 0.05) ** 2
        )  # c_b is 1 − (s/σ_b)², with s of order σ


def test_the_smaller_level_follows_easy_consistency_tuning() -> None:
    # arXiv 2406.14548, section 3.3: r/t = 1 − q^(−a) (1 + k sigmoid(−b t)) with q = 2, k = 8, b = 1, for σ_d = 0.5.
    objective = ConsistencyObjective(EDM, 80.0, 0.5, None)
    t = torch.tensor([0.02, 0.5, 2.0, 80.0], dtype=torch.float64)
    for progress, exponent in ((0.0, 1), (0.2, 2), (0.5, 4), (1.0, 7)):
        expected = t * (1 - 2.0**-exponent * (1 + 8 / (1 + t.exp())))
        expected[expected < 0.005] = 0
        assert torch.allclose(objective.smaller_sigma(t, progress), expected)
    distilled = ConsistencyObjective(EDM, 80.0, 0.5, None, teacher=no_prediction, distillation=True)
    assert torch.equal(distilled.smaller_sigma(t, 0.0), objective.smaller_sigma(t, 0.3))
    other = ConsistencyObjective(EDM, 80.0, 5.0, None)
    assert torch.allclose(other.smaller_sigma(10 * t, 0.5), 10 * objective.smaller_sigma(t, 0.5))


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_the_step_follows_the_ode_on_average(guidance_scale: float) -> None:
    # The unconditional x̂ is that of all charges, and so is the conditional one if the labels mean nothing. The guided
    # direction is then dx/dσ = (x − x̂)/t too: its difference to that is 0 on average for any weight h(x).
    charges = torch.tensor([[[-1.0, 0.3]], [[0.8, -0.4]], [[0.1, 1.2]]], dtype=torch.float64)
    count = 200_000
    clean = charges[torch.randint(3, (count,), generator=seeded())]
    sigma = torch.full((count, 1, 1), 0.7, dtype=torch.float64)
    noise = torch.randn(clean.shape, generator=seeded(1), dtype=torch.float64)
    x = clean + sigma * noise

    def exact(x: torch.Tensor, sigma: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        return posterior_mean(x, sigma.flatten(), charges, None)

    objective = ConsistencyObjective(EDM, 80.0, 0.5, None, guidance_scale, exact, null_class=1)
    labels = torch.zeros(count, dtype=torch.long)
    error = objective._direction(x, sigma, noise, labels) - (x - exact(x, sigma, labels)) / sigma
    for weight in (torch.ones_like(x), x, x.sign(), (x - charges[0]).square()):
        moment = error * weight
        assert moment.mean().abs() < 5 * moment.std() / math.sqrt(moment.numel() / 2)


def test_the_null_class_learns_no_guidance() -> None:
    clean = torch.randn(8, 1, 8, 8, generator=seeded())
    model = make_tiny_unet(out_channels=1, num_class_embeds=3)
    options = (EDM, 80.0, 0.5, None)
    guided = ConsistencyObjective(*options, 3.0, no_prediction, null_class=2)
    plain = ConsistencyObjective(*options)
    labels = torch.full((8,), 2)
    losses = [each(model, clean, seeded(), labels, 0.5).per_sample for each in (guided, plain)]
    assert torch.equal(*losses)
    labels[0] = 1
    losses = [each(model, clean, seeded(), labels, 0.5).per_sample for each in (guided, plain)]
    assert (losses[0] != losses[1]).tolist() == [True] + [False] * 7


def test_the_loss_where_the_target_is_the_data() -> None:
    # At r = 0 the loss is the pseudo-Huber distance of f to y, divided by √(σ² + σ_d²).
    clean = torch.randn(64, 1, 8, 8, generator=seeded())
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def model(sample: torch.Tensor, timestep: torch.Tensor, **kwargs: Any) -> SimpleNamespace:
        seen.append((sample, timestep))
        return SimpleNamespace(sample=torch.zeros_like(sample))

    objective = ConsistencyObjective(EDM, 80.0, 0.5, None)
    result = objective(model, clean, seeded(), progress=0.0)
    small = objective.smaller_sigma(result.sigma, 0.0) == 0
    assert 5 < small.sum() < 60
    sigma = append_dims(result.sigma, 4)
    x = seen[-1][0] / EDM.c_in(sigma)
    predicted = EDM.denoised(torch.zeros_like(x), x, sigma)
    squares = (predicted - clean).flatten(1).square().mean(1)
    c = HUBER * 0.5
    expected = ((squares + c**2).sqrt() - c) / (result.sigma**2 + 0.25).sqrt()
    assert torch.allclose(result.per_sample[small], expected[small], rtol=1e-4)
    assert result.sigma.min() >= LEAST_SIGMA * 0.5 and result.sigma.max() <= 80


@pytest.mark.parametrize("aug_dim", [1.0, 64.0, None])
def test_the_gradient_reaches_only_the_larger_level(aug_dim: float | None) -> None:
    clean = torch.randn(4, 1, 8, 8, generator=seeded())
    parameterization = EDM if aug_dim is None else student_t(aug_dim)
    network = make_tiny_unet(out_channels=1)
    grads = []

    def model(*args: Any, **kwargs: Any) -> Any:
        grads.append(torch.is_grad_enabled())
        return network(*args, **kwargs)

    state = torch.get_rng_state()
    result = ConsistencyObjective(parameterization, 80.0, 0.5, aug_dim)(model, clean, seeded())
    result.loss.backward()
    assert grads == [False, True] and torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad.isfinite().all() for weight in network.parameters() if weight.grad is not None)


def test_distillation_follows_the_guided_field_lines_of_the_teacher() -> None:
    # Normal data with mean μ and standard deviation 0.5 have x̂ = μ + (x − μ)/(1 + 4 σ²), and (x − μ)/√(1 + 4 σ²) is
    # constant on a field line. With μ = 1 in class 0 and 0 without a class, the guided field of the scale 3 has μ = 3.
    def teacher(x: torch.Tensor, sigma: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        assert class_labels is not None
        mean = append_dims(1.0 - class_labels, x.ndim)
        return mean + (x - mean) / (1 + 4 * sigma**2)

    seen: list[torch.Tensor] = []

    def model(sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> SimpleNamespace:
        seen.append(sample)
        return SimpleNamespace(sample=torch.zeros_like(sample))

    objective = ConsistencyObjective(EDM, 80.0, 0.5, None, 3.0, teacher, null_class=1, distillation=True)
    clean = torch.randn(1000, 1, 4, 4, generator=seeded(), dtype=torch.float64)
    labels = torch.arange(1000) % 2
    t = objective(model, clean, seeded(), labels).sigma
    r = objective.smaller_sigma(t, 0.0)
    is_end = r == 0
    assert 5 < is_end.sum() < 100
    x_r, x_t = (
        sample / append_dims(EDM.c_in(sigma), 4) for sample, sigma in zip(seen, (r.clamp(min=0.005), t), strict=True)
    )
    mean = append_dims(3.0 * (1 - labels), 4)
    ratio = ((1 + 4 * r**2) / (1 + 4 * t**2)).sqrt()
    on_line = mean + (x_t - mean) * append_dims(ratio, 4)
    error = (x_r - on_line).flatten(1).norm(dim=1) / (x_t - mean).flatten(1).norm(dim=1)
    assert error[~is_end].max() < 0.015  # 0.011 of Heun's method, 0.041 of Euler's
    assert torch.allclose(x_r[is_end], (mean + (x_t - mean) / append_dims(1 + 4 * t**2, 4))[is_end])


def test_each_sample_has_its_own_generator() -> None:
    clean = torch.randn(3, 1, 8, 8, generator=seeded())
    model = make_tiny_unet(out_channels=1)
    objective = ConsistencyObjective(student_t(), 80.0, 0.5)
    together = objective(model, clean, [seeded(i) for i in range(3)]).per_sample
    alone = torch.cat([objective(model, clean[i : i + 1], [seeded(i)]).per_sample for i in range(3)])
    assert torch.allclose(together, alone, rtol=1e-4)


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="needs a `boundary`"):
        ConsistencyObjective(Parameterization("epsilon", sigma_data=0.5), 80.0, 0.5)
    with pytest.raises(ValueError, match="`guidance_scale` must be a finite number, but is nan"):
        ConsistencyObjective(EDM, 80.0, 0.5, None, math.nan, no_prediction)
    for options in ({}, {"teacher": no_prediction}, {"null_class": 2}):
        with pytest.raises(ValueError, match=r"`guidance_scale` = 2.0 needs `teacher`, .* and `null_class`"):
            ConsistencyObjective(EDM, 80.0, 0.5, None, 2.0, **options)
    with pytest.raises(ValueError, match="`distillation` needs `teacher`"):
        ConsistencyObjective(EDM, 80.0, 0.5, distillation=True)
    with pytest.raises(ValueError, match="`clean`"):
        ConsistencyObjective(EDM, 80.0, 0.5, None)(make_tiny_unet(out_channels=1), torch.full((1, 1, 8, 8), math.nan))
    for boundary in (0.0, math.inf):
        with pytest.raises(ValueError, match=r"`boundary` \(`consistency_boundary` of a scheduler\) must be a finite"):
            Parameterization("epsilon", sigma_data=0.5, boundary=boundary)
    for sigma_max, std, name in ((-1.0, 0.5, "sigma_max"), (80.0, 0.0, "data_std")):
        with pytest.raises(ValueError, match=f"`{name}` must be a finite number > 0"):
            ConsistencyObjective(EDM, sigma_max, std)
    guided = ConsistencyObjective(EDM, 80.0, 0.5, None, 2.0, no_prediction, null_class=2)
    with pytest.raises(ValueError, match=r"`guidance_scale` = 2.0 needs `class_labels`"):
        guided(make_tiny_unet(out_channels=1), torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="noise levels are continuous"):
        Parameterization("epsilon", train_sigmas=(0.1, 1.0), boundary=0.05)
