"""Posteriors of inverse problems with the exact field of a few digits, compared with Bayes' rule over the charges."""

import math
import time
from typing import Any

import pytest
import torch

from diffusers_pfgm import ChargeField, Inpainting, PFGMInversePipeline, PoissonFlowScheduler, SuperResolution
from tests.networks import seeded

MEASUREMENTS, CHAINS = 20, 256
UPPER_HALF, HALF_SIZE = Inpainting(torch.arange(8).unsqueeze(1) < 4), SuperResolution(2)
# With this noise several charges have a posterior probability that is not negligible.
PROBLEMS = [(5, UPPER_HALF, 1.5), (5, HALF_SIZE, 0.75), (50, UPPER_HALF, 0.6), (50, HALF_SIZE, 0.3)]


def distance(weights: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Mean total variation distance over the measurements."""
    return (weights - exact).abs().sum(1).mean() / 2


def charge_weights(samples: torch.Tensor, charges: torch.Tensor) -> torch.Tensor:
    """Share of the samples of each measurement at each charge, (MEASUREMENTS, K)."""
    nearest = torch.cdist(samples.flatten(1), charges.flatten(1)).argmin(1).view(MEASUREMENTS, CHAINS)
    return torch.nn.functional.one_hot(nearest, len(charges)).double().mean(1)


@pytest.mark.parametrize("aug_dim", [1.0, None])
@pytest.mark.parametrize(("count", "operator", "noise_std"), PROBLEMS)
def test_posterior(count: int, operator: Any, noise_std: float, aug_dim: float | None, digits: torch.Tensor) -> None:
    charges = digits[torch.randperm(len(digits), generator=seeded(count))[:count]].float()
    clean = operator(charges[torch.randint(count, (MEASUREMENTS,), generator=seeded(0))])
    measurements = clean + noise_std * torch.randn(clean.shape, generator=seeded(1))
    measured = operator(charges).flatten(1).double()
    exact = (-torch.cdist(measurements.flatten(1).double(), measured).square() / (2 * noise_std**2)).softmax(1)
    drawn = torch.multinomial(exact, CHAINS, replacement=True, generator=seeded(2)).flatten()
    perplexity = torch.special.entr(exact).sum(1).exp().mean()
    print(
        f"\n{type(operator).__name__}, {count} charges, D = {aug_dim or math.inf:g}, noise {noise_std}; "
        f"{perplexity:.1f} charges have weight (perplexity)"
    )
    print(f"  {CHAINS} exact draws   total variation {distance(charge_weights(charges[drawn], charges), exact):.3f}")

    pipe = PFGMInversePipeline(ChargeField(charges, aug_dim), PoissonFlowScheduler(aug_dim=aug_dim))
    pipe.set_progress_bar_config(disable=True)
    distances = {}
    sweeps = 40 if count == 5 else 60
    for method in ("replacement", "guidance", "latent"):
        start = time.perf_counter()
        output = pipe(
            measurements.repeat_interleave(CHAINS, 0),
            operator,
            noise_std,
            method,
            num_sweeps=sweeps,
            generator=seeded(3),
            output_type="pt",
        )
        seconds = time.perf_counter() - start
        distances[method] = distance(charge_weights(output.samples, charges), exact)
        decodes = f", {output.decodes_per_sweep:.1f} decodings a sweep" if method == "latent" else ""
        print(f"  {method:<15} total variation {distances[method]:.3f}, {output.nfe} calls, {seconds:.1f} s{decodes}")
    assert distances["latent"] <= 0.1
    assert distances["guidance"] < distances["replacement"]
