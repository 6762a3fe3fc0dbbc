"""The random states of each process are restored, or reinitialized with a message."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from diffusers_pfgm.training.run.random_states import restore_random_states


def draw() -> list[float]:
    return [random.random(), np.random.rand(), torch.rand(()).item()]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    Accelerator(cpu=True).save_state(str(tmp_path / "checkpoint-3"))
    yield tmp_path / "checkpoint-3"
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.set_rng_state(before[2])


def test_saved_states_are_restored(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = draw()
    draw()
    restore_random_states(Accelerator(cpu=True), checkpoint, seed=1, step=3)
    assert draw() == expected and capsys.readouterr().out == ""


@pytest.mark.parametrize("how", ["missing", "another library's", "incomplete", "no tensor"])
def test_states_that_cannot_be_restored_depend_on_seed_and_step(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    path = checkpoint / "random_states_0.pkl"
    states: dict[str, Any] = torch.load(path, weights_only=False)
    if how == "missing":
        path.unlink()
    elif how == "another library's":
        torch.save(states | {"numpy_random_seed": Path()}, path)  # a class that weights_only refuses
    elif how == "incomplete":
        del states["numpy_random_seed"]
        torch.save(states, path)
    else:
        torch.save(states | {"torch_manual_seed": 3}, path)
    accelerator = Accelerator(cpu=True)
    numbers = []
    message = "The random states of processes 0 are reinitialized from the seed and the step"
    for seed, step in ((1, 3), (1, 3), (1, 4), (2, 3)):
        restore_random_states(accelerator, checkpoint, seed, step)
        numbers.append(torch.rand(()).item())
        assert message in capsys.readouterr().out
    assert numbers[0] == numbers[1] and len({*numbers}) == 3


def test_states_of_additional_processes_differ(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkpoint / "random_states_0.pkl").unlink()
    drawn = set()
    for process in range(4):
        monkeypatch.setattr(Accelerator, "process_index", process)
        restore_random_states(Accelerator(cpu=True), checkpoint, seed=1, step=3)
        drawn.add((random.random(), np.random.rand(), torch.rand(()).item()))
    assert len({numbers[2] for numbers in drawn}) == len({numbers[0] for numbers in drawn}) == 4


@pytest.mark.parametrize(("index", "restored"), [(None, True), (1, True), (2, False)])
def test_each_process_restores_the_state_of_its_own_device(
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    index: int | None,
    restored: bool,
) -> None:
    path = checkpoint / "random_states_0.pkl"
    calls = []
    device_states = [torch.tensor([number], dtype=torch.uint8) for number in (10, 11)]
    torch.save(torch.load(path, weights_only=False) | {"torch_cuda_manual_seed": device_states}, path)
    module = SimpleNamespace(set_rng_state=lambda state, device: calls.append((state.item(), device)))
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    device = torch.device("cuda", index) if index is not None else torch.device("cuda")
    monkeypatch.setattr(Accelerator, "device", device)
    restore_random_states(Accelerator(cpu=True), checkpoint, seed=1, step=3)
    assert calls == ([(10 + (index or 0), device)] if restored else [])
    assert ("reinitialized" in capsys.readouterr().out) != restored
