"""The figure shows x̂ and x of the right samples at the right noise levels."""

from collections.abc import Callable

import pytest
import torch

from diffusers_pfgm import ChargeField, PoissonFlowScheduler
from diffusers_pfgm.plots import Trajectory, plot_denoised, record_trajectory
from diffusers_pfgm.plots.denoised import visible
from tests.networks import seeded


def run(channels: int = 1, steps: int = 7) -> Trajectory:
    charges = torch.rand(5, channels, 4, 6, generator=seeded()) * 2 - 1
    scheduler = PoissonFlowScheduler()
    return record_trajectory(
        ChargeField(charges), scheduler, scheduler.sample_prior((3, channels, 4, 6), seeded()), steps
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_rows_are_samples_and_columns_noise_levels(channels: int) -> None:
    trajectory = run(channels)
    figure = plot_denoised(trajectory, num_rows=2, num_columns=4)
    axes = figure.axes
    assert len(axes) == 2 * 2 * 4
    calls = [0, 2, 4, 6]
    titles = [panel.get_title() for panel in axes[:4]]
    assert titles == [f"σ = {trajectory.sigmas[call].item():.3g}" for call in calls]
    for row in range(4):
        sample, images = row // 2, trajectory.denoised if row % 2 == 0 else trajectory.states
        for column, call in enumerate(calls):
            shown = torch.tensor(axes[4 * row + column].images[0].get_array())
            expected = visible(images[call, sample : sample + 1])[0].permute(1, 2, 0).squeeze(-1)
            assert torch.allclose(shown.float(), expected)


def test_at_most_all_samples_and_noise_levels_are_drawn() -> None:
    assert len(plot_denoised(run(), num_rows=9, num_columns=50, show_states=False).axes) == 3 * 7


def test_the_last_denoised_image_is_what_the_run_ends_at() -> None:
    trajectory = run()
    shown = plot_denoised(trajectory, num_columns=3, show_states=False).axes[2].images[0].get_array()
    assert torch.allclose(torch.tensor(shown), (trajectory.states[-1, 0, 0] + 1) / 2, atol=1e-6)


def test_visible_keeps_data_and_shrinks_the_rest() -> None:
    x = torch.stack([torch.tensor([[-0.5, 1.0]]), torch.tensor([[-20.0, 10.0]])])
    assert visible(x).flatten().tolist() == [0.25, 1.0, 0.0, 0.75]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot_denoised(run(), num_rows=0), "`num_rows` must be a whole number >= 1, but is 0"),
        (lambda: plot_denoised(run(), num_rows=1.5), "`num_rows` must be a whole number >= 1, but is 1.5"),
        (lambda: plot_denoised(run(), num_columns=-1), "`num_columns` must be a whole number >= 1, but is -1"),
        (lambda: plot_denoised(run(2)), r"`trajectory` must be of images .* C 1 or 3, .* shape \(3, 2, 4, 6\)"),
    ],
)
def test_bad_input(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
