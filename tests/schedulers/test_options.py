"""An option of the wrong type raises an error that names it, before anything is computed from it."""

import inspect
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusers_pfgm import PoissonFlowScheduler
from diffusers_pfgm.schedulers.options import KINDS, OPTIONAL

OPTIONS = list(inspect.signature(PoissonFlowScheduler.__init__).parameters)[1:]
WRONG = {
    "a number": ("1.0", [1.0], {}, True, math.nan, 1j, torch.tensor(1.0), object()),
    "a whole number": ("1", 1.0, 1.5, [1], False, math.nan, np.float64(2)),
    "True or False": ("true", 1, 0.0, [True], np.ones(2), math.nan),
    "a list of numbers": (
        "0.1,0.2",
        0.1,
        ["0.1", "0.2"],
        [0.1, None],
        [[0.1], [0.2]],
        [0.1, math.nan],
        {0.1: 0.2},
        True,
    ),
    "a dictionary": (1, 1.5, "linear", [("sigmas", [1.0])], True),
    "a string": (1, 1.5, ["linear"], {}, True, np.array(["a", "b"])),
}


def test_every_option_has_a_type() -> None:
    assert sorted(OPTIONS) == sorted(name for names in KINDS.values() for name in names)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in KINDS.items() for name in names])
def test_wrong_types_raise(kind: str, name: str) -> None:
    for value in WRONG[kind]:
        with pytest.raises(ValueError, match=f"`{name}` must be {kind}.* but is {re.escape(repr(value)[:20])}"):
            PoissonFlowScheduler(**{name: value})
        with pytest.raises(ValueError, match=f"`{name}` must be {kind}"):
            PoissonFlowScheduler.from_config({"aug_dim": 1.0, name: value})
    if name not in OPTIONAL:
        with pytest.raises(ValueError, match=f"`{name}` must be {kind}, but is None"):
            PoissonFlowScheduler(**{name: None})


@pytest.mark.parametrize("count", [10**9, 1_000_001, 0, -5])
def test_the_number_of_timesteps_is_checked_before_tensors_are_made(count: int) -> None:
    message = f"`num_train_timesteps` must be at least 1 and at most 1000000, but is {count}"
    for options in ({}, {"beta_schedule": "linear", "prediction_type": "epsilon"}):
        with pytest.raises(ValueError, match=message):
            PoissonFlowScheduler(num_train_timesteps=count, **options)
    with pytest.raises(ValueError, match=message):
        PoissonFlowScheduler.from_config({"_class_name": "DDPMScheduler", "num_train_timesteps": count})


def test_a_negative_offset_raises() -> None:
    with pytest.raises(ValueError, match="`steps_offset` must be a whole number >= 0, but is -1"):
        PoissonFlowScheduler(steps_offset=-1)


def test_numpy_numbers_are_saved_as_json_numbers(tmp_path: Path) -> None:
    scheduler = PoissonFlowScheduler(
        np.float32(64),
        sigma_max=np.float64(30),
        sigma_data=np.float32(0.5),
        prediction_type="epsilon",
        solver_order=np.int64(2),
        M=np.int32(200),
        sigma_knots=np.array([30.0, 1.0, 0.01]),
    )
    scheduler.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert (saved["aug_dim"], saved["sigma_max"], saved["sigma_data"]) == (64, 30, 0.5)
    assert (saved["solver_order"], saved["M"], saved["sigma_knots"]) == (2, 200, [30.0, 1.0, 0.01])
    for knots in ((30.0, 1.0, 0.01), torch.tensor([30.0, 1.0, 0.01], dtype=torch.float64)):
        assert PoissonFlowScheduler(sigma_max=30.0, sigma_knots=knots).config.sigma_knots == [30.0, 1.0, 0.01]
