"""The distance agrees with closed forms, and the image grid has the right layout."""

import math

import numpy as np
import pytest
import torch

from diffusers_pfgm.metrics.sliced_wasserstein import sliced_wasserstein
from diffusers_pfgm.plots.image_grid import image_grid
from tests.networks import seeded


def test_distance_of_a_shift_is_its_length_over_root_n() -> None:
    # In the direction u a shift s is s·u, whose mean square over directions is ‖s‖² / N.
    points = torch.randn(20, 8, generator=seeded())
    shift = torch.full((8,), 0.5)
    expected = shift.norm().item() / math.sqrt(8)
    assert sliced_wasserstein(points + shift, points, num_projections=20_000) == pytest.approx(expected, rel=0.02)


def test_distance_takes_images_and_sets_of_other_sizes() -> None:
    images = torch.rand(50, 1, 4, 4, generator=seeded())
    assert sliced_wasserstein(images, images) == 0
    assert sliced_wasserstein(images, images.repeat(2, 1, 1, 1)) == pytest.approx(0, abs=1e-6)
    assert sliced_wasserstein(images, images[:20]) > 0.01


def test_grid_places_images_row_by_row() -> None:
    images = torch.linspace(0, 1, 5).view(5, 1, 1, 1).expand(5, 1, 2, 3)
    grid = image_grid(images, scale=2)
    assert grid.size == (3 * (6 + 4), 2 * (4 + 4)) and grid.mode == "L"
    centers = [grid.getpixel((5 + 10 * column, 4 + 8 * row)) for row in range(2) for column in range(3)]
    assert centers == [0, 64, 128, 191, 255, 0]
    assert image_grid(images.expand(5, 3, 2, 3), columns=5).size == (5 * 7, 6)


def test_distance_depends_on_its_arguments_only() -> None:
    first, second = torch.randn(40, 8, generator=seeded()), torch.randn(40, 8, generator=seeded(1))
    few, many = (sliced_wasserstein(first, second, n) for n in (5, 500))
    assert few == sliced_wasserstein(first, second, 5) and few != many
    assert few != sliced_wasserstein(first, second, 5, seed=1)


@pytest.mark.parametrize(
    "images", [torch.zeros(0, 1, 2, 2), torch.full((1, 1, 2, 2), -1.0), torch.full((1, 1, 2, 2), 255)]
)
def test_grid_refuses_other_values(images: torch.Tensor) -> None:
    # Their bytes would wrap around.
    with pytest.raises(
        ValueError, match=r"`images` must be one or more with values in \[0, 1\], but (are none|go from)"
    ):
        image_grid(images)
    for options in ({"scale": 0}, {"columns": 0}, {"columns": 1.5}):
        with pytest.raises(ValueError, match="must be a whole number >= 1"):
            image_grid(torch.zeros(2, 1, 2, 2), **options)


def test_points_with_a_gradient_and_no_points() -> None:
    points = torch.randn(20, 8, generator=seeded())
    assert sliced_wasserstein((points + 1).requires_grad_(), points) == sliced_wasserstein(points + 1, points)
    with pytest.raises(ValueError, match="`samples` must be at least one point"):
        sliced_wasserstein(points[:0], points)


def test_grid_enlarges_pixels_between_white_lines() -> None:
    grid = image_grid(torch.tensor([[[[0.0, 1.0]]]]), scale=2)
    assert np.array_equal(np.asarray(grid)[2:4], [[255, 255, 0, 0, 255, 255, 255, 255]] * 2)
    assert np.asarray(grid)[[0, 1, 4, 5]].min() == 255
