"""Field lines and equipotentials obey the laws of electrostatics."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from diffusers_pfgm import posterior_mean
from diffusers_pfgm.plots import field_lines, normal_angles, plot_field_lines, potential
from tests.networks import seeded


def test_lines_go_from_their_starts_to_charges() -> None:
    charges = torch.tensor([[-1.0, 0.0], [0.2, 0.5], [1.0, -1.0]], dtype=torch.float64)
    starts = torch.randn(50, 3, generator=seeded(), dtype=torch.float64)
    starts[:, -1] = starts[:, -1].abs() + 0.5
    lines = field_lines(starts, charges)
    assert torch.equal(lines[0], starts) and (lines[-1, :, -1] == 0).all()
    assert (lines[:, :, -1].diff(dim=0) < 0).all()
    assert torch.cdist(lines[-1, :, :2], charges).min(1).values.max() < 1e-3


def test_lines_of_two_charges_keep_their_flux() -> None:
    # In the plane (N = 1) the sum of the angles at two equal charges is constant along a field line (Gauss).
    charges = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    angles = torch.linspace(0.2, math.pi - 0.3, 30, dtype=torch.float64)
    lines = field_lines(3 * torch.stack([angles.cos(), angles.sin()], dim=1), charges)[:150]
    angle_sums = sum(torch.atan2(lines[..., 1], lines[..., 0] - charge) for charge in charges.flatten())
    assert (angle_sums - angle_sums[0]).abs().max() < 1e-3


@pytest.mark.slow
def test_figure_has_both_panels() -> None:
    charges = torch.randn(5, 2, generator=seeded(), dtype=torch.float64)
    figure = plot_field_lines(charges[:, :1], charges)
    assert len(figure.axes) == 2 and len(figure.axes[0].lines) > 30 and len(figure.axes[1].lines) > 30


def test_lines_have_as_many_points_as_steps() -> None:
    starts = torch.tensor([[3.0, 2.0], [1.0, 4.0]], dtype=torch.float64)
    assert field_lines(starts, torch.zeros(1, 1, dtype=torch.float64), num_steps=10).shape == (11, 2, 2)


def test_lines_start_uniformly_on_hemispheres() -> None:
    charges = torch.randn(5, 2, generator=seeded(), dtype=torch.float64)
    flat, solid = plot_field_lines(charges[:, :1], charges).axes
    arc = torch.tensor(np.array([line.get_xydata()[0] for line in flat.lines[:60]]))
    dome = torch.tensor(np.array([np.array(line.get_data_3d())[:, 0] for line in solid.lines]))
    for points, law in ((arc, 2 / math.pi), (dome, 0.5)):  # mean z over radius
        radius = points.norm(dim=1)
        assert torch.allclose(radius, radius[0]) and (points[:, -1] > 0).all()
        assert torch.allclose(
            points.mean(0) / radius[0], torch.tensor([0.0] * (points.shape[1] - 1) + [law]).double(), atol=0.01
        )


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_potential_is_that_of_the_flow_and_harmonic(dim: int) -> None:
    charges = torch.randn(4, dim, generator=seeded(), dtype=torch.float64)
    points = torch.randn(6, dim + 1, generator=seeded(1), dtype=torch.float64)
    points[:, -1] = points[:, -1].abs()
    x, z = points[:, :-1], points[:, -1]
    mean = posterior_mean(x, z, charges)
    away = torch.cat([x - mean, z.unsqueeze(1)], dim=1)
    points = points.clone().requires_grad_()
    field = -torch.autograd.grad(potential(points, charges).sum(), points, create_graph=True)[0]
    assert torch.allclose(torch.cosine_similarity(field.detach(), away), torch.ones(6).double(), atol=1e-12)
    divergence = sum(torch.autograd.grad(field[:, i].sum(), points, retain_graph=True)[0][:, i] for i in range(dim + 1))
    assert divergence.abs().max() < 1e-10 * field.detach().norm(dim=1).max().clamp(min=1)


@pytest.mark.parametrize("dim", [1, 2])
def test_far_away_charges_act_as_one(dim: int) -> None:
    charges = torch.randn(9, dim, generator=seeded(), dtype=torch.float64)
    charges -= charges.mean(0)  # so that the next term decreases with the square of the distance
    points = torch.nn.functional.normalize(torch.randn(20, dim + 1, generator=seeded(1)).double(), dim=1) * 1e3
    law = -math.log(1e3) if dim == 1 else 1e-3
    assert torch.allclose(potential(points, charges), torch.full((20,), law).double(), rtol=1e-4)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_lines_cross_equipotentials_at_right_angles(dim: int) -> None:
    charges = torch.randn(5, dim, generator=seeded(), dtype=torch.float64)
    starts = 4 * torch.randn(40, dim + 1, generator=seeded(1), dtype=torch.float64)
    starts[:, -1] = starts[:, -1].abs() + 1
    worst = [normal_angles(field_lines(starts, charges, steps), charges) for steps in (100, 400)]
    assert worst[1].shape == (396, 40) and worst[1].max() < 0.01  # a line near a saddle point bends within a few steps
    assert worst[1].median() < worst[0].median() / 100  # fourth order would be 256
    bent = field_lines(starts, charges, 100) * torch.linspace(1, 1.3, 101).double().view(-1, 1, 1)
    assert normal_angles(bent, charges).median() > 10 * worst[0].median()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_angles_in_many_dimensions(dtype: torch.dtype) -> None:
    charges = torch.randn(5, 784, generator=seeded(), dtype=dtype)
    starts = 20 * torch.randn(3, 785, generator=seeded(1), dtype=dtype).abs()
    assert normal_angles(field_lines(starts, charges), charges).max() < 0.01  # although φ is less than 1e-1000


@pytest.mark.slow
def test_drawn_equipotentials_are_level() -> None:
    charges = torch.tensor([[-1.0], [0.4], [1.0]], dtype=torch.float64)
    flat, solid = plot_field_lines(charges, torch.cat([charges, charges.flip(0)], dim=1)).axes
    (contours,) = [collection for collection in flat.collections if hasattr(collection, "levels")]
    assert len(contours.get_paths()) == len(contours.levels) > 20
    drawn = 0
    for value, path in zip(contours.levels, contours.get_paths(), strict=True):
        if len(path.vertices) > 60:  # not a small loop around a charge, which is hidden by its dot
            drawn += 1
            errors = (potential(torch.tensor(path.vertices), charges) - value).abs()
            assert errors.median() < 0.01  # potentials are 0.16 apart; contours are linear between points 0.013 apart
    assert drawn > 8 and len(solid.collections) >= 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: field_lines(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 1)), r"`starts` must have z > 0 .* least is 0"),
        (
            lambda: field_lines(torch.ones(1, 2), torch.zeros(1, 1), 0),
            "`num_steps` must be a whole number >= 1, but is 0",
        ),
        (lambda: potential(torch.zeros(3, 2), torch.zeros(1, 2)), r"`points` must .* shapes \(3, 2\) and \(1, 2\)"),
        (lambda: normal_angles(torch.zeros(5, 2, 3), torch.zeros(1, 2)), r"`lines` .* S >= 5, but has \(5, 2, 3\)"),
        (
            lambda: plot_field_lines(torch.zeros(2, 2), torch.zeros(2, 2)),
            r"`line_charges` must .* \(K, 1\) .* \(2, 2\)",
        ),
        (lambda: plot_field_lines(torch.zeros(2, 1), torch.zeros(0, 2)), r"`plane_charges` must .* has \(0, 2\)"),
    ],
)
def test_bad_input(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
