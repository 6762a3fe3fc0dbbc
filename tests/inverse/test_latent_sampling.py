"""Chains over the latent: a constant likelihood leaves the prior invariant, and charges get their exact weights."""

import math

import pytest
import torch
from scipy.stats import chi2, kstest

from diffusers_pfgm import ChargeField, PoissonFlow, PoissonFlowScheduler
from diffusers_pfgm.inverse import LatentSampler
from tests.networks import seeded

CHARGES = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, 0.0]])


def flow_of(aug_dim: float | None, charges: torch.Tensor = CHARGES, **config: float) -> PoissonFlow:
    return PoissonFlow(ChargeField(charges, aug_dim), PoissonFlowScheduler(aug_dim=aug_dim, **config))


def flat(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(x))


@pytest.mark.parametrize("aug_dim", [1.0, 5.0, None])
def test_a_constant_likelihood_leaves_the_prior_invariant(aug_dim: float | None) -> None:
    flow = flow_of(aug_dim)
    latents = flow.scheduler.sample_prior((1500, 2), seeded())
    output = LatentSampler(flow, flat, seeded(1), 2)(latents, 3)
    assert output.acceptance == 1 and output.decodes_per_sweep == (1 if aug_dim is None else 2)
    # ‖x / σ‖² / N has the distribution F(N, D), and at N = 2 the angle is uniform.
    squares = (output.latents / flow.sigma_max).square().sum(1).double()
    cdf = chi2(2).cdf if aug_dim is None else (lambda s: 1 - (1 + s / aug_dim) ** (-aug_dim / 2))
    assert kstest(squares.numpy(), cdf).pvalue > 0.01
    angles = torch.atan2(output.latents[:, 1], output.latents[:, 0]) / (2 * math.pi) + 0.5
    assert kstest(angles.numpy(), "uniform").pvalue > 0.01
    # The final angles are independent of the initial ones.
    initial_angles = torch.atan2(latents[:, 1], latents[:, 0]) / (2 * math.pi) + 0.5
    assert (2 * math.pi * (initial_angles - angles)).cos().mean().abs() < 0.06  # 3 standard deviations 1/√(2 · 1500)


@pytest.mark.slow
@pytest.mark.parametrize("aug_dim", [1.0, None])
def test_charges_get_their_exact_weights(aug_dim: float | None) -> None:
    # Under the prior each charge has the weight 1/3, by symmetry.
    angles = torch.arange(3) * 2 * math.pi / 3
    charges = torch.stack([angles.cos(), angles.sin()], 1)
    log_likelihoods = torch.tensor([0.0, 1.0, 2.5])

    def log_likelihood(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return log_likelihoods[torch.cdist(x, charges).argmin(1)]

    flow = flow_of(aug_dim, charges)
    latents = flow.scheduler.sample_prior((1000, 2), seeded())
    output = LatentSampler(flow, log_likelihood, seeded(1), 10)(latents, 12)
    shares = torch.bincount(torch.cdist(output.sample, charges).argmin(1), minlength=3) / 1000
    assert (shares - log_likelihoods.softmax(0)).abs().sum() / 2 < 0.04  # the error of 1,000 draws is about 0.015
    assert torch.equal(output.log_likelihood, log_likelihood(output.sample, torch.arange(1000)))
    again = flow.sample(latents=output.latents, num_inference_steps=10).sample
    assert torch.allclose(again, output.sample, atol=1e-4)


def test_a_chain_does_not_depend_on_the_batch() -> None:
    flow = flow_of(1.0)
    targets = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [-1.0, -1.0]])
    latents = flow.scheduler.sample_prior((3, 2), [seeded(i) for i in range(3)])

    def run(rows: slice) -> torch.Tensor:
        def log_likelihood(x: torch.Tensor, batch_rows: torch.Tensor) -> torch.Tensor:
            return -(x - targets[rows][batch_rows]).square().sum(1)

        generators = [seeded(10 + i) for i in range(3)][rows]
        return LatentSampler(flow, log_likelihood, generators, 5)(latents[rows], 4).latents

    before = torch.random.get_rng_state()
    assert torch.allclose(run(slice(0, 3))[1:2], run(slice(1, 2)), rtol=1e-4)
    assert torch.equal(before, torch.random.get_rng_state())


def test_max_norm_of_the_prior_is_respected() -> None:
    flow = flow_of(1.0, max_norm=60.0)
    latents = flow.scheduler.sample_prior((200, 2), seeded())
    output = LatentSampler(flow, flat, seeded(1), 2)(latents, 5)
    assert output.latents.norm(dim=1).max() <= 60 and output.acceptance < 1
    encoded, _ = LatentSampler(flow, flat, None, 2).encode(torch.tensor([[500.0, 0.0]]))
    assert 59 < encoded.norm() <= 60


def test_encoded_samples_decode_to_themselves() -> None:
    charges = torch.rand(10, 16, generator=seeded()) * 2 - 1
    for aug_dim in (1.0, None):
        flow = flow_of(aug_dim, charges)
        sampler = LatentSampler(flow, flat, None, 15)
        latents, calls = sampler.encode(charges)
        samples = flow.sample(latents=latents, num_inference_steps=15).sample
        assert calls == 29 and (torch.cdist(samples, charges).argmin(1) == torch.arange(10)).double().mean() >= 0.9


def test_samples_that_are_not_finite_are_encoded_as_prior_draws() -> None:
    flow = flow_of(1.0, max_norm=60.0)
    samples = torch.tensor([[-1.0, 1.0], [math.nan, 0.0]])
    # A `ChargeField` raises for NaN, but a network returns it.
    flow.model = lambda x, timestep: (flow_of(1.0).model(x.nan_to_num(), timestep).sample + 0 * x.sum(1, keepdim=True),)
    latents, _ = LatentSampler(flow, flat, seeded(), 15).encode(samples)
    assert latents.isfinite().all() and latents[1].norm() <= 60
    assert torch.allclose(flow_of(1.0).sample(latents=latents[:1]).sample, samples[:1], atol=1e-2)


def test_a_chain_without_an_acceptable_angle_keeps_its_state() -> None:
    flow, calls = flow_of(None), []
    latents = flow.scheduler.sample_prior((3, 2), seeded())

    def decreasing(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return torch.full((len(x),), -100.0 * len(calls))

    output = LatentSampler(flow, decreasing, seeded(1), 2)(latents, 2)
    assert torch.equal(output.latents, latents) and output.decodes_per_sweep < 60


def test_callback_and_counts() -> None:
    flow = flow_of(1.0)
    sweeps: list[int] = []
    latents = flow.scheduler.sample_prior((20, 2), seeded())

    def sharp(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return -50 * (x - CHARGES[2]).square().sum(1)

    output = LatentSampler(flow, sharp, seeded(), 5)(latents, 4, sweeps.append)
    assert sweeps == sorted(sweeps) and sweeps[-1] == 4 and output.nfe == 5 * (len(sweeps) + 1)
    assert output.decodes_per_sweep > 2 and 0 < output.acceptance < 1


def test_invalid_arguments_raise() -> None:
    flow = flow_of(1.0)
    for sweeps in (0, 1.5, math.nan):
        with pytest.raises(ValueError, match=f"`num_sweeps` must be a whole number >= 1, but is {sweeps}"):
            LatentSampler(flow, flat)(torch.ones(1, 2), sweeps)
    with pytest.raises(ValueError, match="`log_likelihood` must be finite, but index 0, 1"):
        LatentSampler(flow, lambda x, rows: x.sum(1) * math.nan)(torch.ones(2, 2), 1)
