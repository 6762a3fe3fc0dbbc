"""Whole numbers of every numeric type, and nothing else."""

from typing import Any

import numpy as np
import pytest
import torch

from diffusers_pfgm.utils.checks import check_whole_number


@pytest.mark.parametrize(
    "value", [3, 3.0, np.int64(3), np.float32(3), np.array([3]), torch.tensor(3), torch.tensor([3.0])]
)
def test_numbers_of_any_type(value: Any) -> None:
    count = check_whole_number("count", value, 1)
    assert count == 3 and type(count) is int


@pytest.mark.parametrize(
    "value",
    [
        *(True, np.True_, torch.tensor(True), None, "3", np.str_("3"), 2.5, 0, -1, float("inf"), float("nan"), 3 + 0j),
        *(np.complex64(3), np.array([1, 2]), np.array([]), torch.tensor([1, 2]), torch.tensor([]), np.array("3")),
    ],
    ids=repr,
)
def test_other_values_are_explained(value: Any) -> None:
    with pytest.raises(ValueError, match="`count` must be a whole number >= 1, or more, but is "):
        check_whole_number("count", value, 1, ", or more")
