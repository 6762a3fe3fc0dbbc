"""Latents as directions and radii: where they lie, the ways between them, and their spread."""

import math

import pytest
import torch
from scipy.stats import kstest

from diffusers_pfgm import HemisphereLatents, PoissonKernel
from diffusers_pfgm.physics import hemisphere_points, interpolate, with_temperature
from tests.conftest import seeded


def prior(count: int = 5, shape: tuple[int, ...] = (2, 3, 3), seed: int = 0) -> HemisphereLatents:
    x = PoissonKernel(1.0).sample((count, *shape), 40.0, seeded(seed), dtype=torch.float64)
    return HemisphereLatents.from_latents(x)


def angles(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return (first * second).flatten(1).sum(1).clamp(-1, 1).acos()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_direction_and_radius_are_the_latents(dtype: torch.dtype) -> None:
    x = PoissonKernel(1.0).sample((6, 1, 4, 4), 40.0, seeded(), dtype=torch.float64).to(dtype)
    latents = HemisphereLatents.from_latents(x)
    assert latents.direction.dtype == latents.radius.dtype == dtype and latents.radius.shape == (6,)
    assert torch.allclose(latents.direction.flatten(1).norm(dim=1), torch.ones(6, dtype=dtype))
    assert torch.allclose(latents.to_latents(), x, rtol=4 * torch.finfo(dtype).eps)


def test_the_prior_is_uniform_on_the_hemisphere() -> None:
    points = hemisphere_points(prior(4000, (2,)), 40.0)
    assert points.shape == (4000, 3) and torch.allclose(points.norm(dim=1), torch.ones(4000, dtype=torch.float64))
    # Archimedes: on a sphere in three dimensions each coordinate is uniform
    assert kstest(points[:, 2].numpy(), "uniform").pvalue > 0.01
    assert kstest(points[:, 0].numpy(), "uniform", (-1, 2)).pvalue > 0.01
    assert kstest(hemisphere_points(prior(4000, (2,)), 80.0)[:, 2].numpy(), "uniform").pvalue < 1e-9  # another height


def test_ways_follow_great_circles_at_constant_speed() -> None:
    first, second = prior(seed=1), prior(seed=2)
    shares = torch.linspace(0, 1, 5, dtype=torch.float64)
    way = interpolate(first, second, shares)
    assert way.direction.shape == (5, 5, 2, 3, 3) and way.radius.shape == (5, 5)
    for end, given in ((0, first), (-1, second)):
        assert torch.allclose(way.direction[end], given.direction) and torch.allclose(way.radius[end], given.radius)
    whole = angles(first.direction, second.direction)
    for share, direction, radius in zip(shares, way.direction, way.radius, strict=True):
        assert torch.allclose(direction.flatten(1).norm(dim=1), torch.ones(5, dtype=torch.float64))
        assert torch.allclose(angles(first.direction, direction), share * whole, atol=1e-7)
        assert torch.allclose(angles(direction, second.direction), (1 - share) * whole, atol=1e-7)
        assert torch.allclose(radius, first.radius ** (1 - share) * second.radius**share)
    middle = interpolate(first, second)
    assert torch.equal(middle.direction, way.direction[2]) and torch.equal(middle.radius, way.radius[2])


@pytest.mark.parametrize("sign", [1, -1])
def test_parallel_and_opposite_directions_have_a_way(sign: int) -> None:
    first = prior(3)
    second = HemisphereLatents(sign * first.direction, first.radius)
    way = interpolate(first, second, torch.tensor([0.0, 0.5, 1.0]))
    assert torch.allclose(way.direction[2], second.direction, atol=1e-12)
    expected = torch.full((3,), 0.0 if sign > 0 else math.pi / 2, dtype=torch.float64)
    assert torch.allclose(angles(first.direction, way.direction[1]), expected, atol=1e-7)
    assert torch.equal(way.direction, interpolate(first, second, torch.tensor([0.0, 0.5, 1.0])).direction)


def test_temperature_scales_radii_or_the_spread_of_directions() -> None:
    latents = prior(6)
    cooled = with_temperature(latents, 0.5)
    assert torch.equal(cooled.direction, latents.direction) and torch.equal(cooled.radius, latents.radius * 0.5)
    centre = latents.direction[:3].mean(0)
    middle = (centre / centre.norm()).expand_as(latents.direction)
    whole = angles(middle, latents.direction)
    for temperature in (0.0, 0.5, 1.0, 1.5, 100.0):
        found = with_temperature(latents, temperature, centre)
        expected = (temperature * whole).clamp(max=math.pi)
        assert torch.allclose(angles(middle, found.direction), expected, atol=1e-7)
        assert torch.equal(found.radius, latents.radius)
    assert torch.allclose(with_temperature(latents, 1.0, centre).direction, latents.direction)
    own = with_temperature(latents, 0.0, latents.direction.roll(1, 0) * 7)  # a centre for each
    assert torch.allclose(own.direction, latents.direction.roll(1, 0))


def rows_of(way: HemisphereLatents) -> list[HemisphereLatents]:
    return [HemisphereLatents(*each) for each in zip(way.direction, way.radius, strict=True)]


@pytest.mark.parametrize("kind", ["one for all", "one for each latent", "one for each on the way"])
def test_a_way_is_cooled_as_each_of_its_batches(kind: str) -> None:
    way = interpolate(prior(3, seed=1), prior(3, seed=2), torch.linspace(0, 1, 4, dtype=torch.float64))
    centre = 5 * {"one for all": way.direction[0, 0], "one for each latent": way.direction[1]}.get(kind, way.direction)
    found = with_temperature(way, 0.5, centre)
    assert found.direction.shape == (4, 3, 2, 3, 3) and torch.equal(found.radius, way.radius)
    norms = found.direction.flatten(2).norm(dim=2)
    assert torch.allclose(norms, torch.ones_like(norms))
    for step, (batch, expected) in enumerate(zip(rows_of(found), rows_of(way), strict=True)):
        own = centre[step] if kind == "one for each on the way" else centre
        assert torch.allclose(batch.direction, with_temperature(expected, 0.5, own).direction)
    assert torch.equal(with_temperature(way, 2.0).radius, 2 * way.radius)


def test_points_and_ways_of_a_way_are_those_of_its_batches() -> None:
    way = interpolate(prior(3, seed=1), prior(3, seed=2), torch.linspace(0, 1, 4, dtype=torch.float64))
    other = interpolate(prior(3, seed=3), prior(3, seed=4), torch.linspace(0, 1, 4, dtype=torch.float64))
    points = hemisphere_points(way, 40.0)
    assert points.shape == (4, 3, 19)
    assert torch.allclose(points, torch.stack([hemisphere_points(batch, 40.0) for batch in rows_of(way)]))
    shares = torch.tensor([0.0, 0.3], dtype=torch.float64)
    both, middle = interpolate(way, other, shares), interpolate(way, other, 0.3)
    assert both.direction.shape == (2, 4, 3, 2, 3, 3) and both.radius.shape == (2, 4, 3)
    assert torch.allclose(both.direction[0], way.direction) and torch.allclose(both.radius[0], way.radius)
    assert torch.equal(both.direction[1], middle.direction) and torch.equal(both.radius[1], middle.radius)
    for step, batch in enumerate(rows_of(middle)):
        expected = interpolate(rows_of(way)[step], rows_of(other)[step], 0.3)
        assert torch.allclose(batch.direction, expected.direction) and torch.allclose(batch.radius, expected.radius)
    assert torch.allclose(way.to_latents()[2], rows_of(way)[2].to_latents())


def test_latents_beyond_what_can_be_squared_keep_their_direction() -> None:
    x = torch.tensor([[3e200, 4e200], [3.0, 4.0]], dtype=torch.float64)
    latents = HemisphereLatents.from_latents(x)
    assert torch.allclose(latents.direction, torch.tensor([0.6, 0.8], dtype=torch.float64))
    assert torch.allclose(latents.radius, torch.tensor([5e200, 5.0], dtype=torch.float64))
    half = HemisphereLatents.from_latents(torch.full((1, 64), 6e4, dtype=torch.float16))
    assert half.radius.item() == pytest.approx(8 * 6e4, rel=1e-3)  # beyond float16 itself


def test_bad_arguments_are_explained() -> None:
    latents = prior(3)
    flat = HemisphereLatents.from_latents(torch.tensor([[2.0], [-3.0]]))
    with pytest.raises(ValueError, match=r"`x` must have a direction, but index 1 is 0. Leave it out"):
        HemisphereLatents.from_latents(torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
    with pytest.raises(ValueError, match=r"`x`.*NaN"):
        HemisphereLatents.from_latents(torch.tensor([[1.0, math.nan]]))
    for z in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"`z` must be a finite number > 0, but is {z}"):
            hemisphere_points(latents, z)
    with pytest.raises(ValueError, match=r"must have the same shape, but have \(3, 2, 3, 3\) and \(2, 2, 3, 3\)"):
        interpolate(latents, prior(2))
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=f"`share` must be a number from 0 to 1, .* but is {share}"):
            interpolate(latents, latents, share)
    with pytest.raises(ValueError, match="Latents of one dimension have no great circle"):
        interpolate(flat, flat)
    with pytest.raises(ValueError, match=r"`temperature` must be a finite number > 0, but is 0.0"):
        with_temperature(latents, 0.0)
    with pytest.raises(ValueError, match=r"`temperature` must be a finite number >= 0, but is -1.0"):
        with_temperature(latents, -1.0, latents.direction[0])
    with pytest.raises(ValueError, match=r"`centre` must have the shape \(2, 3, 3\) or \(3, 2, 3, 3\), but has \(2,\)"):
        with_temperature(latents, 1.0, torch.ones(2))
    with pytest.raises(ValueError, match="`x` must have a direction, but index 0 is 0"):
        with_temperature(latents, 1.0, torch.zeros(2, 3, 3))
    way = interpolate(latents, prior(3, seed=1), torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"\(2, 3, 3\) or \(3, 2, 3, 3\) or \(2, 3, 2, 3, 3\), but has \(2, 2, 3, 3\)"):
        with_temperature(way, 1.0, torch.ones(2, 2, 3, 3))
    with pytest.raises(ValueError, match=r"`direction` must have the shape of `radius`.* \(3, 4\) and \(2,\)"):
        HemisphereLatents(torch.ones(3, 4), torch.ones(2))
    with pytest.raises(ValueError, match=r"must have the same shape, but have .* radii \(6,\) and \(6, 2\)"):
        interpolate(
            HemisphereLatents(torch.ones(6, 2, 9), torch.ones(6)),
            HemisphereLatents(torch.ones(6, 2, 9), torch.ones(6, 2)),
        )
