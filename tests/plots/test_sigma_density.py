"""The density of steps is that of the knots."""

import math

import numpy as np
import pytest

from diffusers_pfgm import PoissonFlowScheduler
from diffusers_pfgm.plots import plot_sigma_density
from diffusers_pfgm.solvers.spacing import knotted_sigmas

KNOTS = [40.0, 10.0, 1.0, 0.5, 0.01]


def test_each_piece_holds_an_equal_share_of_the_steps() -> None:
    axes = plot_sigma_density(PoissonFlowScheduler(sigma_knots=KNOTS), 12).axes[0]
    values, edges = axes.patches[0].get_data()[:2]
    assert edges == pytest.approx(KNOTS[::-1])
    assert values * np.diff(np.log10(edges)) == pytest.approx([0.25] * 4)
    marks = axes.lines[-1].get_xdata()
    assert len(marks) == 12 and max(marks) == pytest.approx(40)
    assert min(marks) == pytest.approx(knotted_sigmas(KNOTS, 13)[-2])  # the last step, from there to 0, has no mark
    assert axes.lines[0].get_ydata()[0] == pytest.approx(1 / math.log10(4000))


def test_a_scheduler_without_knots() -> None:
    with pytest.raises(ValueError, match="`scheduler` has no `sigma_knots` to show"):
        plot_sigma_density(PoissonFlowScheduler())
