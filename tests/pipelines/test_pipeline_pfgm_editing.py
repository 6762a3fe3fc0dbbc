"""Encoding and decoding, interpolation, change of class, and the forms in which images are passed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_pfgm import HemisphereLatents, PFGMEditingPipeline, PFGMPipeline, PoissonFlow, PoissonFlowScheduler
from diffusers_pfgm.pipelines.inputs import images_to_tensor
from tests.networks import ExactNetwork, make_tiny_pipeline, make_tiny_unet, seeded

NAMES = {0: "dark", 1: "bright"}
LABELS = torch.arange(6) % 2
STEPS = {"num_inference_steps": 30, "tolerance": 1e-6}


@pytest.fixture(scope="module")
def charges() -> torch.Tensor:
    """Three dark and three bright images (6, 1, 4, 4) in [-1, 1]."""
    noise = 0.2 * torch.randn(6, 1, 4, 4, generator=seeded(), dtype=torch.float64)
    return (torch.tensor([-0.4, 0.4], dtype=torch.float64)[LABELS].view(-1, 1, 1, 1) + noise).clamp(-0.9, 0.9)


@pytest.fixture
def pipe(charges: torch.Tensor) -> PFGMEditingPipeline:
    scheduler = PoissonFlowScheduler(prediction_type="epsilon", sigma_min=0.02, sigma_max=100.0)
    network = ExactNetwork(charges, scheduler.parameterization, scheduler.config.aug_dim, LABELS)
    pipe = PFGMEditingPipeline(network, scheduler, NAMES)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def nearest(images: torch.Tensor, charges: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances of images in [0, 1] to their nearest charges, and the indices of these."""
    nearest = torch.cdist((images * 2 - 1).flatten(1), charges.flatten(1)).min(1)
    return nearest.values, nearest.indices


@pytest.mark.slow
@pytest.mark.parametrize("options", [STEPS, {"tolerance": 1e-7}])
def test_images_are_recovered_with_their_own_class(
    pipe: PFGMEditingPipeline, charges: torch.Tensor, options: dict[str, Any]
) -> None:
    images = charges / 2 + 0.5 + 0.005 * torch.randn(charges.shape, generator=seeded(1), dtype=torch.float64)
    encoded = pipe.encode(images, LABELS, **options)
    assert encoded.latents.shape == charges.shape and encoded.latents.dtype == torch.float64
    assert 10 < encoded.latents.abs().max() < 1e5 and encoded.nfe == len(pipe.unet.calls)
    back = pipe.decode(encoded.latents, LABELS, output_type="pt", **options)
    assert (back.images - images).norm() / images.norm() < 1e-5
    edited = pipe(images, [NAMES[label] for label in LABELS.tolist()], output_type="pt", **options)
    assert torch.allclose(edited.images, back.images, atol=1e-6) and edited.nfe == encoded.nfe + back.nfe


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_another_class_leads_to_a_charge_of_that_class(
    pipe: PFGMEditingPipeline, charges: torch.Tensor, guidance_scale: float
) -> None:
    output = pipe(charges / 2 + 0.5, LABELS, 1 - LABELS, guidance_scale, output_type="pt", tolerance=1e-4)
    distance, index = nearest(output.images, charges)
    assert (LABELS[index] == 1 - LABELS).all()
    if guidance_scale == 1:
        assert distance.max() < 0.2  # the kernel at σ_min is as wide: 0.02 in each of 16 directions, with a heavy tail
    latents = pipe.encode(charges / 2 + 0.5, LABELS, tolerance=1e-4).latents
    expected = pipe.decode(latents, 1 - LABELS, output_type="pt", tolerance=1e-4, guidance_scale=guidance_scale)
    assert torch.allclose(output.images, expected.images, atol=1e-5)  # direction times radius is rounded


