"""Field lines obey the physics that they show."""

import math

import numpy as np
import torch

from diffusers_pfgm.plots import field_lines, plot_field_lines
from tests.conftest import seeded


def test_lines_go_from_their_starts_to_charges() -> None:
    charges = torch.tensor([[-1.0, 0.0], [0.2, 0.5], [1.0, -1.0]], dtype=torch.float64)
    starts = torch.randn(50, 3, generator=seeded(), dtype=torch.float64)
    starts[:, -1] = starts[:, -1].abs() + 0.5
    lines = field_lines(starts, charges)
    assert torch.equal(lines[0], starts) and (lines[-1, :, -1] == 0).all()
    assert (lines[:, :, -1].diff(dim=0) < 0).all()
    assert torch.cdist(lines[-1, :, :2], charges).min(1).values.max() < 1e-3


def test_lines_of_two_charges_keep_their_flux() -> None:
    # In the plane (N = 1) a line of two equal charges keeps the sum of its angles seen from them (Gauss).
    charges = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    angles = torch.linspace(0.2, math.pi - 0.3, 30, dtype=torch.float64)
    lines = field_lines(3 * torch.stack([angles.cos(), angles.sin()], dim=1), charges)[:150]
    seen = sum(torch.atan2(lines[..., 1], lines[..., 0] - charge) for charge in charges.flatten())
    assert (seen - seen[0]).abs().max() < 1e-3


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
    for points, law in ((arc, 2 / math.pi), (dome, 0.5)):  # mean height over radius
        radius = points.norm(dim=1)
        assert torch.allclose(radius, radius[0]) and (points[:, -1] > 0).all()
        assert torch.allclose(
            points.mean(0) / radius[0], torch.tensor([0.0] * (points.shape[1] - 1) + [law]).double(), atol=0.01
        )
