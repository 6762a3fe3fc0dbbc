"""The field of charges compared with the authors' targets, direct formulas, limits and derivatives."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from diffusers_pfgm import ChargeField, Charges, Parameterization, PoissonKernel, normalized_field, posterior_mean
from diffusers_pfgm.physics import charges as charges_module
from diffusers_pfgm.physics.charges import mean_of_charges
from tests.device_reads import DeviceReads
from tests.networks import seeded

MIDWAY = 1  # the row of the authors' targets that is almost on the plane midway between two charges


def naive_posterior_mean(x: torch.Tensor, sigma: float, charges: torch.Tensor, aug_dim: float) -> torch.Tensor:
    squares = (x[:, None] - charges[None]).square().sum(-1)
    if math.isinf(aug_dim):
        weights = torch.softmax(-squares / (2 * sigma**2), dim=1)
    else:
        weights = torch.softmax(-(x.shape[1] + aug_dim) / 2 * (squares + aug_dim * sigma**2).log(), dim=1)
    return weights @ charges


@pytest.mark.parametrize("gamma", [0, 5])
@pytest.mark.parametrize("name", ["n2", "n64", "n768", "n3072"])
@pytest.mark.parametrize("chunk_size", [None, 7])
def test_target_is_the_authors(
    field_targets: dict[str, np.ndarray], name: str, gamma: int, chunk_size: int | None
) -> None:
    perturbed, charges, target = (
        torch.tensor(field_targets[f"{name}__{part}"]) for part in ("perturbed", "data", f"gamma{gamma}__target")
    )
    field = normalized_field(perturbed[:, :-1], perturbed[:, -1], charges, gamma, chunk_size)
    error = (field - target).norm(dim=1) / target.norm(dim=1)
    assert error.max() < 1e-5


@pytest.mark.parametrize("name", ["n2", "n64", "n768", "n3072"])
@pytest.mark.parametrize("chunk_size", [None, 7])
def test_float32_charges_are_as_accurate_as_documented(
    field_targets: dict[str, np.ndarray], name: str, chunk_size: int | None
) -> None:
    perturbed, points, target = (
        torch.tensor(field_targets[f"{name}__{part}"]) for part in ("perturbed", "data", "gamma5__target")
    )
    x, z = perturbed[:, :-1], perturbed[:, -1]
    charges = Charges(points, dtype=torch.float32)
    field = normalized_field(x, z, charges, 5.0, chunk_size)
    error = (field - target).norm(dim=1) / target.norm(dim=1)
    error[MIDWAY] = 0
    assert error.max() < 5e-6
    # Midway, x̂ jumps from one charge to the other, so its error is compared with their distance.
    exact = posterior_mean(x.double(), z.double(), points.double())[MIDWAY]
    denoised = posterior_mean(x, z, charges, chunk_size=chunk_size)[MIDWAY]
    assert (denoised - exact).norm() < 1e-5 * torch.cdist(points, points).max()


@pytest.mark.parametrize("aug_dim", [0.3, 1.0, 2.5, 64.0, math.inf])
@pytest.mark.parametrize("chunk_size", [None, 1, 5])
def test_posterior_mean_is_the_naive_one(aug_dim: float, chunk_size: int | None) -> None:
    charges = torch.randn(12, 6, generator=seeded(0), dtype=torch.float64)
    x = 2 * torch.randn(9, 6, generator=seeded(1), dtype=torch.float64)
    for sigma in (0.05, 0.7, 30.0):
        denoised = posterior_mean(x, sigma, charges, aug_dim, chunk_size)
        assert torch.allclose(denoised, naive_posterior_mean(x, sigma, charges, aug_dim), rtol=0, atol=1e-12)


def test_posterior_mean_is_the_score_of_the_mixture() -> None:
    # Tweedie's formula at D = ∞: x̂ = x + σ² ∇ log p, p the mean of the kernels.
    charges = torch.randn(8, 5, generator=seeded(0), dtype=torch.float64)
    x = torch.randn(4, 5, generator=seeded(1), dtype=torch.float64, requires_grad=True)
    kernel, sigma = PoissonKernel(math.inf), 0.8
    log_p = torch.stack([kernel.log_prob(x - charge, sigma) for charge in charges]).logsumexp(0)
    (score,) = torch.autograd.grad(log_p.sum(), x)
    assert torch.allclose(posterior_mean(x.detach(), sigma, charges, None), x + sigma**2 * score, atol=1e-12)


def test_large_aug_dim_tends_to_the_gaussian() -> None:
    charges = torch.randn(12, 6, generator=seeded(0), dtype=torch.float64)
    x = torch.randn(9, 6, generator=seeded(1), dtype=torch.float64)
    limit = posterior_mean(x, 0.7, charges, math.inf)
    errors = [(posterior_mean(x, 0.7, charges, aug_dim) - limit).norm().item() for aug_dim in (1e4, 1e6, 1e8)]
    assert errors[0] < 1e-2 and errors[2] < 1e-6 and errors[0] > 50 * errors[1] > 2500 * errors[2]


def test_a_single_charge_attracts_from_everywhere() -> None:
    charge = torch.randn(1, 3, 4, generator=seeded(0))
    x = 100 * torch.randn(5, 3, 4, generator=seeded(1))
    assert torch.allclose(posterior_mean(x, 0.1, charge), charge.expand(5, 3, 4), atol=1e-5)


def test_prepared_charges_give_the_same_on_any_shape() -> None:
    charges = torch.randn(30, 2, 3, 3, generator=seeded(0))
    x = torch.randn(7, 2, 3, 3, generator=seeded(1))
    z = torch.rand(7, generator=seeded(2))
    assert torch.equal(normalized_field(x, z, charges), normalized_field(x, z, Charges(charges)))


@pytest.mark.parametrize("aug_dim", [1.0, math.inf])
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_derivatives_are_those_of_the_naive_formula(aug_dim: float, chunk_size: int | None) -> None:
    charges = torch.randn(7, 4, generator=seeded(0), dtype=torch.float64)
    prepared = Charges(charges)
    x = torch.randn(4, generator=seeded(1), dtype=torch.float64)
    sigma = torch.tensor([0.6], dtype=torch.float64)

    def fast(x: torch.Tensor) -> torch.Tensor:
        return x + mean_of_charges(x.unsqueeze(0), sigma, prepared, aug_dim, chunk_size, from_x=True)[0]

    def naive(x: torch.Tensor) -> torch.Tensor:
        return naive_posterior_mean(x.unsqueeze(0), 0.6, charges, aug_dim)[0]

    expected = torch.autograd.functional.jacobian(naive, x)
    assert torch.allclose(torch.autograd.functional.jacobian(fast, x), expected, atol=1e-12)
    assert torch.allclose(torch.func.jacfwd(fast)(x), expected, atol=1e-12)


@pytest.mark.parametrize("aug_dim", [1.0, 2.5, math.inf])
@pytest.mark.parametrize("prediction_type", ["field", "sample", "epsilon"])
def test_the_output_of_a_charge_field_gives_the_posterior_mean(prediction_type: str, aug_dim: float) -> None:
    charges = torch.rand(20, 2, 4, 3, generator=seeded(0), dtype=torch.float64)
    field = ChargeField(charges, aug_dim, prediction_type)
    x = charges[:6] + torch.randn(6, 2, 4, 3, generator=seeded(1), dtype=torch.float64)
    for sigma in (0.01, 1.0, 4.99, 5.01, 40.0):  # below and above γ = 5
        output = field(x, torch.tensor(sigma, dtype=torch.float64)).sample
        denoised = Parameterization(prediction_type).denoised(output, x, sigma)
        assert torch.allclose(denoised, posterior_mean(x, sigma, charges, aug_dim), rtol=0, atol=1e-9)


def test_charge_field_keeps_its_precision() -> None:
    charges = torch.rand(20, 1, 4, 4, generator=seeded(0))
    field = ChargeField(charges).to(torch.float16)
    assert field.dtype == torch.float32 and field.charges.points.dtype == torch.float64
    assert ChargeField(charges.double()).dtype == torch.float64
    x = torch.randn(3, 1, 4, 4, generator=seeded(1))
    assert torch.equal(field(x, 2.0).sample, ChargeField(charges)(x, 2.0).sample)
    assert torch.equal(field(x, 2.0, return_dict=False)[0], field(x, 2.0).sample)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_charges_that_are_not_finite_are_named(value: float) -> None:
    charges = torch.zeros(30, 4)
    charges[[3, 17], 2] = value
    with pytest.raises(ValueError, match="`charges` must be finite, but index 3, 17 holds NaN or infinity"):
        ChargeField(charges)
    with pytest.raises(ValueError, match="index 3, 17 "):  # the second in a later chunk
        posterior_mean(torch.zeros(2, 4), 1.0, charges, chunk_size=7)
    for function in (normalized_field, posterior_mean):
        with pytest.raises(ValueError, match="`x` must be finite, but index 3, 17 "):
            function(charges, 1.0, torch.zeros(2, 4))


def test_bad_input_is_explained() -> None:
    with pytest.raises(ValueError, match=r"`charges` must be a tensor \(K, \*\), but is ndarray"):
        ChargeField(torch.zeros(2, 4).numpy())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"at least one charge, but has \(0, 4\)"):
        ChargeField(torch.zeros(0, 4))
    with pytest.raises(ValueError, match="but a sample has 3 elements"):
        posterior_mean(torch.zeros(2, 3), 1.0, torch.zeros(5, 4))
    for function in (normalized_field, posterior_mean):
        with pytest.raises(ValueError, match="`chunk_size` must be at least 1, but is 0"):
            function(torch.zeros(2, 4), 1.0, torch.zeros(5, 4), chunk_size=0)
    with pytest.raises(ValueError, match="`aug_dim` must be a number > 0"):
        posterior_mean(torch.zeros(2, 4), 1.0, torch.zeros(5, 4), aug_dim=-1)
    with pytest.raises(ValueError, match="`prediction_type` must be 'field', 'sample' or 'epsilon', but is 'score'"):
        ChargeField(torch.zeros(5, 4), prediction_type="score")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError,
        match=r"`sigma` must be a number or have the shape \(2,\), one .*, but has \(3,\)",
    ):
        posterior_mean(torch.zeros(2, 4), torch.ones(3), torch.zeros(5, 4))


def test_float32_recomputes_sixteen_distances() -> None:
    # Far from the origin float32 cannot distinguish the sixteen nearest by ‖x‖² + ‖y‖² − 2 x·y.
    charges = torch.eye(16) + 30
    x = torch.full((1, 16), 30.0)
    denoised = posterior_mean(x, 0.1, Charges(charges, dtype=torch.float32))
    assert torch.allclose(denoised, charges.mean(0), atol=1e-5)


@pytest.mark.parametrize("aug_dim", [1.0, math.inf])
def test_on_a_charge_at_sigma_zero_the_mean_is_the_charge(aug_dim: float) -> None:
    charges = torch.randn(4, 6, generator=seeded(0))
    assert torch.equal(posterior_mean(charges[:2], 0.0, charges, aug_dim), charges[:2])


def test_on_a_charge_at_sigma_zero_the_field_is_zero() -> None:
    charges = torch.randn(4, 6, generator=seeded(0))
    assert torch.allclose(normalized_field(charges[:2], 0.0, charges), torch.zeros(2, 7))
    for size in (2, 784):
        points = torch.eye(3, size)  # on a charge the field has no direction, but is not NaN
        assert torch.equal(normalized_field(points, 0.0, points, gamma=0.0), torch.zeros(3, size + 1))


def test_many_points_are_computed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charges_module, "MEMORY_BUDGET", 2 * 64 * 12)  # two points per block
    charges = torch.randn(12, 6, generator=seeded(0), dtype=torch.float64)
    x = 2 * torch.randn(9, 6, generator=seeded(1), dtype=torch.float64)
    sigma = torch.linspace(0.1, 3, 9, dtype=torch.float64)
    expected = [naive_posterior_mean(x[i : i + 1], sigma[i].item(), charges, 1.0) for i in range(9)]
    assert torch.allclose(posterior_mean(x, sigma, charges), torch.cat(expected), atol=1e-12)


@pytest.mark.parametrize("function", [posterior_mean, normalized_field])
@pytest.mark.parametrize("kind", [list, np.array, tuple, lambda values: torch.tensor(values)])
def test_sigma_is_any_sequence_of_numbers(function: Any, kind: Any) -> None:
    charges, x = torch.randn(5, 4, generator=seeded(0)), torch.randn(2, 4, generator=seeded(1))
    expected = [function(x[row : row + 1], sigma, charges) for row, sigma in enumerate((0.5, 2))]
    assert torch.allclose(function(x, kind([0.5, 2]), charges), torch.cat(expected))
    assert torch.equal(function(x, np.float64(0.5), charges), function(x, 0.5, charges))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_charges_are_a_copy(dtype: torch.dtype) -> None:
    data, x = torch.rand(5, 3, dtype=dtype, generator=seeded()), torch.rand(2, 3, generator=seeded(1))
    field, charges = ChargeField(data, prediction_type="sample"), Charges(data, dtype)
    expected = field(x, 0.1).sample, posterior_mean(x, 0.1, charges)
    data.mul_(0.5).add_(0.5)  # as to show images of [-1, 1]
    assert torch.equal(field(x, 0.1).sample, expected[0]) and torch.equal(posterior_mean(x, 0.1, charges), expected[1])


@pytest.mark.parametrize("gamma", [-5.0, math.nan, math.inf])
def test_gamma_must_be_finite_and_not_negative(gamma: float) -> None:
    charges = torch.rand(3, 2)
    for call in (lambda: normalized_field(charges, 1.0, charges, gamma), lambda: ChargeField(charges, gamma=gamma)):
        with pytest.raises(ValueError, match="`gamma` must be a finite number >= 0, but is"):
            call()


def test_charge_field_uses_gamma() -> None:
    charges = torch.randn(20, 3, generator=seeded(0), dtype=torch.float64)
    x = torch.randn(6, 3, generator=seeded(1), dtype=torch.float64)
    assert torch.allclose(ChargeField(charges, gamma=0.5)(x, 0.7).sample, normalized_field(x, 0.7, charges, 0.5))


@pytest.mark.parametrize(("prediction_type", "out_channels"), [("field", 3), ("sample", 2), ("epsilon", 2)])
def test_charge_field_has_the_config_of_a_network(prediction_type: str, out_channels: int) -> None:
    field = ChargeField(torch.rand(5, 2, 4, 3), prediction_type=prediction_type)
    assert (field.config.in_channels, field.config.out_channels, field.config.sample_size) == (2, out_channels, (4, 3))
    assert (field.config.prediction_type, field.config.aug_dim, field.config.gamma) == (prediction_type, 1.0, 5.0)
    assert not field.state_dict()
    half = torch.ones(1, 2, 4, 3, dtype=torch.float16)
    assert field(half, 1.0).sample.dtype == torch.float16


@pytest.mark.parametrize("function", [posterior_mean, normalized_field])
def test_many_chunks_of_charges_need_one_read(function: Any) -> None:
    charges, x = torch.randn(100, 4, generator=seeded(0)), torch.randn(5, 4, generator=seeded(1))
    with DeviceReads() as reads:
        function(x, 0.5, charges, chunk_size=3)
    assert reads.count == 1


@pytest.mark.parametrize("prediction_type", ["field", "sample", "epsilon"])
def test_a_charge_field_needs_no_read(prediction_type: str) -> None:
    field, x = ChargeField(torch.rand(30, 4), prediction_type=prediction_type), torch.randn(5, 4)
    with DeviceReads() as reads:
        field(x, torch.tensor(0.5))
    assert reads.count == 0


@pytest.mark.parametrize("function", [posterior_mean, normalized_field])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_every_input_that_is_not_finite_is_named(function: Any, value: float) -> None:
    def broken(values: torch.Tensor, *index: int) -> torch.Tensor:
        values = values.clone()
        values[index] = value
        return values

    x, sigma, charges = torch.randn(6, 4), torch.rand(6) + 0.1, torch.randn(9, 4)
    with pytest.raises(ValueError, match="`x` must be finite, but index 2 "):
        function(broken(x, 2, 1), sigma, charges, chunk_size=2)
    with pytest.raises(ValueError, match="`charges` must be finite, but index 7 "):
        function(x, sigma, broken(charges, 7, 0), chunk_size=2)
    if math.isnan(value):
        name = "sigma" if function is posterior_mean else "z"
        with pytest.raises(ValueError, match=f"`{name}` must be finite, but index 3 "):
            function(x, broken(sigma, 3), charges)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distance", [1e6, 1e18, 1e30, 1e300])
def test_far_away_the_posterior_mean_is_the_mean_of_all_charges(dtype: torch.dtype, distance: float) -> None:
    charges = 3 + torch.randn(12, 6, generator=seeded(0), dtype=torch.float64)
    x = torch.randn(9, 6, generator=seeded(1), dtype=torch.float64)
    x = (x / x.norm(dim=1, keepdim=True) * min(distance, torch.finfo(dtype).max / 10)).to(dtype)
    for points in (charges, Charges(charges, dtype=torch.float32))[: 1 if distance > 1e38 else 2]:
        denoised = posterior_mean(x, 0.5, points, 0.05)
        assert torch.allclose(denoised.double(), charges.mean(0).expand(9, 6), atol=2e-4)
        field = normalized_field(x, 0.5, points, 5.0)
        # The field points to the charges, that is to 0, and has its largest norm, √N.
        assert torch.allclose(field[:, :-1] / 6**0.5, -torch.nn.functional.normalize(x / x.abs().amax()), atol=3e-5)
