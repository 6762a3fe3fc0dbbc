"""Field lines obey the physics that they show."""

import math

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