def test_temperature_scales_the_latents_radius(pipe: PFGMEditingPipeline, charges: torch.Tensor) -> None:
    images = charges[:2] / 2 + 0.5
    latents = pipe.encode(images, LABELS[:2], **STEPS).latents
    expected = pipe.decode(latents / 2, LABELS[:2], output_type="pt", **STEPS).images
    cooled = pipe(images, LABELS[:2], temperature=0.5, output_type="pt", **STEPS).images
    assert torch.allclose(cooled, expected, atol=1e-6) and (cooled - images).abs().max() > 1e-4


@pytest.mark.slow
def test_paths_start_and_end_at_their_images(pipe: PFGMEditingPipeline, charges: torch.Tensor) -> None:
    images = charges / 2 + 0.5
    first, second = images[[0, 1]], images[[2, 3]]  # both have the classes 0 and 1
    output = pipe.interpolate(first, second, 4, [0, 1], output_type="pt", **STEPS)
    paths = output.images.view(2, 4, 1, 4, 4)
    assert torch.allclose(paths[:, 0], first, atol=1e-4) and torch.allclose(paths[:, -1], second, atol=1e-4)
    assert (LABELS[nearest(output.images, charges)[1]].view(2, 4) == torch.tensor([[0], [1]])).all()
    across_classes = pipe.interpolate(first[:1], second[1:], 3, output_type="pt", **STEPS).images  # across classes
    assert torch.allclose(across_classes[[0, -1]], torch.cat([first[:1], second[1:]]), atol=1e-4)
    assert len(pipe.interpolate(first, second, 3, "dark", num_inference_steps=30).images) == 6


@pytest.mark.slow
def test_a_folder_of_the_generating_pipeline_loads(tmp_path: Path) -> None:
    unet = make_tiny_unet()
    PFGMPipeline(unet, PoissonFlowScheduler(max_norm=300.0, sigma_min=1.0)).save_pretrained(tmp_path)
    pipe = PFGMEditingPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    images = torch.rand(2, 1, 8, 8, generator=seeded())
    encoded = pipe.encode(images, num_inference_steps=8)
    expected = PoissonFlow(unet, pipe.scheduler).encode(images * 2 - 1, 8)
    assert torch.allclose(encoded.latents, expected.latents, rtol=1e-4) and encoded.nfe == expected.nfe
    state = torch.random.get_rng_state()
    decoded, nfe = pipe.decode(encoded.latents, num_inference_steps=8, return_dict=False)
    assert torch.equal(torch.random.get_rng_state(), state) and nfe > 8
    assert [image.size for image in decoded] == [(8, 8)] * 2
    again = pipe.encode(decoded, num_inference_steps=8).latents  # images of 256 pixel values
    angle = HemisphereLatents.from_latents(again).direction * HemisphereLatents.from_latents(encoded.latents).direction
    assert (angle.flatten(1).sum(1) > 0.9).all()
    pipe.save_pretrained(tmp_path / "again")
    assert isinstance(PFGMPipeline.from_pretrained(tmp_path / "again"), PFGMPipeline)


def test_bad_requests_are_explained(pipe: PFGMEditingPipeline, charges: torch.Tensor) -> None:
    images = charges[:2] / 2 + 0.5
    for num in (1, 2.5):
        with pytest.raises(ValueError, match=f"`num` must be a whole number >= 2, the ends included, but is {num}"):
            pipe.interpolate(images, images, num)
    with pytest.raises(ValueError, match="`class_labels` are 3, but the batch has 2 samples"):
        pipe.encode(images, [0, 1, 0])
    with pytest.raises(ValueError, match=r"`class_labels` has 'grey', but the classes are \['bright', 'dark'\]"):
        pipe(images, "dark", "grey", num_inference_steps=30)
    with pytest.raises(ValueError, match="`guidance_scale` must be a finite number"):
        pipe(images, "dark", "bright", float("nan"), num_inference_steps=30)
    with pytest.raises(ValueError, match="`temperature` must be a finite number > 0, but is 0"):
        pipe(images, "dark", temperature=0.0, num_inference_steps=30)
    with pytest.raises(ValueError, match="`output_type` must be 'pil', 'np', 'pt' or 'latent', but is 'png'"):
        pipe.decode(charges[:2], "dark", output_type="png")
    before = len(pipe.unet.calls)
    with pytest.raises(ValueError, match="`output_type` must be"):
        pipe(images, "dark", output_type="png")
    with pytest.raises(ValueError, match="`output_type` must be"):
        pipe.interpolate(images, images, output_type="png")
    with pytest.raises(ValueError, match="`first_images` and `second_images` must be pairs, but are 2 and 1"):
        pipe.interpolate(images, images[:1], class_labels="dark", num_inference_steps=30)
    with pytest.raises(ValueError, match="has 'grey'"):
        pipe(images, "dark", "grey")
    with pytest.raises(ValueError, match="`guidance_scale` = 3 needs `class_labels`"):
        pipe(images, guidance_scale=3)
    with pytest.raises(ValueError, match="`temperature`"):
        pipe(images, temperature=-1)
    assert len(pipe.unet.calls) == before  # before the images are encoded
    plain = make_tiny_pipeline()
    plain = PFGMEditingPipeline(plain.unet, plain.scheduler)
    plain.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="`class_labels` were given, but the network has no classes"):
        plain.encode(torch.rand(1, 1, 8, 8), 3)


