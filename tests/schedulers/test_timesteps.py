"""The timesteps of a run: by a number of steps, or from custom noise levels."""

import math
from typing import Any

import pytest
import torch

from diffusers_pfgm import PoissonFlowScheduler
from tests.schedulers.exact_runs import epsilon


@pytest.mark.parametrize(("solver", "calls"), [("multistep", 9), ("heun", 17), ("euler", 9)])
def test_timesteps_are_the_sigmas_of_the_calls(solver: str, calls: int) -> None:
    scheduler = PoissonFlowScheduler(solver=solver)
    scheduler.set_timesteps(9)
    assert len(scheduler.timesteps) == calls and len(scheduler.sigmas) == calls + 1
    assert scheduler.timesteps[0] == 40 and scheduler.timesteps[-1] == pytest.approx(0.01)
    assert scheduler.init_noise_sigma == 40 and scheduler.sigmas[-1] == 0
    ratios = scheduler.timesteps.unique().diff(prepend=torch.tensor([math.nan])) / scheduler.timesteps.unique()
    assert torch.allclose(ratios[1:], ratios[1], atol=1e-4)


def test_custom_sigmas_replace_the_number_of_steps() -> None:
    scheduler = PoissonFlowScheduler(prediction_type="epsilon", sigma_data=0.5)
    sigmas = [30.0, 3.0, 0.3]
    scheduler.set_timesteps(sigmas=sigmas)
    by_sigmas = scheduler.timesteps
    scheduler.set_timesteps(sigmas=torch.tensor([*sigmas, 0.0]))
    assert torch.equal(scheduler.timesteps, by_sigmas)
    scheduler.set_timesteps(timesteps=by_sigmas)
    assert torch.allclose(scheduler.sigmas, torch.tensor([*sigmas, 0.0]))
    assert scheduler.num_inference_steps == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of `num_inference_steps`, `sigmas` and `timesteps`"),
        ({"num_inference_steps": 5, "sigmas": [2.0, 1.0]}, "exactly one of"),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be a whole number >= 1, but is 0"),
        ({"num_inference_steps": -3}, "whole number >= 1, but is -3"),
        ({"num_inference_steps": 2.5}, "whole number >= 1, but is 2.5"),
        (
            {"sigmas": [1.0, 2.0]},
            r"`sigmas` must be a list of positive, strictly decreasing numbers .* but is \[1.0, 2.0\]",
        ),
        ({"sigmas": [2.0, 2.0]}, "strictly decreasing"),
        ({"sigmas": [2.0, -1.0]}, "positive, strictly"),
        ({"sigmas": []}, "strictly decreasing"),
        ({"sigmas": [math.nan, 1.0]}, "strictly decreasing"),
        ({"sigmas": [1.0, 0.999999999, 0.5]}, "in float32"),
        ({"sigmas": [1.0, 1e-50, 0.0]}, "in float32"),
        ({"sigmas": 3.0}, "must be a list"),
        ({"sigmas": [[3.0, 2.0]]}, "must be a list"),
        ({"num_inference_steps": math.nan}, "whole number >= 1, but is nan"),
        ({"sigmas": [math.inf, 1.0]}, "strictly decreasing"),
        ({"sigmas": ["high", "low"]}, r"`sigmas` must be a list of numbers, but is \['high', 'low'\]"),
        ({"timesteps": "900"}, "`timesteps` must be a list of numbers, but is '900'"),
        ({"num_inference_steps": "20"}, "whole number >= 1, but is '20'"),
        ({"num_inference_steps": True}, "whole number >= 1, but is True"),
        ({"timesteps": [1.0, 2.0]}, "`timesteps` must be a list of strictly decreasing numbers"),
    ],
)
def test_invalid_timesteps_raise(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PoissonFlowScheduler().set_timesteps(**arguments)


@pytest.mark.parametrize("timesteps", [[999, 500, 1], [30.0, 1.0], [100.0, 1.0], [-1.0, 1.0], [1.0, math.nan]])
def test_timesteps_of_another_preconditioning_raise(timesteps: list[float]) -> None:
    """EDM's timesteps are ln(σ)/4, so that those of a DDPM have a σ beyond the range of floating-point numbers."""
    scheduler = PoissonFlowScheduler(prediction_type="epsilon", sigma_data=0.5)
    with pytest.raises(ValueError, match=r"`timesteps` must be a list of strictly decreasing numbers .*ln\(sigma\)/4"):
        scheduler.set_timesteps(timesteps=timesteps)


def test_custom_sigmas_on_a_device_without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    on_mps, as_tensor = torch.tensor([3.0, 2.0, 1.0]), torch.as_tensor

    def without_float64(data: Any, dtype: torch.dtype | None = None, device: Any = None) -> torch.Tensor:
        if data is on_mps and dtype == torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        return as_tensor(data, dtype=dtype, device=device)

    monkeypatch.setattr(torch, "as_tensor", without_float64)
    monkeypatch.setattr(torch.Tensor, "cpu", torch.Tensor.clone)  # `on_mps.cpu()`
    for name in ("sigmas", "timesteps"):
        scheduler = PoissonFlowScheduler()
        scheduler.set_timesteps(**{name: on_mps})
        assert scheduler.timesteps.tolist() == [3.0, 2.0, 1.0] and scheduler.timesteps.dtype == torch.float32


def test_equal_sigmas_in_float32_raise() -> None:
    scheduler = PoissonFlowScheduler(sigma_min=1.0, sigma_max=1.000001)
    with pytest.raises(ValueError, match=r"100 values of sigma between 1.0\d* and 1.0 are not distinct in float32"):
        scheduler.set_timesteps(100)


@pytest.mark.parametrize("begin", [-1, 4, 1.5, None])
def test_a_begin_index_without_steps_raises(begin: Any) -> None:
    scheduler = PoissonFlowScheduler()
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match=f"`begin_index` must be from 0 to 3, but is {begin}.*`strength`"):
        scheduler.set_begin_index(begin)


def test_prev_timestep_must_be_the_next_timestep() -> None:
    scheduler = epsilon(beta_schedule="linear")
    scheduler.set_timesteps(3)
    x, (first, second, third) = torch.ones(1, 1, 2, 2), scheduler.timesteps
    scheduler.step(x, first, x, prev_timestep=second)
    with pytest.raises(ValueError, match="`prev_timestep` must be the element of `timesteps` after this one"):
        scheduler.step(x, second, x, prev_timestep=second)
    scheduler.step(x, second, x, prev_timestep=int(third))
    scheduler.step(x, third, x, prev_timestep=None)
