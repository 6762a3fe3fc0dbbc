"""Densities of pictures in whole levels."""

import math

import pytest
import torch

from diffusers_pfgm.flow.dequantization import bits_per_dim, dequantize
from tests.conftest import seeded


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_a_point_lies_anywhere_in_its_bin(levels: int) -> None:
    level = torch.randint(levels, (2000, 3), generator=seeded())
    images = level * (2 / (levels - 1)) - 1
    offset = (dequantize(images, levels, seeded(1)) - images) * (levels - 1) / 2
    assert offset.abs().max() <= 0.5001 and abs(offset.mean()) < 0.02
    assert offset.std() == pytest.approx(1 / math.sqrt(12), rel=0.02)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_independent_uniform_pixels_take_log2_levels(levels: int) -> None:
    # Uniform on all bins together, whose width is 2 L / (L - 1)
    log_prob = torch.tensor([-64 * math.log(2 * levels / (levels - 1))])
    assert bits_per_dim(log_prob, 64, levels).item() == pytest.approx(math.log2(levels), rel=1e-6)


def test_a_picture_has_the_same_point_in_any_batch() -> None:
    images = torch.zeros(3, 1, 2, 2) + 1 / 255
    together = dequantize(images, 256, [seeded(i) for i in range(3)])
    assert torch.equal(together[2:], dequantize(images[2:], 256, [seeded(2)]))


@pytest.mark.parametrize("images", [torch.tensor([[0.5 / 255]]), torch.tensor([[-1.5]]), torch.tensor([[255.0]])])
def test_pixels_off_the_levels_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"`images` must be in \[-1, 1\] with each pixel at one of `num_levels` = 256"):
        dequantize(images)


@pytest.mark.parametrize("levels", [1, 0, 2.5])
def test_levels_are_checked(levels: float) -> None:
    with pytest.raises(
        ValueError, match=f"`num_levels` must be a whole number >= 2, such as 256 for 8 bits, but is {levels}"
    ):
        bits_per_dim(torch.zeros(1), 4, levels)  # type: ignore[arg-type]
