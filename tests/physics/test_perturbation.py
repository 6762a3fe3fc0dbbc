"""Hyperparameters and perturbation compared with the output of the authors' code."""

import math
from typing import Any

import pytest
import scipy.stats
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_pfgm import PFGMHyperparameters, perturb, recommend_hyperparameters
from tests.networks import seeded

CIFAR = PFGMHyperparameters(M=291, z_max=40.0, upper_norm=3000.0)


def test_recommendations_are_the_authors(statistics: dict[str, Any]) -> None:
    cases = statistics["hyper_parameters"]
    assert len(cases) == 8
    for case in cases:
        recommended = recommend_hyperparameters(case["data_norm"], case["data_dim"], case["sigma"], case["tau"])
        for name in ("M", "z_max", "upper_norm"):
            assert getattr(recommended, name) == pytest.approx(case[name], rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [64, 3072])
def test_perturbation_has_the_authors_quantiles(statistics: dict[str, Any], dim: int) -> None:
    expected = statistics["perturbation"][f"n{dim}"]
    drawn = [perturb(torch.zeros(5000, dim), CIFAR, generator=seeded(seed)) for seed in range(5)]
    log_radius = torch.cat([x.norm(dim=1) for x, _ in drawn]).log()
    log_z = torch.cat([z for _, z in drawn]).log()
    # 25,000 draws against 100,000: standard deviation of a probability at most 0.0035.
    for name, values in (("log_radius", log_radius), ("log_z", log_z)):
        for probability, quantile in expected[name].items():
            assert (values < quantile).double().mean().item() == pytest.approx(float(probability), abs=0.012)
    correlation = torch.corrcoef(torch.stack([log_radius, log_z]))[0, 1].item()
    assert correlation == pytest.approx(expected["corr_log_radius_log_z"], abs=0.01)


def test_without_restriction_points_of_small_z_are_perturbed_as_far_as_others() -> None:
    def largest_near_plane(restrict: bool) -> float:
        x, z = perturb(torch.zeros(400_000, 2), CIFAR, restrict_small_z=restrict, generator=seeded())
        return x.norm(dim=1)[z < 0.01].max().item()

    # ‖ε_x‖ exceeds 5.6 σ in 6e-2 of 400,000 draws.
    limit = CIFAR.sigma * (1 + CIFAR.tau) ** math.floor(0.7 * CIFAR.M) * 5.6
    assert largest_near_plane(True) < limit < largest_near_plane(False)


class DrawnNumbers(TorchDispatchMode):
    """Count the random numbers that are drawn."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.randn, torch.ops.aten.rand, torch.ops.aten._standard_gamma):
            self.count += result.numel()
        return result


def test_each_point_needs_three_random_numbers_more_than_dimensions() -> None:
    # A direction, ε_z, the norm of ε_x and the exponent m: the N components of ε_x are not drawn.
    with DrawnNumbers() as drawn:
        perturb(torch.zeros(5, 3072), CIFAR, generator=seeded())
    assert drawn.count == 5 * (3072 + 3)


@pytest.mark.parametrize("dim", [1, 2, 3072])
def test_the_radius_is_the_norm_of_a_gaussian_in_every_dimension(dim: int) -> None:
    still = PFGMHyperparameters(M=1, z_max=1.0, upper_norm=1.0, sigma=0.5, tau=1e-9)
    x, _ = perturb(torch.zeros(4000, dim, dtype=torch.float64), still, generator=seeded(2))
    assert scipy.stats.kstest((x.norm(dim=1) / 0.5).numpy(), scipy.stats.chi(dim).cdf).pvalue > 0.01


def test_points_of_float16_data_are_those_of_float32() -> None:
    far = PFGMHyperparameters(M=400, z_max=1.0, upper_norm=1.0)  # up to 65,504 and beyond
    x, z = perturb(torch.zeros(2000, 64, dtype=torch.float16), far, generator=seeded())
    wide_x, wide_z = perturb(torch.zeros(2000, 64), far, generator=seeded())
    assert x.dtype == z.dtype == torch.float16 and x.isfinite().all() and z.isfinite().all()
    assert torch.equal(x, wide_x.clamp(-65504, 65504).half()) and torch.equal(z, wide_z.clamp(max=65504).half())


def test_perturbation_is_centred_on_the_data_in_its_shape() -> None:
    data = torch.randn(3, 2, 4, 5, generator=seeded(3))
    still = PFGMHyperparameters(M=1, z_max=1.0, upper_norm=1.0, sigma=1e-6)
    x, z = perturb(data, still, generator=[seeded(i) for i in range(3)])
    assert x.shape == data.shape and z.shape == (3,) and torch.allclose(x, data, atol=1e-4)
    alone, _ = perturb(data[1:2], still, generator=[seeded(1)])
    assert torch.equal(alone[0], x[1])


@pytest.mark.parametrize("name", ["data_norm", "data_dim", "sigma", "tau"])
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
def test_arguments_must_be_positive(name: str, value: float) -> None:
    arguments = {"data_norm": 30.0, "data_dim": 64, name: value}
    with pytest.raises(ValueError, match=f"`{name}` must be a finite number > 0, but is {value}"):
        recommend_hyperparameters(**arguments)


def test_data_smaller_than_sigma_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`sigma` = 0\.01 already covers data of mean norm 0\.001"):
        recommend_hyperparameters(1e-3, 64)


def test_data_just_smaller_than_sigma_are_refused() -> None:
    # ln(ρ² / (2 √N σ²)) / ln(1 + τ) = −1 gives M = ⌊−0.75⌋ + 1 = 0.
    with pytest.raises(ValueError, match="already covers data"):
        recommend_hyperparameters(math.sqrt(2 * 8 * 0.01**2 / 1.03), 64)


def test_smallest_perturbation_is_gaussian() -> None:
    # With τ → 0 the perturbation does not depend on m: x ~ N(0, σ²), z ~ |N(0, σ²)|.
    still = PFGMHyperparameters(M=1, z_max=1.0, upper_norm=1.0, sigma=0.5, tau=1e-9)
    x, z = perturb(torch.zeros(20_000, 2, dtype=torch.float64), still, generator=seeded())
    assert z.dtype == torch.float64
    for values, law in ((x[:, 0], "norm"), (x[:, 1], "norm"), (z, "halfnorm")):
        assert scipy.stats.kstest((values / 0.5).numpy(), law).pvalue > 0.01


def test_the_perturbation_grows_by_tau_and_is_restricted_to_whole_m() -> None:
    steep = PFGMHyperparameters(M=1, z_max=1.0, upper_norm=1.0, sigma=1.0, tau=99.0)
    x, z = perturb(torch.zeros(2000, 400), steep, generator=seeded())
    radius = x.norm(dim=1)
    assert radius.max() > 1000 and radius[z < 0.5].max() < 25  # ⌊0.7 M⌋ = 0 close to the plane


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_perturbation_keeps_the_dtype(dtype: torch.dtype) -> None:
    x, z = perturb(torch.zeros(3, 2, dtype=dtype), recommend_hyperparameters(30.0, 64), generator=seeded())
    assert x.dtype == z.dtype == dtype
