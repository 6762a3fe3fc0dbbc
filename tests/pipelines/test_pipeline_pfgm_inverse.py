"""Inverse problems with exact fields, saved networks and classes, and arguments that are rejected."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler
from torch.utils.checkpoint import checkpoint

from diffusers_pfgm import (
    Blur,
    ChargeField,
    CompressedSensing,
    Inpainting,
    LinearOperator,
    Parameterization,
    PFGMInversePipeline,
    PoissonFlowScheduler,
    SuperResolution,
)
from tests.networks import ExactNetwork, make_tiny_pipeline, seeded

UPPER_HALF = Inpainting(torch.arange(8).unsqueeze(1) < 4)


@pytest.fixture(scope="module")
def charges(digits: torch.Tensor) -> torch.Tensor:
    return digits[:10].float()


def quiet(network: Any, scheduler: Any) -> PFGMInversePipeline:
    pipe = PFGMInversePipeline(network, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pipeline_of(charges: torch.Tensor, aug_dim: float | None = 1.0) -> PFGMInversePipeline:
    return quiet(ChargeField(charges, aug_dim), PoissonFlowScheduler(aug_dim=aug_dim))


@pytest.mark.parametrize("aug_dim", [1.0, 64.0, None])
@pytest.mark.parametrize("name", ["inpainting", "super-resolution", "blur", "compressed sensing"])
def test_guidance_recovers_the_measured_images(name: str, aug_dim: float | None, charges: torch.Tensor) -> None:
    operators = {
        "inpainting": UPPER_HALF,
        "super-resolution": SuperResolution(2),
        "blur": Blur(torch.ones(3, 3) / 9),
        "compressed sensing": CompressedSensing((1, 8, 8), 20, seeded()),
    }
    y = operators[name](charges)
    y = y + 0.05 * torch.randn(y.shape, generator=seeded(1))
    output = pipeline_of(charges, aug_dim)(y, operators[name], 0.05, generator=seeded(), output_type="pt")
    right = (torch.cdist(output.samples.flatten(1), charges.flatten(1)).argmin(1) == torch.arange(10)).double().mean()
    assert right >= 0.8 and output.nfe == 40 and output.decodes_per_sweep is None
    assert torch.allclose(output.images, (output.samples / 2 + 0.5).clamp(0, 1))


def test_chains_recover_the_measured_images(charges: torch.Tensor) -> None:
    pipe, y = pipeline_of(charges), UPPER_HALF(charges[:4])
    y = y + 0.5 * torch.randn(y.shape, generator=seeded(1))
    generators = [seeded(i) for i in range(4)]
    output = pipe(y, UPPER_HALF, 0.5, "latent", num_sweeps=4, generator=generators, output_type="pt")
    assert torch.allclose(output.samples, charges[:4], atol=0.05)
    assert output.decodes_per_sweep > 2 and 0 <= output.acceptance <= 1 and output.nfe > 4 * 2 * 15


def test_many_samples_of_one_measurement(charges: torch.Tensor) -> None:
    generators = [seeded(i) for i in range(5)]
    pipe, y = pipeline_of(charges), UPPER_HALF(charges[:1])
    output = pipe(y, UPPER_HALF, 1.5, batch_size=5, generator=generators, output_type="np")
    assert output.images.shape == (5, 8, 8, 1)
    alone = pipe(y, UPPER_HALF, 1.5, generator=[seeded(3)]).samples
    assert torch.allclose(output.samples[3:4], alone, atol=1e-4)
    chains = pipe(y, UPPER_HALF, 1.5, "latent", num_sweeps=1, batch_size=5, generator=seeded())
    assert chains.samples.shape == (5, 1, 8, 8)


def test_unobserved_pixels_may_have_any_value(charges: torch.Tensor) -> None:
    pipe, y = pipeline_of(charges), charges[:2].clone()
    clean = pipe(UPPER_HALF(y), UPPER_HALF, generator=seeded()).samples
    y[:, :, 4:] = math.nan
    assert torch.equal(pipe(y, UPPER_HALF, generator=seeded()).samples, clean)


def test_replacement_costs_one_call_a_step(charges: torch.Tensor) -> None:
    output = pipeline_of(charges)(UPPER_HALF(charges), UPPER_HALF, method="replacement", generator=seeded())
    assert output.nfe == 20 and torch.allclose(UPPER_HALF(output.samples), UPPER_HALF(charges), atol=1e-3)
    assert len(output.images) == 10 and output.images[0].size == (8, 8)


def test_a_user_function_as_operator(charges: torch.Tensor) -> None:
    def brightness(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).exp().mean(1, keepdim=True)

    means = brightness(charges)
    output = pipeline_of(charges)(means[:1], brightness, 0.003, batch_size=16, generator=seeded(), return_dict=False)
    assert ((brightness(output[1]) - means[0]).abs() < 0.03).double().mean() > 0.6


def test_a_measurement_of_one_number(charges: torch.Tensor) -> None:
    def spread(y: torch.Tensor) -> torch.Tensor:
        return y.view(-1, 1, 1, 1).expand(-1, 1, 8, 8) / 64

    for kind in (lambda measure: measure, lambda measure: LinearOperator(measure, spread)):
        one, many = kind(lambda x: x.mean((1, 2, 3))), kind(lambda x: x.mean((1, 2, 3)).unsqueeze(1))
        for method in ("guidance", "latent"):
            pipe, options = pipeline_of(charges), {"num_inference_steps": 5, "num_sweeps": 1}
            output = pipe(one(charges[:2]), one, 0.05, method, generator=seeded(), **options)
            same = pipe(many(charges[:2]), many, 0.05, method, generator=seeded(), **options)
            assert torch.allclose(output.samples, same.samples, atol=1e-5)


def spectrum(x: torch.Tensor) -> torch.Tensor:
    return torch.fft.fft2(x, norm="ortho")[..., :3]  # undersampled, as in magnetic resonance


def image(y: torch.Tensor) -> torch.Tensor:
    return torch.fft.ifft2(torch.nn.functional.pad(y, (0, 5)), norm="ortho").real


@pytest.mark.parametrize("method", ["guidance", "replacement", "latent"])
@pytest.mark.parametrize("linear", [False, True])
def test_a_complex_measurement_is_one_of_real_and_imaginary_parts(
    method: str, linear: bool, charges: torch.Tensor
) -> None:
    if method == "replacement" and not linear:
        return

    def parts(x: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(spectrum(x))

    whole: Any = LinearOperator(spectrum, image) if linear else spectrum
    halves: Any = LinearOperator(parts, lambda y: image(torch.view_as_complex(y))) if linear else parts
    noise = 0.2 * torch.randn(4, 1, 8, 3, 2, generator=seeded(1))
    y, pipe = parts(charges[:4]) + noise, pipeline_of(charges)
    options: dict[str, Any] = {"noise_std": 0.2, "method": method, "num_sweeps": 2}
    samples = pipe(torch.view_as_complex(y), whole, generator=seeded(), **options).samples
    expected = pipe(y, halves, generator=seeded(), **options).samples
    # The pseudo-inverse of the part of the noise outside the operator's range depends on the solver's tolerance.
    assert torch.allclose(samples, expected, atol=0.05 if method == "replacement" else 1e-3)
    if method != "replacement":
        assert torch.equal(torch.cdist(samples.flatten(1), charges.flatten(1)).argmin(1), torch.arange(4))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["guidance", "latent"])
@pytest.mark.parametrize("kind", ["mask", "operator", "function"])
def test_each_image_may_be_measured_differently(method: str, kind: str, charges: torch.Tensor) -> None:
    row, column = torch.arange(8).unsqueeze(1), torch.arange(8)
    masks = torch.stack([row + 0 * column < 4, column + 0 * row < 5, (row + column) % 2 == 0]).unsqueeze(1)

    def operator_of(masks: torch.Tensor) -> Any:
        if kind == "mask":
            return Inpainting(masks)
        shade = masks.float() * 0.7
        return LinearOperator(lambda x: x * shade, lambda y: y * shade) if kind == "operator" else lambda x: x * shade

    pipe, operator, options = (
        pipeline_of(charges),
        operator_of(masks),
        {"noise_std": 0.4, "num_sweeps": 2, "num_inference_steps": 8},
    )
    y = operator(charges[:3])
    together = pipe(y, operator, method=method, generator=[seeded(i) for i in range(3)], **options).samples
    for row in range(3):
        rows = slice(row, row + 1)
        alone = pipe(y[rows], operator_of(masks[rows]), method=method, generator=[seeded(row)], **options).samples
        assert torch.allclose(together[rows], alone, atol=1e-3)


def test_a_function_without_forward_derivatives_is_the_operator_that_it_is(charges: torch.Tensor) -> None:
    turn = torch.tensor([[[0.9, -0.2, 0.0], [0.2, 0.9, 0.0]]])
    grid = torch.nn.functional.affine_grid(turn, (1, 1, 8, 8), align_corners=False)

    def rotation(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.grid_sample(x, grid.expand(len(x), -1, -1, -1), align_corners=False)

    matrix = rotation(torch.eye(64).view(64, 1, 8, 8)).flatten(1).T
    operator = LinearOperator(
        lambda x: (x.flatten(1) @ matrix.T).view_as(x), lambda y: (y.flatten(1) @ matrix).view_as(y)
    )
    pipe, y = pipeline_of(charges), rotation(charges[:4])
    expected = pipe(y, operator, generator=seeded()).samples
    with torch.inference_mode():
        samples = pipe(y, rotation, generator=seeded()).samples
    assert torch.allclose(samples, expected, atol=1e-2)
    assert torch.equal(torch.cdist(samples.flatten(1), charges.flatten(1)).argmin(1), torch.arange(4))


def test_classes(charges: torch.Tensor) -> None:
    parameterization, labels = Parameterization("sample"), torch.arange(10) // 5
    network = ExactNetwork(charges, parameterization, labels=labels)
    pipe = quiet(network, PoissonFlowScheduler(prediction_type="sample"))
    nothing = LinearOperator(lambda x: 0 * x, lambda y: 0 * y)
    options: dict[str, Any] = {"class_labels": [0, 1, 1], "num_inference_steps": 12, "generator": seeded()}
    for method in ("guidance", "latent"):
        output = pipe(torch.zeros(3, 1, 8, 8), nothing, 1.0, method, num_sweeps=1, **options)
        nearest = torch.cdist(output.samples.flatten(1), charges.flatten(1)).argmin(1)
        assert (labels[nearest] == torch.tensor([0, 1, 1])).all()
    with pytest.raises(ValueError, match="`class_labels` are 2, but the batch has 3"):
        pipe(torch.zeros(3, 1, 8, 8), nothing, 1.0, class_labels=[0, 1])


@pytest.mark.slow
def test_a_saved_network(tmp_path: Path) -> None:
    make_tiny_pipeline().save_pretrained(tmp_path)
    pipe = PFGMInversePipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    y = UPPER_HALF(torch.rand(2, 1, 8, 8, generator=seeded()) * 2 - 1)
    steps = []
    options: dict[str, Any] = {
        "num_inference_steps": 4,
        "callback_on_step_end": lambda pipe, step, timestep, tensors: steps.append(step) or {},
    }
    for method, low in (("guidance", 8), ("replacement", 4), ("latent", 8 + 29 + 15)):
        output = pipe(y, UPPER_HALF, 0.5, method, num_sweeps=1, generator=seeded(), **options)
        assert output.samples.isfinite().all() and output.nfe >= low and len(output.images) == 2
    assert steps == [0, 1, 2, 3] * 3


def test_a_scheduler_of_diffusers(charges: torch.Tensor) -> None:
    parameterization = PoissonFlowScheduler(aug_dim=None, prediction_type="epsilon", sigma_data=0.5).parameterization
    network = ExactNetwork(charges, parameterization, None)
    pipe = quiet(network, EDMDPMSolverMultistepScheduler(prediction_type="epsilon", sigma_data=0.5))
    output = pipe(UPPER_HALF(charges), UPPER_HALF, generator=seeded())
    assert (torch.cdist(output.samples.flatten(1), charges.flatten(1)).argmin(1) == torch.arange(10)).sum() >= 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, r"`method` must be one of \('guidance', 'replacement', 'latent'\), but is 'magic'"),
        ({"method": "latent", "noise_std": 0.0}, "`noise_std` must be a finite number > 0 for 'latent'.*but is 0.0"),
        ({"noise_std": -1.0}, "`noise_std` must be a finite number >= 0, but is -1.0"),
        ({"measurement": torch.zeros(2, 1, 4, 4)}, r"`measurement` must have the shape \(2, 1, 8, 8\)"),
        ({"batch_size": 3}, r"\(3, 1, 8, 8\), or \(1, 1, 8, 8\) for all, .* but has \(2, 1, 8, 8\)"),
        ({"measurement": torch.full((2, 1, 8, 8), math.nan)}, "`measurement` must be finite, but index 0, 1"),
        ({"measurement": object()}, r"`measurement` must be a tensor \(B, ...\) of numbers, but is object"),
        (
            {"measurement": torch.full((2, 1, 8, 8), 255.0)},
            r"norm 1442, but of images .* at most .*Scale bytes",
        ),
        ({"operator": LinearOperator(lambda x: x, lambda y: 2 * y)}, "`operator` has the wrong adjoint"),
        ({"operator": Inpainting(torch.ones(3, 1, 8, 8))}, r"`mask` .* or \(2, 1, 8, 8\) for a mask for each"),
        (
            {"measurement": torch.zeros(2, 1, 8, 8) + 0j},
            "`measurement` is complex, but `operator` returns real numbers",
        ),
        ({"operator": torch.fft.fft2}, "`measurement` is real, but `operator` returns complex numbers"),
        ({"operator": lambda x: x.mean(0, keepdim=True)}, "`operator` returns 1 measurements of 2 images"),
        ({"output_type": "jpg"}, "`output_type` must be"),
        ({"class_labels": 1}, "network has no classes"),
        ({"method": "latent", "num_sweeps": 0}, "`num_sweeps` must be a whole number >= 1, but is 0"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str, charges: torch.Tensor) -> None:
    arguments = {"measurement": torch.zeros(2, 1, 8, 8), "operator": UPPER_HALF, "num_inference_steps": 2} | options
    with pytest.raises(ValueError, match=message):
        pipeline_of(charges)(**arguments)


def test_a_scheduler_without_latents_is_refused_before_the_first_call(charges: torch.Tensor) -> None:
    options = {"prediction_type": "v_prediction", "beta_schedule": "linear", "rescale_betas_zero_snr": True}
    scheduler = PoissonFlowScheduler(None, **options)
    network = ExactNetwork(charges, scheduler.parameterization)
    with pytest.raises(ValueError, match="`scheduler` begins at infinite sigma"):
        PFGMInversePipeline(network, scheduler)(torch.zeros(1, 1, 8, 8), UPPER_HALF, 0.5, "latent")
    assert not network.calls


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda x: x.sum(), "one number for all"),
        (lambda x: x.mean().item(), "float"),
        (lambda x: checkpoint(torch.sin, x, use_reentrant=True), "use_reentrant=False"),
    ],
)
def test_measurements_that_cannot_be_used_are_explained(measure: Any, message: str) -> None:
    pipe = PFGMInversePipeline(ChargeField(torch.rand(5, 1, 8, 8) * 2 - 1), PoissonFlowScheduler())
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match=message):
        pipe(torch.zeros(1, 1, 8, 8), measure, num_inference_steps=3, output_type="pt")


def test_a_measurement_may_be_an_array() -> None:
    pipe = PFGMInversePipeline(ChargeField(torch.rand(5, 1, 8, 8, generator=seeded()) * 2 - 1), PoissonFlowScheduler())
    pipe.set_progress_bar_config(disable=True)
    upper = Inpainting(torch.arange(8).unsqueeze(1) < 4)
    measurement = upper(torch.rand(1, 1, 8, 8, generator=seeded(1)))
    first, second = (
        pipe(each, upper, generator=seeded(), output_type="pt").samples for each in (measurement, measurement.numpy())
    )
    assert torch.equal(first, second)
