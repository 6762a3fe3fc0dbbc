"""NaN and infinity are detected in tensors and in files."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffusers_pfgm.training.run.finite_weights import all_finite, non_finite_weight
from tests.physics.mps_policy import MPS, MPSPolicy


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_number_that_is_not_finite_is_detected(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    weights = {"a": torch.zeros(3, dtype=dtype), "b.c": torch.zeros(2, 2, dtype=dtype), "steps": torch.tensor(3)}
    (tmp_path / "unet_ema").mkdir()
    save_file(weights, tmp_path / "unet_ema" / "model.safetensors")
    assert all_finite(weights.values()) and non_finite_weight(tmp_path) is None
    weights["b.c"][1, 0] = value
    save_file(weights, tmp_path / "unet_ema" / "model.safetensors")
    assert not all_finite(weights.values())
    assert non_finite_weight(tmp_path) == "b.c in unet_ema/model.safetensors"


def test_weights_on_a_device_and_step_counts_on_the_cpu_are_read_together() -> None:
    counts = torch.tensor(3.0)  # the optimizers of torch keep these on the CPU
    for value in (1.0, torch.nan):
        weights = torch.full((2, 2), value)
        with MPSPolicy():
            flag = all_finite([weights.to(MPS), counts])
            assert flag.device == MPS
            assert flag.item() == (value == 1.0)


def test_an_optimizer_without_state_is_finite() -> None:
    assert all_finite([])
