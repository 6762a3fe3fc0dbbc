"""Configurations are checked, and survive a round trip through a file."""

import inspect
import math
from typing import Any

import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
)

from diffusers_pfgm import PoissonFlowScheduler


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"aug_dim": 0}, "`aug_dim` must be a number > 0, or None for infinity, but is 0"),
        ({"aug_dim": -3.0}, "`aug_dim` must be"),
        ({"sigma_min": 0.0}, "0 < sigma_min < sigma_max < inf, but are 0.0 and 40.0"),
        ({"sigma_min": 50.0}, "but are 50.0 and 40.0"),
        ({"sigma_max": 1e39}, "values of sigma between inf and inf are not distinct"),
        ({"sigma_min": None}, "but are None and 40.0"),
        ({"prediction_type": "flow"}, "`prediction_type` must be one of .* but is 'flow'"),
        ({"solver": "rk45"}, "`solver` must be one of .* but is 'rk45'"),
        ({"solver_order": 4}, r"`solver_order` \(`order` of `plan_steps`\) must be 1, 2 or 3, but is 4"),
        ({"solver_order": 2.0}, "`solver_order` must be a whole number, but is 2.0"),
        ({"max_norm": math.inf}, "`max_norm` must be a finite number > 0 or None, but is inf"),
        ({"gamma": math.inf}, "`gamma` must be a finite number >= 0, but is inf"),
        ({"gamma": -1.0}, "`gamma` must be a finite number >= 0, but is -1.0"),
        ({"sigma_data": 0.0}, "`sigma_data` must be a finite number > 0 or None, but is 0.0"),
        ({"sigma_data": math.inf}, "`sigma_data` must be a finite number > 0 or None, but is inf"),
        ({"max_norm": 0.0}, "`max_norm` must be a finite number > 0 or None, but is 0.0"),
    ],
)
def test_invalid_configs_raise(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PoissonFlowScheduler(**config)


def test_config_survives_a_round_trip(tmp_path: Any) -> None:
    scheduler = PoissonFlowScheduler(aug_dim=None, prediction_type="sample", sigma_max=9.0, solver="heun", max_norm=3.0)
    scheduler.save_pretrained(tmp_path)
    text = (tmp_path / "scheduler_config.json").read_text()
    assert "Infinity" not in text and '"aug_dim": null' in text
    loaded = PoissonFlowScheduler.from_pretrained(tmp_path)
    ignored = {"_use_default_values"}
    assert {k: v for k, v in loaded.config.items() if k not in ignored} == {
        k: v for k, v in scheduler.config.items() if k not in ignored
    }
    assert PoissonFlowScheduler.from_config(scheduler.config, solver="euler").config.sigma_max == 9.0


def test_infinite_aug_dim_is_saved_as_null(tmp_path: Any) -> None:
    PoissonFlowScheduler(aug_dim=math.inf).save_pretrained(tmp_path)
    assert '"aug_dim": null' in (tmp_path / "scheduler_config.json").read_text()
    assert PoissonFlowScheduler.from_pretrained(tmp_path).kernel.aug_dim == math.inf


def test_original_sample_is_another_name_of_sample() -> None:
    assert PoissonFlowScheduler(prediction_type="original_sample").config.prediction_type == "sample"


@pytest.mark.parametrize("theirs", [EDMDPMSolverMultistepScheduler, DDIMScheduler, CMStochasticIterativeScheduler])
def test_methods_take_the_arguments_of_diffusers(theirs: Any) -> None:
    shared = {"set_begin_index", "scale_model_input", "index_for_timestep", "set_timesteps", "add_noise", "__len__"}
    for name in shared & vars(theirs).keys():
        ours = inspect.signature(getattr(PoissonFlowScheduler, name)).parameters
        assert inspect.signature(getattr(theirs, name)).parameters.keys() <= ours.keys(), name


def test_length_is_that_of_the_scheduler_it_was_made_from() -> None:
    for scheduler in (EDMEulerScheduler(), DDIMScheduler(num_train_timesteps=500)):
        assert len(PoissonFlowScheduler.from_config(scheduler.config)) == len(scheduler)
    trained = DDPMScheduler(trained_betas=[0.01, 0.02, 0.03])
    assert len(PoissonFlowScheduler.from_config(trained.config)) == len(trained.betas)


def test_one_trained_timestep() -> None:
    theirs = DDIMScheduler(num_train_timesteps=1, beta_start=0.5, clip_sample=False)
    ours = PoissonFlowScheduler.from_config(theirs.config)
    x, output = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.3)
    ends = []
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(1)
        ends.append(scheduler.step(output, scheduler.timesteps[0], x).prev_sample)
    assert torch.allclose(*ends)
