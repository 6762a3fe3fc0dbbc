"""Time of a scheduler's step compared with that of diffusers' DPMSolverMultistepScheduler."""

from statistics import median

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from diffusers_pfgm import PoissonFlowScheduler
from diffusers_pfgm.examples.claims.speed import time_of_a_step
from tests.networks import seeded

STEPS, ROUNDS = 100, 20


@pytest.mark.parametrize("shape", [(4, 4, 64, 64), (1, 3, 32, 32)])
@pytest.mark.parametrize("prediction_type", ["field", "sample", "epsilon", "v_prediction"])
@pytest.mark.parametrize("solver", ["multistep", "heun", "euler"])
@pytest.mark.parametrize("beta_schedule", [None, "linear"])
def test_step(shape: tuple[int, ...], prediction_type: str, solver: str, beta_schedule: str | None) -> None:
    options = {"prediction_type": prediction_type, "solver": solver, "beta_schedule": beta_schedule}
    x, ours, theirs = torch.randn(shape, generator=seeded()), [], []
    channels = shape[1] + (prediction_type == "field")
    output = torch.randn(shape[0], channels, *shape[2:], generator=seeded(1))
    for _ in range(ROUNDS):
        ours.append(time_of_a_step(PoissonFlowScheduler(**options), output, x, STEPS))
        theirs.append(time_of_a_step(DPMSolverMultistepScheduler(), output[:, : shape[1]].contiguous(), x, STEPS))
    ratio = median(a / b for a, b in zip(ours, theirs, strict=True))
    print(
        f"\nstep at {shape}, {prediction_type}, {solver}, {beta_schedule}: {ratio:.2f} of DPMSolverMultistepScheduler"
    )
    # x̂ from a field takes the norms of two tensors, about twenty small operations, far less than a network call.
    assert ratio <= (2.5 if prediction_type == "field" else 1.0)
