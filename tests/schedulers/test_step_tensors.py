"""A step keeps the dtype of the state, reads nothing back from the device, and is one graph for torch.compile."""

from typing import Any

import pytest
import torch

from diffusers_pfgm import PoissonFlowScheduler
from tests.networks import seeded
from tests.schedulers.exact_runs import epsilon


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_state_keeps_its_dtype(dtype: torch.dtype) -> None:
    scheduler = PoissonFlowScheduler()
    scheduler.set_timesteps(3)
    x = torch.ones(2, 1, 4, 4, dtype=dtype)
    output = scheduler.step(torch.ones(2, 2, 4, 4, dtype=dtype), scheduler.timesteps[0], x)
    assert output.prev_sample.dtype == output.pred_original_sample.dtype == dtype
    as_tuple = PoissonFlowScheduler()
    as_tuple.set_timesteps(3)
    other = as_tuple.step(torch.ones(2, 2, 4, 4, dtype=dtype), as_tuple.timesteps[0], x, return_dict=False)
    assert torch.equal(other[0], output.prev_sample) and torch.equal(other[1], output.pred_original_sample)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_only_rounded_at_the_end(dtype: torch.dtype) -> None:
    x, output = (torch.randn(3, c, 4, 4, generator=seeded(c)).to(dtype) for c in (1, 2))
    results = []
    for kind in (dtype, torch.float32):
        scheduler = PoissonFlowScheduler(gamma=0.1)
        scheduler.set_timesteps(sigmas=[1.0, 0.7])
        results.append(scheduler.step(output.to(kind), scheduler.timesteps[0], x.to(kind)).prev_sample.to(dtype))
    assert torch.equal(*results)


def test_step_reads_nothing_back_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    # To read a tensor's value, the host must wait for the device. All ways to read one are in this list.
    scheduler = PoissonFlowScheduler(prediction_type="field")
    scheduler.set_timesteps(5)
    x, output = torch.ones(2, 1, 4, 4), torch.ones(2, 2, 4, 4)

    def refuse(*_: object) -> None:
        raise AssertionError("the step reads a tensor's value")

    for name in ("item", "__float__", "__int__", "__bool__", "tolist", "cpu", "numpy", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    for t in scheduler.timesteps:
        x = scheduler.step(output, t, scheduler.scale_model_input(x, t)).prev_sample


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["multistep", "heun", "euler"])
@pytest.mark.parametrize(
    "options",
    [
        {"prediction_type": "field"},
        {"prediction_type": "epsilon", "sigma_data": 0.5},
        {"prediction_type": "sample", "sigma_data": 0.5, "data_mean": 0.0, "mean_square_std": 0.1},
        {"prediction_type": "v_prediction", "beta_schedule": "linear"},
    ],
    ids=lambda options: options["prediction_type"],
)
def test_each_step_is_one_graph(solver: str, options: dict[str, Any]) -> None:
    ours, compiled = (PoissonFlowScheduler(solver=solver, **options) for _ in range(2))
    for scheduler in (ours, compiled):
        scheduler.set_timesteps(4 if solver == "multistep" else 2)  # each kind of step at least once
        scheduler.set_begin_index(0)
    x = y = torch.randn(2, 1, 4, 4, generator=seeded())
    for t in ours.timesteps:
        output = torch.randn(2, ours.parameterization.output_channels(1), 4, 4, generator=seeded(1))
        torch._dynamo.reset()
        step = torch.compile(compiled.step, fullgraph=True, backend="eager")
        ours.network_timestep(x, t)
        compiled.network_timestep(y, t)
        x = ours.step(output, t, ours.scale_model_input(x, t)).prev_sample
        y = step(output, t, compiled.scale_model_input(y, t)).prev_sample
        assert torch.allclose(x, y)


def test_a_learned_variance_is_ignored() -> None:
    x, output, variance = (torch.randn(2, 3, 4, 4, generator=seeded(i)) for i in range(3))
    plain, learned = epsilon(beta_schedule="linear"), epsilon(beta_schedule="linear", variance_type="learned_range")
    ends = []
    for scheduler, outputs in ((plain, output), (learned, torch.cat([output, variance], 1)), (learned, output)):
        scheduler.set_timesteps(3)
        ends.append(scheduler.step(outputs, scheduler.timesteps[0], x).prev_sample)
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])
    plain.set_timesteps(3)
    with pytest.raises(ValueError, match=r"`model_output` must have the shape .*`variance_type`"):
        plain.step(torch.cat([output, variance], 1), plain.timesteps[0], x)
    with pytest.raises(ValueError, match=r"`variance_type` must be one of .* but is 'large'"):
        epsilon(variance_type="large")
    with pytest.raises(
        ValueError, match=r"'learned_range' are for networks of diffusion models.* Set `variance_type=None`"
    ):
        PoissonFlowScheduler(variance_type="learned")
