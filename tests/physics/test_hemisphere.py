"""Latents as directions and radii: their distribution, interpolation and temperature."""

import math

import pytest
import torch
from scipy.stats import kstest

from diffusers_pfgm import HemisphereLatents, PoissonKernel
from diffusers_pfgm.physics import hemisphere_points, interpolate, with_temperature
from tests.networks import seeded


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
    assert kstest(hemisphere_points(prior(4000, (2,)), 80.0)[:, 2].numpy(), "uniform").pvalue < 1e-9  # with another z


def test_interpolation_follows_great_circles_at_constant_speed() -> None:
    first, second = prior(seed=1), prior(seed=2)
    shares = torch.linspace(0, 1, 5, dtype=torch.float64)
    path = interpolate(first, second, shares)
    assert path.direction.shape == (5, 5, 2, 3, 3) and path.radius.shape == (5, 5)
    for end, latents in ((0, first), (-1, second)):
        assert torch.allclose(path.direction[end], latents.direction)
        assert torch.allclose(path.radius[end], latents.radius)
    angle = angles(first.direction, second.direction)
    for share, direction, radius in zip(shares, path.direction, path.radius, strict=True):
        assert torch.allclose(direction.flatten(1).norm(dim=1), torch.ones(5, dtype=torch.float64))
        assert torch.allclose(angles(first.direction, direction), share * angle, atol=1e-7)
        assert torch.allclose(angles(direction, second.direction), (1 - share) * angle, atol=1e-7)
        assert torch.allclose(radius, first.radius ** (1 - share) * second.radius**share)
    middle = interpolate(first, second)
    assert torch.equal(middle.direction, path.direction[2]) and torch.equal(middle.radius, path.radius[2])


@pytest.mark.parametrize("sign", [1, -1])
def test_parallel_and_opposite_directions_can_be_interpolated(sign: int) -> None:
    first = prior(3)
    second = HemisphereLatents(sign * first.direction, first.radius)
    path = interpolate(first, second, torch.tensor([0.0, 0.5, 1.0]))
    assert torch.allclose(path.direction[2], second.direction, atol=1e-12)
    expected = torch.full((3,), 0.0 if sign > 0 else math.pi / 2, dtype=torch.float64)
    assert torch.allclose(angles(first.direction, path.direction[1]), expected, atol=1e-7)
    assert torch.equal(path.direction, interpolate(first, second, torch.tensor([0.0, 0.5, 1.0])).direction)


def test_temperature_scales_radii_or_angles() -> None:
    latents = prior(6)
    cooled = with_temperature(latents, 0.5)
    assert torch.equal(cooled.direction, latents.direction) and torch.equal(cooled.radius, latents.radius * 0.5)
    centre = latents.direction[:3].mean(0)
    middle = (centre / centre.norm()).expand_as(latents.direction)
    angle = angles(middle, latents.direction)
    for temperature in (0.0, 0.5, 1.0, 1.5, 100.0):
        result = with_temperature(latents, temperature, centre)
        expected = (temperature * angle).clamp(max=math.pi)
        assert torch.allclose(angles(middle, result.direction), expected, atol=1e-7)
        assert torch.equal(result.radius, latents.radius)
    assert torch.allclose(with_temperature(latents, 1.0, centre).direction, latents.direction)
    own = with_temperature(latents, 0.0, latents.direction.roll(1, 0) * 7)  # one centre for each latent
    assert torch.allclose(own.direction, latents.direction.roll(1, 0))


def rows_of(path: HemisphereLatents) -> list[HemisphereLatents]:
    return [HemisphereLatents(*each) for each in zip(path.direction, path.radius, strict=True)]


@pytest.mark.parametrize("kind", ["one for all", "one for each latent", "one for each latent and share"])
def test_temperature_of_an_interpolation_is_that_of_its_batches(kind: str) -> None:
    path = interpolate(prior(3, seed=1), prior(3, seed=2), torch.linspace(0, 1, 4, dtype=torch.float64))
    centres = {"one for all": path.direction[0, 0], "one for each latent": path.direction[1]}
    centre = 5 * centres.get(kind, path.direction)
    result = with_temperature(path, 0.5, centre)
    assert result.direction.shape == (4, 3, 2, 3, 3) and torch.equal(result.radius, path.radius)
    norms = result.direction.flatten(2).norm(dim=2)
    assert torch.allclose(norms, torch.ones_like(norms))
    for step, (batch, expected) in enumerate(zip(rows_of(result), rows_of(path), strict=True)):
        own = centre[step] if kind == "one for each latent and share" else centre
        assert torch.allclose(batch.direction, with_temperature(expected, 0.5, own).direction)
    assert torch.equal(with_temperature(path, 2.0).radius, 2 * path.radius)


