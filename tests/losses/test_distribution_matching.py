"""Distribution matching: the images move to the charges of the teacher, and each network gets its own gradient."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diffusers_pfgm import ChargeField, DistributionMatchingObjective, Parameterization, posterior_mean
from diffusers_pfgm.losses.tuning import Teacher
from diffusers_pfgm.physics.tensors import append_dims
from tests.networks import make_smallest_unet, seeded

SAMPLE = Parameterization("sample")
EDM = Parameterization("epsilon", sigma_data=0.5)
GENERATOR = Parameterization("epsilon", sigma_data=0.5, boundary=0.05)


def exact_teacher(charges: torch.Tensor, aug_dim: float | None) -> Teacher:
    return lambda x, sigma, class_labels: posterior_mean(x, sigma.flatten(), charges, aug_dim)


def edm_teacher(x: torch.Tensor, sigma: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
    return torch.zeros_like(x)


def make_objective(**options: Any) -> DistributionMatchingObjective:
    defaults = {"sigmas": [80.0, 0.8], "data_std": 0.5, "aug_dim": None}
    return DistributionMatchingObjective(GENERATOR, EDM, edm_teacher, **(defaults | options))


@pytest.mark.parametrize("aug_dim", [1.0, 5.0, None])
def test_images_move_to_all_charges(aug_dim: float | None) -> None:
    # The images are free points, and both x̂ are exact.
    charges = torch.tensor([[[-1.0, -1.0]], [[1.0, -1.0]], [[0.0, 1.2]]], dtype=torch.float64)
    points = (0.1 * torch.randn(60, 1, 2, generator=seeded(), dtype=torch.float64)).requires_grad_()
    objective = DistributionMatchingObjective(SAMPLE, SAMPLE, exact_teacher(charges, aug_dim), [80.0], 1.0, aug_dim)
    optimizer = torch.optim.Adam([points], lr=0.03)
    generator = seeded(1)
    for _ in range(400):
        field = ChargeField(points.detach().clone(), aug_dim, "sample")
        result = objective(
            lambda *args: SimpleNamespace(sample=points),
            torch.zeros_like(points),
            generator,
            critic=lambda x, timestep, class_labels, field=field: field(x, timestep),
        )
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
    distances, nearest = torch.cdist(points.detach().flatten(1), charges.flatten(1)).min(1)
    assert (nearest.bincount(minlength=3) - 20).abs().max() <= 6
    assert distances.median() < 0.15


def test_the_gradient_is_the_difference_of_both_predictions() -> None:
    # Teacher and critic predict the constants 0.2 and 0.7, so that d = 0.5 in each element.
    images = torch.randn(6, 1, 4, 4, generator=seeded(), dtype=torch.float64).requires_grad_()
    critic_output = torch.full_like(images, 0.7).requires_grad_()
    objective = DistributionMatchingObjective(
        SAMPLE, SAMPLE, lambda x, sigma, labels: torch.full_like(x, 0.2), [80.0], 0.5
    )
    result = objective(
        lambda *args: SimpleNamespace(sample=images),
        torch.zeros_like(images),
        seeded(),
        critic=lambda *args, **kwargs: SimpleNamespace(sample=critic_output),
    )
    result.loss.backward()
    distance = (images.detach() - 0.2).abs().mean((1, 2, 3), keepdim=True)
    assert torch.allclose(images.grad, 0.5 / (16 * 0.5 * distance).expand_as(images) / 6)
    t = append_dims(result.sigma, 4)
    weight = (t**2 + 0.5**2) / (0.5 * t) ** 2  # EDM's, which is 1/c_out²
    error = 0.7 - images.detach()
    assert torch.allclose(critic_output.grad, 2 * weight * error / 16 / 6)
    parts = 0.5**2 / (2 * 0.5 * distance.flatten()), (weight * error**2).mean((1, 2, 3))
    assert torch.allclose(result.parts["generator"], parts[0]) and torch.allclose(result.parts["critic"], parts[1])
    assert torch.allclose(result.per_sample, sum(parts)) and torch.allclose(result.loss, sum(parts).mean())


def test_the_generator_is_called_as_in_sampling_and_the_critic_knows_the_level() -> None:
    # The network's output is such that f = 1 + σ/100 at the last call of each sample.
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    seen_labels: list[torch.Tensor] = []
    labels = torch.arange(3000) % 5

    def model(sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor = labels) -> SimpleNamespace:
        assert torch.equal(class_labels, labels)
        sigma = append_dims(GENERATOR.sigma(timestep), 4)
        x = sample / GENERATOR.c_in(sigma)
        seen.append((x, sigma.flatten()))
        return SimpleNamespace(sample=GENERATOR.target((1 + sigma / 100).expand_as(x), x, sigma))

    def critic(sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> SimpleNamespace:
        seen_labels.append(class_labels)
        return SimpleNamespace(sample=torch.zeros_like(sample))

    sigmas = torch.tensor([80.0, 2.0, 0.7], dtype=torch.float64)
    clean = torch.full((3000, 1, 4, 4), -0.5, dtype=torch.float64)
    make_objective(sigmas=sigmas.tolist(), num_classes=5)(model, clean, seeded(), labels, critic=critic)
    assert len(seen) == 3
    x, sigma = seen[-1]
    level = (sigma.unsqueeze(1) - sigmas).abs().argmin(1)
    assert torch.equal(seen_labels[0], labels + 5 * level)
    assert (level.bincount() - 1000).abs().max() < 100
    for index, mean in enumerate((-0.5, 1 + 0.8, 1 + 0.02)):  # y, and f at the level before
        noise = (x[level == index] - mean) / sigmas[index]
        assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05
    make_objective(sigmas=sigmas.tolist())(model, clean, seeded(), critic=critic)
    assert set(seen_labels[1].tolist()) == {0, 1, 2}


def test_the_teacher_is_guided_except_without_a_class() -> None:
    # The teacher predicts the number of the class, and the critic's output is 0 at images of 0 and at σ_d = 1.
    levels = []

    def teacher(x: torch.Tensor, sigma: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        assert class_labels is not None
        levels.append(sigma)
        return append_dims(class_labels.to(x.dtype), x.ndim).expand_as(x)

    images = torch.zeros(300, 1, 2, 2, dtype=torch.float64).requires_grad_()
    labels = torch.arange(300) % 3
    objective = DistributionMatchingObjective(
        SAMPLE, SAMPLE, teacher, [80.0, 0.8], 1.0, None, guidance_scale=3.0, num_classes=3, null_class=2
    )
    result = objective(
        lambda *args, **kwargs: SimpleNamespace(sample=images),
        torch.zeros_like(images),
        seeded(),
        labels,
        critic=lambda x, timestep, class_labels: SimpleNamespace(sample=torch.zeros_like(x)),
    )
    guided = torch.tensor([2 + 3 * (0 - 2), 2 + 3 * (1 - 2), 2], dtype=torch.float64)[labels]
    assert torch.allclose(result.parts["generator"], guided.abs() / 2)  # d² / (2 |g − x̂|) with d = −x̂
    assert torch.equal(levels[0].flatten(), result.sigma) and torch.equal(levels[0], levels[1])
    assert (result.sigma > 0.8).sum() > 100  # t is drawn up to the first level


def test_images_that_equal_the_prediction_have_a_finite_loss() -> None:
    images = torch.ones(4, 1, 2, 2).requires_grad_()
    objective = DistributionMatchingObjective(
        SAMPLE, SAMPLE, lambda x, sigma, labels: torch.ones_like(x), [80.0], 0.5, None
    )
    result = objective(
        lambda *args: SimpleNamespace(sample=images),
        torch.zeros_like(images),
        seeded(),
        critic=lambda x, timestep, class_labels: SimpleNamespace(sample=torch.full_like(x, 1 + 1e-5)),
    )
    result.loss.backward()
    assert result.loss.isfinite() and images.grad is not None and images.grad.isfinite().all()


def test_the_critic_of_a_field_network_learns_the_posterior_mean() -> None:
    # The normalized field of one image is not linear in x̂, so its mean is not the field of x̂: x̂ itself is compared.
    field = Parameterization("field")
    charges = torch.randn(20, 1, 2, 2, generator=seeded(), dtype=torch.float64)
    images = charges.repeat(1000, 1, 1, 1)

    def loss(shift: float) -> torch.Tensor:
        def critic(x: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> SimpleNamespace:
            mean = posterior_mean(x, timestep, charges, 1.0)
            return SimpleNamespace(sample=field.target(mean + shift * (mean - x), x, append_dims(timestep, 4)))

        objective = DistributionMatchingObjective(SAMPLE, field, edm_teacher, [5.0], 1.0, 1.0)
        output = objective(
            lambda *args: SimpleNamespace(sample=images), torch.zeros_like(images), seeded(1), critic=critic
        )
        return output.parts["critic"].mean()

    step = 0.1
    lower, middle, upper = (loss(shift).item() for shift in (-step, 0.0, step))
    minimum = step * (lower - upper) / (2 * (lower + upper - 2 * middle))  # of the parabola through the three losses
    assert abs(minimum) < 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_each_network_has_a_finite_gradient_and_the_random_state_is_unchanged(dtype: torch.dtype) -> None:
    networks = [make_smallest_unet().to(dtype), make_smallest_unet(num_class_embeds=2).to(dtype)]
    clean = torch.randn(4, 1, 8, 8, generator=seeded()).to(dtype)
    state = torch.get_rng_state()
    result = make_objective()(networks[0], clean, seeded(), critic=networks[1])
    result.loss.backward()
    assert result.loss.dtype == torch.float32 and torch.equal(torch.get_rng_state(), state)
    for network in networks:
        gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
        assert gradients and all(gradient.isfinite().all() for gradient in gradients)


def test_each_sample_has_its_own_generator() -> None:
    clean = torch.randn(3, 1, 8, 8, generator=seeded())
    model, critic = make_smallest_unet(), make_smallest_unet(num_class_embeds=2)
    objective = make_objective(aug_dim=1.0)
    together = objective(model, clean, [seeded(i) for i in range(3)], critic=critic).per_sample
    alone = [objective(model, clean[i : i + 1], [seeded(i)], critic=critic).per_sample for i in range(3)]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-4)


def test_errors_name_the_argument() -> None:
    for options, message in (
        ({"guidance_scale": math.nan}, "`guidance_scale` must be a finite number, but is nan"),
        ({"guidance_scale": 2.0, "num_classes": 3}, "needs `num_classes` and `null_class`"),
        ({"sigmas": []}, "`sigmas` must be finite, positive and strictly decreasing"),
        ({"sigmas": [1.0, 2.0]}, "`sigmas` must be finite, positive and strictly decreasing"),
        ({"sigmas": [math.inf, 2.0]}, "`sigmas` must be finite, positive and strictly decreasing"),
        ({"sigmas": [1.0, 0.0]}, "`sigmas` must be finite, positive and strictly decreasing"),
        ({"data_std": 0.0}, "`data_std` must be a finite number > 0"),
        ({"aug_dim": 1e-3}, "`aug_dim` = 0.001 is too small to train"),
    ):
        with pytest.raises(ValueError, match=message):
            make_objective(**options)
    networks = {"critic": make_smallest_unet(num_class_embeds=2)}
    with pytest.raises(ValueError, match="`class_labels` go with `num_classes` of the objective, which is 3"):
        make_objective(num_classes=3)(make_smallest_unet(), torch.zeros(1, 1, 8, 8), **networks)
    with pytest.raises(ValueError, match="`clean` must be finite"):
        make_objective()(make_smallest_unet(), torch.full((1, 1, 8, 8), math.nan), **networks)
