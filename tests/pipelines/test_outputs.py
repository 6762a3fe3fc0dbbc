"""Images of every size keep their pixel values when a pipeline returns them and takes them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from diffusers_pfgm import ChargeField, PFGMEditingPipeline, PFGMPipeline, PoissonFlowScheduler
from diffusers_pfgm.pipelines.inputs import images_to_tensor
from diffusers_pfgm.pipelines.outputs import postprocess
from diffusers_pfgm.plots.image_grid import image_grid, save_image_grid
from tests.networks import seeded

SIZES = [(1, 1), (1, 4), (4, 1), (3, 5)]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", SIZES)
def test_pil_images_hold_the_levels(channels: int, size: tuple[int, int]) -> None:
    pixel_values = torch.randint(256, (2, channels, *size), generator=seeded())
    images = postprocess(pixel_values / 127.5 - 1, "pil")
    for image, expected in zip(images, pixel_values, strict=True):
        assert image.size == size[::-1] and len(image.getbands()) == channels
        pixels = torch.tensor(np.array(image).reshape(*size, channels)).permute(2, 0, 1)
        assert torch.equal(pixels.long(), expected)
    config = ChargeField(torch.zeros(1, channels, *size)).config
    assert torch.allclose(images_to_tensor(images, config), pixel_values / 127.5 - 1, atol=1e-6)


def test_images_are_converted_as_by_diffusers() -> None:
    state = 2 * torch.randn(2, 3, 4, 6, generator=seeded())
    theirs = VaeImageProcessor(vae_scale_factor=1)
    assert torch.equal(postprocess(state, "pt"), theirs.postprocess(state, "pt"))
    assert np.array_equal(postprocess(state, "np"), theirs.postprocess(state, "np"))
    assert postprocess(state, "latent") is state
    for ours, expected in zip(postprocess(state, "pil"), theirs.postprocess(state, "pil"), strict=True):
        assert np.array_equal(np.array(ours), np.array(expected))


@pytest.mark.parametrize("size", SIZES[:3])
def test_tiny_gray_images_go_through_a_pipeline(size: tuple[int, int]) -> None:
    charges = torch.tensor([-0.6, 0.6]).view(2, 1, 1, 1).expand(2, 1, *size).contiguous()
    pipe = PFGMPipeline(ChargeField(charges), PoissonFlowScheduler(sigma_max=200.0))
    pipe.set_progress_bar_config(disable=True)
    images = pipe(16, 30, seeded()).images
    assert {image.size for image in images} == {size[::-1]}
    pixel_values = (pipe(16, 30, seeded(), output_type="np").images * 255).round()[..., 0]
    assert np.array_equal(np.stack([np.array(image) for image in images]), pixel_values)
    assert np.isin(pixel_values, [51, 204]).mean() > 0.7  # ± 0.6; the rest end between the two
    editing = PFGMEditingPipeline(**pipe.components)
    editing.set_progress_bar_config(disable=True)
    again = editing(images[:3], num_inference_steps=40).images
    assert np.abs(np.stack([np.array(image) for image in again]) - pixel_values[:3]).max() <= 1


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_grid_of_single_pixels(channels: int, tmp_path: Path) -> None:
    values = torch.linspace(0, 1, 4 * channels).view(4, channels, 1, 1)
    grid = np.array(image_grid(values)).reshape(10, 10, channels)
    assert np.array_equal(grid[2::5, 2::5].flatten(), (values * 255).round().flatten().numpy())
    save_image_grid(tmp_path / "grid.jpg", values)  # JPEG has no transparency
    assert Image.open(tmp_path / "grid.jpg").mode == ("L" if channels < 3 else "RGB")
