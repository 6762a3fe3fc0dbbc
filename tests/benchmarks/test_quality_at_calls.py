"""Share of latents that lead to the same digit as a run of 400 steps, with the exact field of scikit-learn's digits."""

from statistics import mean

import pytest
import torch

from diffusers_pfgm import ChargeField, PFGMPipeline, PoissonFlowScheduler, fit_sigmas
from diffusers_pfgm.examples.claims.digits_field import digit_reached
from tests.networks import seeded

SEEDS, STARTS = range(3), 512
BARS = {5: 0.86, 6: 0.91, 8: 0.965, 10: 0.98, 15: 0.99}
SEARCHED_BARS = {5: 0.87, 6: 0.92, 8: 0.965}  # with steps that are searched for one number of calls


@pytest.mark.parametrize("aug_dim", [1.0, 64.0, None])
def test_share_of_starts(digits: torch.Tensor, aug_dim: float | None) -> None:
    plain, field = PoissonFlowScheduler(aug_dim), ChargeField(digits, aug_dim)
    pipe = PFGMPipeline(field, plain)
    pipe.set_progress_bar_config(disable=True)
    euler = PoissonFlowScheduler(aug_dim, solver="euler")
    schedulers = {"fitted": fit_sigmas(field, plain, (1, 8, 8), seeded(100)), "equal ratios": plain, "euler": euler}
    searched = {
        calls: fit_sigmas(field, plain, (1, 8, 8), seeded(100), num_inference_steps=calls) for calls in SEARCHED_BARS
    }
    shares_by_run: dict[tuple[str, int], list[float]] = {}
    for seed in SEEDS:
        latents = plain.sample_prior((STARTS, 1, 8, 8), seeded(seed), dtype=torch.float64)
        pipe.scheduler = plain
        expected = digit_reached(pipe, digits, latents, num_inference_steps=400)
        for name, scheduler in schedulers.items():
            for calls in (*BARS, 100) if name == "euler" else BARS:
                pipe.scheduler = scheduler
                same = digit_reached(pipe, digits, latents, num_inference_steps=calls) == expected
                shares_by_run.setdefault((name, calls), []).append(same.double().mean().item())
        for calls, scheduler in searched.items():
            pipe.scheduler = scheduler
            same = digit_reached(pipe, digits, latents, num_inference_steps=calls) == expected
            shares_by_run.setdefault(("searched", calls), []).append(same.double().mean().item())
        pipe.scheduler = plain
        same = digit_reached(pipe, digits, latents, tolerance=1e-3) == expected
        shares_by_run.setdefault(("RK45, tolerance 1e-3", 0), []).append(same.double().mean().item())
    print(f"\nD = {aug_dim or 'inf'}: ", end="")
    print(", ".join(f"{name} {calls or ''} {mean(shares):.3f}" for (name, calls), shares in shares_by_run.items()))
    for calls, bar in BARS.items():
        assert mean(shares_by_run[("fitted", calls)]) >= bar
    for calls, bar in SEARCHED_BARS.items():
        assert mean(shares_by_run[("searched", calls)]) >= bar
