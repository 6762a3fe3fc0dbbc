"""A run solves the backward ODE as the functions of `solvers` do, wherever it begins."""

from typing import Any

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler

from diffusers_pfgm import ChargeField, PoissonFlowScheduler, plan_steps, posterior_mean
from tests.networks import seeded
from tests.schedulers.exact_runs import CHARGES, run


@pytest.mark.parametrize("solver", ["multistep", "heun", "euler"])
@pytest.mark.parametrize("prediction_type", ["field", "sample", "epsilon"])
def test_end_points_of_the_authors(endpoints: dict[str, torch.Tensor], solver: str, prediction_type: str) -> None:
    steps = {"multistep": 15, "heun": 50, "euler": 100}[solver]
    charges = endpoints["charges"].float()
    scheduler = PoissonFlowScheduler(sigma_min=1e-3, prediction_type=prediction_type, solver=solver)
    scheduler.set_timesteps(steps)
    field = ChargeField(charges.view(-1, 1, 4, 4), prediction_type=prediction_type)
    end = run(scheduler, field, endpoints["x_init"]).flatten(1)
    expected = torch.cdist(endpoints["rk45"].flatten(1), charges).argmin(1)
    assert torch.equal(torch.cdist(end, charges).argmin(1), expected)


def test_every_prediction_type_gives_the_same_flow() -> None:
    x = PoissonFlowScheduler().sample_prior((6, 1, 4, 4), seeded(1), dtype=torch.float64)
    ends = []
    for prediction_type in ("field", "sample", "epsilon"):
        scheduler = PoissonFlowScheduler(prediction_type=prediction_type)
        scheduler.set_timesteps(12)
        ends.append(run(scheduler, ChargeField(CHARGES, prediction_type=prediction_type), x))
    assert torch.allclose(ends[0], ends[1], atol=1e-6) and torch.allclose(ends[1], ends[2], atol=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"solver": "euler"}, EDMEulerScheduler),
        ({"solver_order": 2, "use_corrector": False}, EDMDPMSolverMultistepScheduler),
    ],
)
def test_infinite_aug_dim_equals_edm(ours: dict[str, Any], theirs: Any) -> None:
    edm = theirs(sigma_data=0.5, **({"solver_type": "heun"} if "solver_order" in ours else {}))
    # Below 15 steps diffusers also lowers the order of the last but one step.
    edm.set_timesteps(20)
    scheduler = PoissonFlowScheduler(None, 0.002, 80.0, "epsilon", sigma_data=0.5, **ours)
    scheduler.set_timesteps(sigmas=edm.sigmas)
    assert torch.allclose(scheduler.timesteps, edm.timesteps, atol=1e-6)
    x = y = 80 * torch.randn(4, 3, 8, 8, generator=seeded())
    for t in edm.timesteps:
        x_in, y_in = scheduler.scale_model_input(x, t), edm.scale_model_input(y, t)
        # Any function of the input and the timestep can replace a network.
        x = scheduler.step(torch.sin(3 * x_in + t), t, x).prev_sample
        y = edm.step(torch.sin(3 * y_in + t), t, y).prev_sample
    assert (x - y).norm() < 1e-4 * y.norm()


@pytest.mark.parametrize("solver", ["multistep", "heun", "euler"])
def test_each_step_follows_the_plan(solver: str) -> None:
    # At large σ, where x̂ depends on x: all end points at σ = 0 are charges, whatever the steps before.
    sigmas = [40.0, 30.0, 22.0, 16.0, 12.0, 9.0]
    scheduler, model = PoissonFlowScheduler(solver=solver), ChargeField(CHARGES)
    x = y = scheduler.sample_prior((3, 1, 4, 4), seeded(1), dtype=torch.float64)
    scheduler.set_timesteps(sigmas=sigmas)
    history: list[torch.Tensor] = []
    for step, t in zip(plan_steps([*sigmas, 0.0], solver), scheduler.timesteps, strict=True):
        history.insert(0, posterior_mean(x, step.sigma, CHARGES))
        x = step(x, history)
        y = scheduler.step(model(y, t).sample, t, y).prev_sample
        assert torch.allclose(x, y, rtol=0, atol=1e-8)


@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_step_returns_the_posterior_mean(gamma: float) -> None:
    scheduler, x = PoissonFlowScheduler(gamma=gamma), CHARGES[:3] + 1
    scheduler.set_timesteps(sigmas=[2.0, 1.0])
    output = ChargeField(CHARGES, gamma=gamma)(x, 2.0).sample
    denoised = scheduler.step(output, scheduler.timesteps[0], x).pred_original_sample
    assert torch.allclose(denoised, posterior_mean(x, 2.0, CHARGES))


