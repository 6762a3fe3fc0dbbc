"""The distributions of the angles are those of uniform points, and the test detects points that are not uniform."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from diffusers_pfgm import PoissonFlowScheduler, PoissonKernel
from diffusers_pfgm.plots import AngleLaw, hemisphere_angles, hemisphere_laws, plot_hemisphere, uniformity
from tests.networks import seeded

DIMENSIONS = [(1, 1.0), (2, 1.0), (3, 2.5), (64, 1.0), (3072, 128.0)]


@pytest.mark.parametrize(("dim", "aug_dim"), DIMENSIONS)
def test_densities_integrate_to_one_and_to_their_distributions(dim: int, aug_dim: float) -> None:
    for law in hemisphere_laws(dim, aug_dim).values():
        grid = torch.linspace(law.low, math.pi / 2, 200001, dtype=torch.float64)
        total = torch.trapezoid(law.density(grid), grid).item()
        assert total == pytest.approx(1, abs=1e-6)
        assert law.distribution(grid[[0, -1]]).tolist() == pytest.approx([0, 1], abs=1e-6)
        middle = law.distribution(grid[70000]).item()
        assert middle == pytest.approx(torch.trapezoid(law.density(grid[:70001]), grid[:70001]).item(), abs=1e-6)


@pytest.mark.parametrize(("dim", "aug_dim"), [*DIMENSIONS, (64, 1e9)])
def test_distributions_are_beta_laws(dim: int, aug_dim: float) -> None:
    laws = hemisphere_laws(dim, aug_dim)
    quantiles = np.linspace(0.01, 0.99, 25)
    polar = np.arcsin(np.sqrt(stats.beta(dim / 2, aug_dim / 2).ppf(quantiles)))
    assert laws["polar"].distribution(torch.tensor(polar)).numpy() == pytest.approx(quantiles, abs=1e-5)
    side = stats.beta(0.5, (dim + aug_dim - 1) / 2).ppf(quantiles)  # quantiles of sin² ψ
    elevation = laws["elevation"].distribution(torch.tensor(np.arcsin(np.sqrt(side)))).numpy()
    assert elevation == pytest.approx((1 + quantiles) / 2, abs=1e-5)


def test_zones_of_equal_height_are_equally_likely() -> None:
    # On the sphere of R^3 zones of equal height have equal areas, so cos θ and sin ψ are uniform.
    laws = hemisphere_laws(2)
    z = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert torch.allclose(laws["polar"].distribution(z.acos()), 1 - z, atol=1e-7)
    assert torch.allclose(laws["elevation"].distribution(z.asin()), (1 + z) / 2, atol=1e-7)


def test_a_density_is_zero_outside_its_range() -> None:
    law = AngleLaw(0.0, sine=1.0, cosine=0.0)
    assert law.density(torch.tensor([-0.1, 1.6])).tolist() == [0, 0]
    assert law.distribution(torch.tensor([-0.1, 1.6])).tolist() == pytest.approx([0, 1])


def test_angles_of_known_points() -> None:
    x = torch.tensor([[3.0, 3.0], [0.0, 0.0], [-1.0, 1.0]])
    angles = hemisphere_angles(x, 3.0, aug_dim=2.0)  # r = 3 √2
    assert angles["polar"].tolist() == pytest.approx([math.pi / 4, 0, math.atan(1 / 3)])
    assert angles["elevation"].tolist() == pytest.approx([math.pi / 4, 0, 0], abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "aug_dim"), DIMENSIONS[:4])
def test_the_prior_is_uniform_and_p_values_are_fair(dim: int, aug_dim: float) -> None:
    draws = [PoissonKernel(aug_dim).sample((200, dim), 7.0, seeded(i), dtype=torch.float64) for i in range(100)]
    for name in ("polar", "elevation"):
        values = np.array([uniformity(x, 7.0, aug_dim)[name].p_value for x in draws])
        assert stats.kstest(values, "uniform").pvalue > 1e-3  # p-values of the true distribution are uniform


def test_agreement_is_scipys() -> None:
    x = PoissonFlowScheduler().sample_prior((500, 2), seeded(), dtype=torch.float64)
    agreement = uniformity(x, 40.0)["polar"]
    z_over_radius = 40 / torch.hypot(x.norm(dim=1), torch.tensor(40.0).double())
    expected = stats.kstest(z_over_radius.numpy(), "uniform")
    assert agreement.deviation == pytest.approx(expected.statistic, abs=1e-6)
    assert agreement.p_value == pytest.approx(expected.pvalue, abs=0.01)


def test_points_that_are_not_uniform_are_detected() -> None:
    prior = PoissonFlowScheduler().sample_prior((2000, 16), seeded())
    assert min(test.p_value for test in uniformity(prior, 40.0).values()) > 0.01
    assert uniformity(prior, 30.0)["polar"].p_value < 1e-6  # another noise level
    shifted = uniformity(prior + 5, 40.0)["elevation"]
    assert shifted.p_value < 1e-6 and shifted.deviation > 0.1
    limited = PoissonFlowScheduler(max_norm=300.0).sample_prior((2000, 16), seeded())
    assert uniformity(limited, 40.0)["polar"].p_value < 1e-6


@pytest.mark.parametrize("dim", [1, 2, 12])
def test_histograms_are_of_the_angles(dim: int) -> None:
    x = PoissonKernel().sample((400, dim), 2.0, seeded())
    figure = plot_hemisphere(x, torch.tensor(2.0))
    first, *others = figure.axes
    angles = hemisphere_angles(x, 2.0)
    for axes, name in zip(others, ("polar", "elevation"), strict=True):
        edges = [bar.get_x() for bar in axes.patches]
        densities, expected_edges = np.histogram(angles[name].rad2deg().numpy(), bins=40, density=True)
        assert [bar.get_height() for bar in axes.patches] == pytest.approx(densities.tolist())
        assert edges == pytest.approx(expected_edges[:-1].tolist())
        law = axes.lines[0]
        at = torch.tensor(law.get_xdata()).deg2rad()
        assert law.get_ydata() == pytest.approx((hemisphere_laws(dim)[name].density(at).deg2rad()).numpy(), rel=1e-6)
    if dim == 2:
        points = torch.tensor(np.array(first.collections[-1]._offsets3d)).T
        assert len(points) == 400 and torch.allclose(points.norm(dim=1), torch.ones(400).double())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: uniformity(x, 1.0, None), r"`aug_dim` must be a finite number >= 1, but is None"),
        (lambda x: plot_hemisphere(x, 1.0, 0.5), r"`aug_dim` must be a finite number >= 1, but is 0.5"),
        (lambda x: hemisphere_laws(3, math.inf), r"`aug_dim` must be a finite number >= 1, but is inf"),
        (lambda x: uniformity(x, 0.0), r"`sigma` must be a finite number > 0, but is 0.0"),
        (lambda x: plot_hemisphere(x[0], 1.0), r"`x` must have the shape \(B, \*\) with B >= 1, but has \(2,\)"),
        (lambda x: uniformity(x[:0], 1.0), r"`x` must have the shape \(B, \*\) with B >= 1, but has \(0, 2\)"),
    ],
)
def test_bad_input(call: Callable[[torch.Tensor], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.ones(3, 2))
