"""Pipelines on an accelerator make the images that they make on the CPU, in every dtype, without waiting for it."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from diffusers_pfgm import (
    ChargeField,
    Inpainting,
    PFGMEditingPipeline,
    PFGMInversePipeline,
    PFGMLikelihoodPipeline,
    PFGMPipeline,
    PoissonFlowScheduler,
    fit_sigmas,
    pretrained_model,
)
from tests.accelerator.device import DEVICE, count_waits, needs_accelerator, needs_cuda
from tests.networks import seeded

pytestmark = needs_accelerator

CHARGES = torch.rand(5, 1, 8, 8, generator=seeded()) * 2 - 1
LABELS = [3, 1, 4, 1]


@functools.cache
def pretrained(name: str = "mnist") -> PFGMPipeline:
    pipe = PFGMPipeline.from_pretrained(pretrained_model(name))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def on(device: torch.device | str, pipe: Any, dtype: torch.dtype = torch.float32) -> Any:
    """A pipeline of the same class with copies of the components on a device."""
    components = {"unet": type(pipe.unet).from_config(pipe.unet.config), "scheduler": pipe.scheduler}
    components["unet"].load_state_dict(pipe.unet.state_dict())
    moved = type(pipe)(**components, id2label=pipe.config.id2label).to(device, dtype)
    moved.set_progress_bar_config(disable=True)
    return moved


@functools.cache
def cpu_images(**options: Any) -> torch.Tensor:
    name = options.pop("name", "mnist")
    return pretrained(name)(class_labels=LABELS, generator=seeded(), output_type="pt", **options).images


def exact_pipeline(device: torch.device | str, aug_dim: float | None, prior: str, solver: str) -> PFGMPipeline:
    field = ChargeField(CHARGES, aug_dim, "epsilon").to(device)
    pipe = PFGMPipeline(field, PoissonFlowScheduler(aug_dim, prediction_type="epsilon", prior=prior, solver=solver))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("solver", ["multistep", "heun", "euler"])
@pytest.mark.parametrize("prior", ["plane", "shell", "hemisphere"])
@pytest.mark.parametrize("aug_dim", [1.0, 64.0, None])
def test_exact_fields_end_at_the_same_charges(aug_dim: float | None, prior: str, solver: str) -> None:
    options = {"num_inference_steps": 20, "output_type": "pt"}
    expected, found = (
        exact_pipeline(device, aug_dim, prior, solver)(32, generator=seeded(), **options).images.cpu()
        for device in ("cpu", DEVICE)
    )
    same = (found - expected).abs().amax((1, 2, 3)) < 1e-2
    assert same.float().mean() > 0.9  # rounding errors decide where a sample between two charges ends


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 0.02), (torch.float16, 0.05), (torch.bfloat16, 0.1)])
def test_a_network_in_every_dtype(dtype: torch.dtype, tolerance: float, guidance_scale: float) -> None:
    options = {"num_inference_steps": 10, "guidance_scale": guidance_scale}
    images = on(DEVICE, pretrained(), dtype)(
        class_labels=LABELS, generator=seeded(), output_type="pt", **options
    ).images
    assert (images.cpu().float() - cpu_images(**options)).abs().mean() < tolerance


def test_generators_of_the_device() -> None:
    pipe = on(DEVICE, pretrained())
    first, second, other = (
        pipe(2, 4, torch.Generator(DEVICE).manual_seed(seed), output_type="latent").images for seed in (0, 0, 1)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)
    each = [torch.Generator(DEVICE).manual_seed(seed) for seed in range(3)]
    assert pipe(3, 4, each, output_type="np").images.shape == (3, 28, 28, 1)


@pytest.mark.parametrize("calls", [1, 2])
def test_consistency_model(calls: int) -> None:
    options = {"num_inference_steps": calls, "guidance_scale": 2.0}
    images = on(DEVICE, pretrained("mnist_consistency"))(
        class_labels=LABELS, generator=seeded(), output_type="pt", **options
    ).images
    expected = cpu_images(name="mnist_consistency", **options)
    assert (images.cpu() - expected).abs().mean() < 0.03


@needs_cuda
@pytest.mark.parametrize("options", [{}, {"class_labels": LABELS}, {"class_labels": LABELS, "guidance_scale": 2.0}])
def test_steps_do_not_wait_for_the_device(options: dict[str, Any]) -> None:
    pipe = on(DEVICE, pretrained())
    counts = []
    for steps in (5, 5, 10):
        with count_waits() as waits:
            pipe(len(LABELS), steps, seeded(), output_type="latent", **options)
        counts.append(len(waits))
    assert counts[1] == counts[2], waits


@needs_cuda
def test_drawing_and_preparing_waits_at_most_a_few_times() -> None:
    pipe = on(DEVICE, pretrained())
    pipe(4, 2, seeded(), output_type="latent")
    with count_waits() as waits:
        pipe(4, 2, [seeded(seed) for seed in range(4)], output_type="latent", class_labels=LABELS)
    assert len(waits) <= 4, waits


def test_a_compiled_network() -> None:
    pipe = on(DEVICE, pretrained())
    options = {"num_inference_steps": 10, "guidance_scale": 2.0}
    pipe.unet = torch.compile(pipe.unet)
    images = pipe(class_labels=LABELS, generator=seeded(), output_type="pt", **options).images
    assert (images.cpu() - cpu_images(**options)).abs().mean() < 0.02


def test_adaptive_solver() -> None:
    pipe = on(DEVICE, pretrained())
    output = pipe(class_labels=LABELS, generator=seeded(), output_type="pt", tolerance=1e-2)
    expected = pretrained()(class_labels=LABELS, generator=seeded(), output_type="pt", tolerance=1e-2).images
    assert output.nfe > 20 and (output.images.cpu() - expected).abs().mean() < 0.05


def test_editing() -> None:
    pipe = PFGMEditingPipeline(**on(DEVICE, pretrained()).components)
    pipe.set_progress_bar_config(disable=True)
    images = cpu_images(num_inference_steps=20)
    latents = pipe.encode(images, class_labels=LABELS, num_inference_steps=50).latents
    assert latents.device.type == DEVICE.type
    decoded = pipe.decode(latents, LABELS, 50, output_type="pt").images
    assert (decoded.cpu() - images).abs().amax() < 0.05
    path = pipe.interpolate(images[:1], images[1:2], 3, num_inference_steps=20, output_type="pt").images
    assert path.isfinite().all()


def test_likelihood() -> None:
    images = cpu_images(num_inference_steps=20)
    values = []
    for pipe in (on(DEVICE, pretrained()), pretrained()):
        likelihood = PFGMLikelihoodPipeline(**pipe.components)
        likelihood.set_progress_bar_config(disable=True)
        values.append(likelihood(images, LABELS, 10, generator=seeded(), num_levels=None).log_prob.cpu())
    torch.testing.assert_close(values[0], values[1], rtol=1e-2, atol=5.0)


@pytest.mark.parametrize("method", ["guidance", "latent"])
def test_inverse_problems(method: str) -> None:
    mask = torch.ones(28, 28)
    mask[:, 14:] = 0
    measure = Inpainting(mask.bool())
    pipe = PFGMInversePipeline(**on(DEVICE, pretrained()).components)
    pipe.set_progress_bar_config(disable=True)
    measured = measure(cpu_images(num_inference_steps=20)[:2] * 2 - 1)
    samples = pipe(measured, measure, 0.3, method, num_inference_steps=10, num_sweeps=2, generator=seeded()).samples
    error = (measure(samples.cpu().float()[:2]) - measured).square().mean().sqrt()
    assert samples.device.type == DEVICE.type and error < (
        0.2 if method == "guidance" else 0.3
    )  # of a black image 0.45


def test_fitted_steps() -> None:
    pipe = on(DEVICE, pretrained())
    labels = torch.arange(8)
    found, expected = (
        fit_sigmas(each.unet, each.scheduler, (1, 28, 28), seeded(), 8, class_labels=labels.to(each.device))
        for each in (pipe, pretrained())
    )
    assert torch.allclose(torch.tensor(found.config.sigma_knots), torch.tensor(expected.config.sigma_knots), rtol=0.05)