def test_points_and_interpolations_of_an_interpolation_are_those_of_its_batches() -> None:
    path = interpolate(prior(3, seed=1), prior(3, seed=2), torch.linspace(0, 1, 4, dtype=torch.float64))
    other = interpolate(prior(3, seed=3), prior(3, seed=4), torch.linspace(0, 1, 4, dtype=torch.float64))
    points = hemisphere_points(path, 40.0)
    assert points.shape == (4, 3, 19)
    assert torch.allclose(points, torch.stack([hemisphere_points(batch, 40.0) for batch in rows_of(path)]))
    shares = torch.tensor([0.0, 0.3], dtype=torch.float64)
    both, middle = interpolate(path, other, shares), interpolate(path, other, 0.3)
    assert both.direction.shape == (2, 4, 3, 2, 3, 3) and both.radius.shape == (2, 4, 3)
    assert torch.allclose(both.direction[0], path.direction) and torch.allclose(both.radius[0], path.radius)
    assert torch.equal(both.direction[1], middle.direction) and torch.equal(both.radius[1], middle.radius)
    for step, batch in enumerate(rows_of(middle)):
        expected = interpolate(rows_of(path)[step], rows_of(other)[step], 0.3)
        assert torch.allclose(batch.direction, expected.direction) and torch.allclose(batch.radius, expected.radius)
    assert torch.allclose(path.to_latents()[2], rows_of(path)[2].to_latents())


def test_latents_whose_squares_overflow_keep_their_direction() -> None:
    x = torch.tensor([[3e200, 4e200], [3.0, 4.0]], dtype=torch.float64)
    latents = HemisphereLatents.from_latents(x)
    assert torch.allclose(latents.direction, torch.tensor([0.6, 0.8], dtype=torch.float64))
    assert torch.allclose(latents.radius, torch.tensor([5e200, 5.0], dtype=torch.float64))
    half = HemisphereLatents.from_latents(torch.full((1, 64), 6e4, dtype=torch.float16))
    assert half.radius.item() == pytest.approx(8 * 6e4, rel=1e-3)  # beyond the range of float16


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
    with pytest.raises(ValueError, match="Latents must have two dimensions or more"):
        interpolate(flat, flat)
    with pytest.raises(ValueError, match=r"`temperature` must be a finite number > 0, but is 0.0"):
        with_temperature(latents, 0.0)
    with pytest.raises(ValueError, match=r"`temperature` must be a finite number >= 0, but is -1.0"):
        with_temperature(latents, -1.0, latents.direction[0])
    with pytest.raises(ValueError, match=r"`centre` must have the shape \(2, 3, 3\) or \(3, 2, 3, 3\), but has \(2,\)"):
        with_temperature(latents, 1.0, torch.ones(2))
    with pytest.raises(ValueError, match="`centre` must have a direction, but is 0"):
        with_temperature(latents, 1.0, torch.zeros(2, 3, 3))
    with pytest.raises(ValueError, match="`centre` must be finite"):
        with_temperature(latents, 1.0, torch.full((2, 3, 3), math.nan))
    path = interpolate(latents, prior(3, seed=1), torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"\(2, 3, 3\) or \(3, 2, 3, 3\) or \(2, 3, 2, 3, 3\), but has \(2, 2, 3, 3\)"):
        with_temperature(path, 1.0, torch.ones(2, 2, 3, 3))
    with pytest.raises(ValueError, match=r"`direction` must have the shape of `radius`.* \(3, 4\) and \(2,\)"):
        HemisphereLatents(torch.ones(3, 4), torch.ones(2))
    with pytest.raises(ValueError, match=r"must have the same shape, but have .* radii \(6,\) and \(6, 2\)"):
        interpolate(
            HemisphereLatents(torch.ones(6, 2, 9), torch.ones(6)),
            HemisphereLatents(torch.ones(6, 2, 9), torch.ones(6, 2)),
        )
