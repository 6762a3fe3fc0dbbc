"""A checkpoint is whole or not there, and holds every state of a run."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel

from diffusers_pfgm.training import checkpoints
from diffusers_pfgm.training.checkpoints import (
    damage,
    find_checkpoint,
    keep_average_with_state,
    list_checkpoints,
    read_settings,
    save_checkpoint,
    sweep,
)
from tests.conftest import make_tiny_unet


class Run:
    """A network in training, with its average."""

    def __init__(self) -> None:
        self.accelerator = Accelerator(cpu=True)
        self.unet = make_tiny_unet().train()
        self.ema = EMAModel(self.unet.parameters(), model_cls=UNet2DModel, model_config=self.unet.config)
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=1e-2)
        keep_average_with_state(self.accelerator, self.ema)
        self.unet, self.optimizer = self.accelerator.prepare(self.unet, self.optimizer)

    def step(self) -> None:
        x = torch.randn(2, 1, 8, 8)
        self.accelerator.backward(self.unet(x, 1.0).sample.square().mean())
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.unet.parameters())

    def state(self) -> list[torch.Tensor]:
        moments = [value for each in self.optimizer.state_dict()["state"].values() for value in each.values()]
        return [*self.unet.state_dict().values(), *self.ema.shadow_params, *moments, torch.get_rng_state()]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    run = Run()
    for step in (1, 2, 3):
        run.step()
        save_checkpoint(run.accelerator, tmp_path, step, {"seed": 7}, total_limit=2)
    return tmp_path


def test_a_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    run = Run()
    for _ in range(3):
        run.step()
    path = save_checkpoint(run.accelerator, tmp_path, 3, {"seed": 7})
    assert find_checkpoint("latest", tmp_path) == path and read_settings(path) == {"seed": 7}
    for _ in range(2):
        run.step()
    other = Run()
    torch.manual_seed(99)
    other.accelerator.load_state(str(path))
    for _ in range(2):
        other.step()
    assert all(torch.equal(a, b) for a, b in zip(run.state(), other.state(), strict=True))
    assert run.ema.optimization_step == other.ema.optimization_step == 5


def test_old_ones_are_rotated_and_weights_are_safetensors(saved: Path) -> None:
    assert [path.name for path in list_checkpoints(saved)] == ["checkpoint-2", "checkpoint-3"]
    assert not list(saved.glob(".*"))
    weights = {path.suffix for path in saved.rglob("*model*") if path.is_file()}
    assert weights == {".safetensors"}


@pytest.mark.parametrize("how", ["shorter", "changed", "missing", "no contents", "empty contents"])
def test_a_damaged_one_is_passed_over_with_a_warning(saved: Path, how: str) -> None:
    newest = saved / "checkpoint-3"
    weights = newest / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    if how == "shorter":
        weights.write_bytes(whole[:-1])
    elif how == "changed":
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif how == "missing":
        (newest / "optimizer.bin").unlink()
    elif how == "no contents":
        (newest / "contents.json").unlink()
    else:
        (newest / "contents.json").write_text("{")
    with pytest.warns(UserWarning, match="checkpoint-3 is passed over, for it is damaged: "):
        assert find_checkpoint("latest", saved).name == "checkpoint-2"
    with pytest.raises(ValueError, match=r"checkpoint-3' is damaged: .* Use another, or 'latest'"):
        find_checkpoint(str(newest), saved)


def test_only_damaged_ones_are_none(saved: Path) -> None:
    for path in list_checkpoints(saved):
        (path / "contents.json").unlink()
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"there is no checkpoint-.* that is whole"):
        find_checkpoint("latest", saved)


def test_what_a_kill_leaves_is_swept_up(saved: Path) -> None:
    shutil.copytree(saved / "checkpoint-3", saved / ".checkpoint-4.partial")
    (saved / "checkpoint-2").rename(saved / ".checkpoint-2.replaced")  # killed before the new one took its name
    shutil.copytree(saved / "checkpoint-3", saved / ".checkpoint-3.replaced")  # killed after that
    sweep(saved)
    assert sorted(path.name for path in saved.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    assert damage(saved / "checkpoint-2") is None
    sweep(saved, everything=True)
    assert not list(saved.iterdir())


def test_a_failed_write_leaves_the_last_one_whole(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run()

    def full(*args: Any) -> None:
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(checkpoints, "_close", full)
    with pytest.raises(OSError, match=r"checkpoint-4 could not be written.*No space left.*checkpoint-3, is untouched"):
        save_checkpoint(run.accelerator, saved, 4, {})
    assert sorted(path.name for path in saved.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    assert damage(saved / "checkpoint-3") is None


def test_one_of_that_name_is_replaced(saved: Path) -> None:
    save_checkpoint(Run().accelerator, saved, 3, {"seed": 8})
    assert read_settings(saved / "checkpoint-3") == {"seed": 8} and not list(saved.glob(".*"))
    assert json.loads((saved / "checkpoint-3" / "contents.json").read_text())["files"]
