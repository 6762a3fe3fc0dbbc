"""Dequantization and bits per dimension of images with discrete pixel values."""

import math

import pytest
import torch

from diffusers_pfgm.flow.dequantization import bits_per_dim, dequantize
from tests.networks import seeded


@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_points_are_uniform_in_their_bins(num_levels: int) -> None:
    levels = torch.randint(num_levels, (2000, 3), generator=seeded())
    images = levels * (2 / (num_levels - 1)) - 1
    offset = (dequantize(images, num_levels, seeded(1)) - images) * (num_levels - 1) / 2
    assert offset.abs().max() <= 0.5001 and abs(offset.mean()) < 0.02
    assert offset.std() == pytest.approx(1 / math.sqrt(12), rel=0.02)


@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_independent_uniform_pixels_have_log2_num_levels_bits(num_levels: int) -> None:
    # Uniform on all bins together, whose total width is 2 L / (L - 1)
    log_prob = torch.tensor([-64 * math.log(2 * num_levels / (num_levels - 1))])
    assert bits_per_dim(log_prob, 64, num_levels).item() == pytest.approx(math.log2(num_levels), rel=1e-6)


def test_the_point_of_an_image_does_not_depend_on_the_batch() -> None:
    images = torch.zeros(3, 1, 2, 2) + 1 / 255
    together = dequantize(images, 256, [seeded(i) for i in range(3)])
    assert torch.equal(together[2:], dequantize(images[2:], 256, [seeded(2)]))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.bfloat16])
def test_points_of_whole_numbers_and_half_precision_are_those_of_float32(dtype: torch.dtype) -> None:
    images = torch.tensor([[-1.0, 0.0, 1.0]])
    assert torch.equal(dequantize(images.to(dtype), 3, seeded()), dequantize(images, 3, seeded()))


@pytest.mark.parametrize("pixel", [0.5 / 255, -1.5, 255.0, math.nan])
def test_pixels_between_levels_raise(pixel: float) -> None:
    with pytest.raises(ValueError, match=r"`images` must be in \[-1, 1\] with each pixel at one of `num_levels` = 256"):
        dequantize(torch.tensor([[pixel]]))


@pytest.mark.parametrize("num_levels", [1, 0, 2.5])
def test_num_levels_is_checked(num_levels: float) -> None:
    with pytest.raises(
        ValueError, match=f"`num_levels` must be a whole number >= 2, such as 256 for 8 bits, but is {num_levels}"
    ):
        bits_per_dim(torch.zeros(1), 4, num_levels)  # type: ignore[arg-type]
