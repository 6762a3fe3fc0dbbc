"""Animations start on the hemisphere, end at the data, and have the requested frames."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_pfgm import ChargeField, PoissonFlowScheduler
from diffusers_pfgm.plots import animate_images, animate_points, dome, field_lines, record_trajectory, save_gif
from diffusers_pfgm.plots.animation import even_moments, plot_moment
from tests.networks import seeded

CHARGES = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.0, -1.0]], dtype=torch.float64)


@pytest.fixture(scope="module")
def lines() -> torch.Tensor:
    return field_lines(dome(4.0, 30), CHARGES)


def test_points_are_on_the_lines_and_move_by_equal_distances(lines: torch.Tensor) -> None:
    moments = even_moments(lines, 12)
    assert moments.shape == (12, 30, 3)
    assert torch.equal(moments[0], lines[0]) and torch.allclose(moments[-1], lines[-1])
    for moment in moments:
        distances = torch.stack([torch.cdist(moment[i : i + 1], lines[:, i]).min() for i in range(30)])
        assert distances.max() < 0.1  # half of the longest step of a line is 0.09
    distances_moved = moments.diff(dim=0).norm(dim=2).mean(1)
    assert distances_moved.max() / distances_moved.min() < 1.2  # a chord is shorter than its arc


def drawn_points(points: torch.Tensor, lines: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    markers = [line for line in plot_moment(points, lines, CHARGES).axes[0].lines if line.get_marker() == "."]
    groups = [torch.tensor(np.array(line.get_data_3d())).T for line in markers]
    return torch.cat(groups), groups


def test_the_first_frame_shows_the_hemisphere_and_the_last_the_charges(lines: torch.Tensor) -> None:
    moments = even_moments(lines, 5)
    first, _ = drawn_points(moments[0], lines)
    assert torch.allclose(first.norm(dim=1), torch.full((30,), 4.0).double())
    assert torch.cdist(first, lines[0]).amin(1).max() < 1e-6
    _, groups = drawn_points(moments[-1], lines)
    for group, charge in zip(groups, CHARGES, strict=True):
        assert len(group) > 3 and torch.allclose(group[:, :2], charge.expand(len(group), 2), atol=2e-3)
        assert (group[:, 2] == 0).all()


@pytest.mark.slow
def test_frames_and_gif(lines: torch.Tensor, tmp_path: Path) -> None:
    frames = animate_points(lines, CHARGES, num_frames=4)
    assert len(frames) == 4 and {frame.size for frame in frames} == {(500, 400)}
    arrays = [np.array(frame).astype(int) for frame in frames]
    assert all(np.abs(a - b).max() > 100 for a, b in itertools.pairwise(arrays))
    save_gif(frames, tmp_path / "points.gif", frames_per_second=10, hold=2)
    gif = Image.open(tmp_path / "points.gif")
    assert gif.n_frames == 4 and gif.info["loop"] == 0
    durations = []
    for index in range(4):
        gif.seek(index)
        durations.append(gif.info["duration"])
        # A GIF has 256 colors, which represent these frames except for antialiased edges.
        assert np.abs(np.array(gif.convert("RGB")).astype(int) - arrays[index]).mean() < 3
    assert durations == [100, 100, 100, 2000]


@pytest.mark.parametrize("channels", [1, 3])
def test_animations_of_images_end_at_the_data(channels: int) -> None:
    charges = (torch.rand(3, channels, 4, 4, generator=seeded()) * 255).round() / 127.5 - 1
    scheduler = PoissonFlowScheduler()
    latents = scheduler.sample_prior((4, channels, 4, 4), seeded())
    trajectory = record_trajectory(ChargeField(charges), scheduler, latents, 12)
    frames = animate_images(trajectory, scale=1, columns=2)
    assert len(frames) == 13 and frames[0].size == (2 * 8, 2 * 8)
    assert frames[0].mode == ("L" if channels == 1 else "RGB")
    last = np.array(frames[-1]).reshape(16, 16, channels)
    for place, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        shown = last[8 * row + 2 : 8 * row + 6, 8 * column + 2 : 8 * column + 6]
        expected = ((trajectory.states[-1, place].permute(1, 2, 0) + 1) * 127.5).numpy()
        assert np.abs(shown - expected).max() <= 1
    noise = (latents[0] / latents[0].abs().max() + 1).permute(1, 2, 0).numpy() * 127.5
    assert np.abs(np.array(frames[0]).reshape(16, 16, channels)[2:6, 2:6] - noise).max() <= 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: animate_points(torch.zeros(4, 2, 2), CHARGES),
            r"`lines` .* data in a plane, .* \(4, 2, 2\) and \(3, 2\)",
        ),
        (lambda: animate_points(torch.zeros(4, 2, 3), CHARGES[:, :1]), r"`charges` .* \(4, 2, 3\) and \(3, 1\)"),
        (
            lambda: animate_points(torch.zeros(4, 2, 3), CHARGES, 1),
            "`num_frames` must be .* >= 2, the start .* but is 1",
        ),
        (
            lambda: animate_points(torch.zeros(4, 2, 3), CHARGES, 2.5),
            "`num_frames` must be a whole number .* but is 2.5",
        ),
        (lambda: save_gif([], "none.gif"), "`frames` must hold at least one image, but is empty"),
        (lambda: save_gif([Image.new("L", (2, 2))], "no.gif", 0), "`frames_per_second` must be a number > 0, but is 0"),
        (
            lambda: animate_images(
                record_trajectory(ChargeField(torch.zeros(1, 2)), PoissonFlowScheduler(), torch.ones(1, 2), 2)
            ),
            r"`trajectory` must be of images .* shape \(1, 2\)",
        ),
    ],
)
def test_bad_input(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