def test_a_single_step_goes_from_the_prior_to_its_mean() -> None:
    scheduler = PoissonFlowScheduler(prediction_type="sample")
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [40.0]
    x = CHARGES[:2] + 1
    assert torch.equal(scheduler.step(CHARGES[:2], scheduler.timesteps[0], x).prev_sample, CHARGES[:2])


@pytest.mark.parametrize("solver", ["multistep", "heun", "euler"])
def test_set_timesteps_resets_the_run(solver: str) -> None:
    scheduler = PoissonFlowScheduler(solver=solver)
    x = scheduler.sample_prior((3, 1, 4, 4), seeded(1))
    ends = []
    for interrupted in (False, True, False):
        scheduler.set_timesteps(7)
        if interrupted:
            scheduler.step(torch.ones(3, 2, 4, 4), scheduler.timesteps[0], x)
            scheduler.set_timesteps(7)
        ends.append(run(scheduler, ChargeField(CHARGES), x))
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("solver", ["multistep", "heun", "euler"])
def test_a_late_start_equals_a_run_from_there(solver: str) -> None:
    scheduler = PoissonFlowScheduler(solver=solver)
    scheduler.set_timesteps(8)
    sigmas = scheduler.timesteps.unique().flip(0).tolist()
    begin = 3 * scheduler.order
    late = scheduler.timesteps[begin:]
    x = CHARGES[:3] + 0.3
    model = ChargeField(CHARGES)

    scheduler.set_timesteps(sigmas=sigmas[3:])
    expected = run(scheduler, model, x)
    for by_index in (True, False):
        scheduler.set_timesteps(8)
        if by_index:
            scheduler.set_begin_index(begin)
        y = x
        for t in late if by_index else scheduler.timesteps[begin:]:
            y = scheduler.step(model(y, t).sample, t if by_index else t.item(), y).prev_sample
        assert torch.equal(y, expected)


def test_heun_from_a_second_call_first_keeps_the_state() -> None:
    scheduler, x = PoissonFlowScheduler(solver="heun"), CHARGES[:3] + 0.3
    scheduler.set_timesteps(8)
    scheduler.set_begin_index(5)
    t = scheduler.timesteps[5]
    assert torch.equal(scheduler.step(ChargeField(CHARGES)(x, t).sample, t, x).prev_sample, x)


def test_heun_from_a_second_call_continues_at_the_next_step() -> None:
    scheduler, model, x = PoissonFlowScheduler(solver="heun"), ChargeField(CHARGES), CHARGES[:3] + 0.3
    scheduler.set_timesteps(8)
    sigmas = scheduler.timesteps.unique().flip(0).tolist()
    late = scheduler.timesteps[5:].tolist()
    scheduler.set_timesteps(sigmas=sigmas[3:])
    expected = run(scheduler, model, x)
    scheduler.set_timesteps(8)
    scheduler.set_begin_index(5)
    y = x
    for t in late:  # as numbers, which both calls of a step have in common
        y = scheduler.step(model(y, t).sample, t, y).prev_sample
    assert torch.equal(y, expected)


def test_indices_follow_the_run_and_are_reset() -> None:
    scheduler, x = PoissonFlowScheduler(), CHARGES[:3] + 0.3
    scheduler.set_timesteps(8)
    assert scheduler.index_for_timestep(123.0) == 0 and scheduler.step_index is None
    assert scheduler.index_for_timestep(scheduler.timesteps[5], scheduler.timesteps[2:]) == 3
    scheduler.set_begin_index(3)
    scheduler.step(torch.ones(3, 2, 4, 4), scheduler.timesteps[3], x)
    assert scheduler.begin_index == 3 and scheduler.step_index == 4
    scheduler.set_timesteps(sigmas=[30.0, 3.0])
    assert scheduler.begin_index is None and scheduler.step_index is None and scheduler.init_noise_sigma == 30


def test_step_changes_no_input() -> None:
    scheduler = PoissonFlowScheduler()
    scheduler.set_timesteps(4)
    x, output = torch.ones(2, 1, 4, 4), torch.ones(2, 2, 4, 4)
    for t in scheduler.timesteps:
        scheduler.step(output, t, x)
    assert torch.equal(x, torch.ones_like(x)) and torch.equal(output, torch.ones_like(output))


def test_only_the_x_hats_of_the_next_step_are_kept() -> None:
    x, output = torch.ones(2, 1, 4, 4), torch.ones(2, 2, 4, 4)
    for solver, expected in (("multistep", 3), ("heun", 1), ("euler", 0)):
        scheduler = PoissonFlowScheduler(solver=solver)
        scheduler.set_timesteps(8)
        counts = []
        for t in scheduler.timesteps:
            scheduler.step(output, t, x)
            counts.append(len(scheduler._denoised))
        assert max(counts) == expected and counts[-1] == 0