def config(channels: int = 1, size: Any = (4, 6)) -> SimpleNamespace:
    return SimpleNamespace(in_channels=channels, sample_size=size)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_images_are_accepted_in_every_form(channels: int, mode: str) -> None:
    pixels = torch.randint(256, (3, 4, 6, channels), generator=seeded(), dtype=torch.uint8).numpy()
    expected = torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 127.5 - 1
    pil = [Image.fromarray(image.squeeze()) for image in pixels]
    assert {image.mode for image in pil} == {mode}
    for images, dtype in (
        (pil, torch.float32),
        (pixels / 255, torch.float64),
        ((pixels / 255).astype(np.float32), torch.float32),
        (expected / 2 + 0.5, torch.float64),
        ((expected / 2 + 0.5).float(), torch.float32),
    ):
        data = images_to_tensor(images, config(channels))
        assert data.dtype == dtype and data.shape == (3, channels, 4, 6)
        assert torch.allclose(data.double(), expected, atol=1e-6)
    assert torch.equal(images_to_tensor(pil[0], config(channels, None)), images_to_tensor(pil[:1], config(channels)))
    assert images_to_tensor((expected / 2 + 0.5).half().clamp(0, 1), config(channels)).dtype == torch.float32


def test_images_that_do_not_fit_are_explained() -> None:
    gray, good = Image.new("L", (6, 4)), torch.full((2, 1, 4, 6), 0.5)
    bad = good.clone()
    bad[1, 0, 2, 3] = float("nan")
    for images, message in (
        ([gray, gray.convert("RGB")], r"mode 'L' for a network of 1 channels, but index 1 is one of mode 'RGB'"),
        ([good], "must be PIL images of mode 'L' .* but index 0 is Tensor"),
        ([gray, gray.resize((5, 5))], r"of one size, but have the sizes \[\(5, 5\), \(6, 4\)\]"),
        ([], r"must be one or more of one size, but have the sizes \[\]"),
        (gray.resize((4, 6)), r"width \(1, 4, 6\) for this network, but are \(B, C, H, W\) = \(1, 1, 6, 4\)"),
        (good.expand(2, 3, 4, 6), r"\(1, 4, 6\) for this network, but are \(B, C, H, W\) = \(2, 3, 4, 6\)"),
        (good[:0], r"must be one or more .* but are \(B, C, H, W\) = \(0, 1, 4, 6\)"),
        (np.zeros((4, 6)), r"as an array must have the shape \(B, H, W, C\), but has \(4, 6\)"),
        (np.zeros((1, 4, 6, 1), np.uint8), r"are torch.uint8. Divide bytes by 255"),
        ("gray.png", r"must be PIL images, or an array .* but are str\.$"),
        (good * 4, r"must be in \[0, 1\], but go from 2 to 2"),
        (good * -1, r"must be in \[0, 1\], but go from -0.5 to -0.5. Pass images / 2 \+ 0.5"),
        (bad, "`images`.*NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            images_to_tensor(images, config())
