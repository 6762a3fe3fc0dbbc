"""A checkpoint is complete or absent, and holds every state of a run."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel

from diffusers_pfgm.training.run import checkpoint_contents, checkpoints
from diffusers_pfgm.training.run.checkpoint_contents import checkpoint_step, find_corruption, read_settings
from diffusers_pfgm.training.run.checkpoints import (
    find_checkpoint,
    list_checkpoints,
    register_ema_hooks,
    remove_incomplete_checkpoints,
    restore_checkpoint,
    save_checkpoint,
)
from tests.networks import make_tiny_unet


class Run:
    """A network in training with its EMA weights."""

    def __init__(self) -> None:
        self.accelerator = Accelerator(cpu=True)
        self.unet = make_tiny_unet().train()
        self.ema = EMAModel(self.unet.parameters(), model_cls=UNet2DModel, model_config=self.unet.config)
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=1e-2)
        register_ema_hooks(self.accelerator, self.ema)
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


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    run = Run()
    for step in (1, 2, 3):
        run.step()
        save_checkpoint(run.accelerator, folder, step, {"seed": 7}, total_limit=2)
    return folder


@pytest.fixture
def saved(written: Path, tmp_path: Path) -> Path:
    """A copy of two checkpoints."""
    return Path(shutil.copytree(written, tmp_path, dirs_exist_ok=True))


def test_a_resumed_run_is_equal_to_the_bit(tmp_path: Path) -> None:
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


def test_old_checkpoints_are_removed_and_weights_are_safetensors(saved: Path) -> None:
    assert [path.name for path in list_checkpoints(saved)] == ["checkpoint-2", "checkpoint-3"]
    assert not list(saved.glob(".*"))
    weights = {path.suffix for path in saved.rglob("*model*") if path.is_file()}
    assert weights == {".safetensors"}


@pytest.mark.parametrize("how", ["shorter", "changed", "missing", "no contents", "empty contents"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(saved: Path, how: str) -> None:
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
    with pytest.warns(UserWarning, match="checkpoint-3 is skipped because it is damaged: "):
        assert find_checkpoint("latest", saved).name == "checkpoint-2"
    with pytest.raises(ValueError, match=r"checkpoint-3' is damaged: .* Use another checkpoint, or 'latest'"):
        find_checkpoint(str(newest), saved)


def test_without_an_undamaged_checkpoint_there_is_no_latest(saved: Path) -> None:
    for path in list_checkpoints(saved):
        (path / "contents.json").unlink()
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"there is no undamaged checkpoint-\* folder"):
        find_checkpoint("latest", saved)


def test_incomplete_checkpoints_are_removed(saved: Path) -> None:
    shutil.copytree(saved / "checkpoint-3", saved / ".checkpoint-4.partial")
    remove_incomplete_checkpoints(saved)
    assert sorted(path.name for path in saved.iterdir()) == ["checkpoint-2", "checkpoint-3"]


def test_a_failed_write_does_not_change_the_last_checkpoint(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run()

    def full(*args: Any) -> None:
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(checkpoints, "write_contents", full)
    with pytest.raises(OSError, match=r"checkpoint-4 could not be written.*No space left.*checkpoint-3, is unchanged"):
        save_checkpoint(run.accelerator, saved, 4, {})
    assert sorted(path.name for path in saved.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    assert find_corruption(saved / "checkpoint-3") is None


def test_a_failed_write_names_the_last_undamaged_checkpoint(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(saved / "checkpoint-3")
    monkeypatch.setattr(checkpoints, "write_contents", lambda *args: 1 / 0)
    with pytest.warns(UserWarning), pytest.raises(OSError, match=r"The last good checkpoint, .*checkpoint-2, is unc"):
        save_checkpoint(Run().accelerator, saved, 4, {})


def test_a_checkpoint_of_the_same_name_is_set_aside(saved: Path) -> None:
    save_checkpoint(Run().accelerator, saved, 3, {"seed": 8})
    assert read_settings(saved / "checkpoint-3") == {"seed": 8} and not list(saved.glob(".*"))
    assert read_settings(saved / "set-aside-1" / "checkpoint-3") == {"seed": 7}


def names(folder: Path) -> list[str]:
    return [path.name for path in list_checkpoints(folder)]


def damage(checkpoint: Path) -> None:
    path = checkpoint / "optimizer.bin"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def write(folder: Path, *steps: int, **options: Any) -> None:
    run = Run()
    for step in steps:
        save_checkpoint(run.accelerator, folder, step, {}, **options)


def test_a_damaged_checkpoint_is_not_counted(tmp_path: Path) -> None:
    write(tmp_path, 2, 4, 6)
    damage(tmp_path / "checkpoint-4")
    with pytest.warns(UserWarning, match=r"checkpoint-4 is not counted by .* because it is damaged: opt"):
        write(tmp_path, 8, total_limit=3)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-6", "checkpoint-8"]


def test_unchanged_checkpoints_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    monkeypatch.setattr(checkpoint_contents, "find_corruption", lambda path: checked.append(path.name))
    write(tmp_path, 1, 2, 3, 4, total_limit=9)
    damage(tmp_path / "checkpoint-2")
    write(tmp_path, 5, total_limit=9)
    assert checked == ["checkpoint-1", "checkpoint-2", "checkpoint-3", "checkpoint-4", "checkpoint-2", "checkpoint-5"]


def test_the_new_checkpoint_and_the_resumed_one_are_kept(tmp_path: Path) -> None:
    write(tmp_path, 2, 4, 6, 8)
    shutil.copytree(tmp_path / "checkpoint-8", tmp_path / "checkpoint-900")  # a user's copy, made during the run
    write(tmp_path, 7, total_limit=1, resumed_from=tmp_path / "checkpoint-6")
    assert names(tmp_path)[:2] == ["checkpoint-6", "checkpoint-7"] and len(names(tmp_path)) == 3


def test_links_and_folders_of_the_user_are_not_removed(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    (tmp_path / "archive").mkdir()
    (tmp_path / "checkpoint-1").rename(tmp_path / "archive" / "checkpoint-1")
    (tmp_path / "checkpoint-1").symlink_to("archive/checkpoint-1")
    (tmp_path / "checkpoint-0").mkdir()
    (tmp_path / "checkpoint-0" / "photo.png").write_text("photo")
    (tmp_path / "checkpoint-5").symlink_to("nowhere")
    with pytest.warns(UserWarning, match=r"checkpoint-0 is not counted .* contents.json is missing"):
        write(tmp_path, 3, 4, total_limit=1)
    assert sorted(names(tmp_path)) == [f"checkpoint-{step}" for step in (0, 1, 4, 5)]
    assert find_corruption(tmp_path / "archive" / "checkpoint-1") is None
    assert (tmp_path / "checkpoint-0" / "photo.png").exists()
    with pytest.warns(UserWarning, match="checkpoint-5 is skipped"):
        assert find_checkpoint("latest", tmp_path).name == "checkpoint-4"


def test_the_step_is_read_from_the_contents(saved: Path) -> None:
    (saved / "checkpoint-2").rename(saved / "checkpoint-70")
    shutil.copytree(saved / "checkpoint-3", saved / "copy")
    assert [checkpoint_step(saved / name) for name in ("checkpoint-70", "copy")] == [2, 3]
    assert find_checkpoint("latest", saved).name == "checkpoint-3"
    # A checkpoint of version 0.1.0 has its step only in the state of the EMA.
    old = saved / "checkpoint-70" / "contents.json"
    contents = json.loads(old.read_text())
    old.write_text(json.dumps({name: contents[name] for name in ("settings", "files")}, indent=1))
    assert find_corruption(old.parent) is None and checkpoint_step(old.parent) == 2


def test_one_changed_byte_of_the_contents_is_detected(saved: Path) -> None:
    path = saved / "checkpoint-3" / "contents.json"
    whole = path.read_bytes()
    for position, byte in enumerate(whole):
        for changed in (byte ^ 1 << position % 8, ord("\t")):  # white space that changes no value is detected too
            path.write_bytes(whole[:position] + bytes([changed]) + whole[position + 1 :])
            assert find_corruption(path.parent) is not None, position
    for text in (b"", b"[]", b"3", b'{"settings": {}, "files": []}', whole[:-1], whole + b"\n"):
        path.write_bytes(text)
        assert find_corruption(path.parent) is not None, text


def test_a_name_is_looked_up_in_the_output_folder(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (saved / "elsewhere").mkdir()
    monkeypatch.chdir(saved / "elsewhere")
    assert find_checkpoint("checkpoint-2", saved) == saved / "checkpoint-2"
    assert find_checkpoint("../checkpoint-2", saved).resolve() == saved / "checkpoint-2"
    with pytest.raises(ValueError, match=r"'checkpoint-1' is not a folder.*\(checkpoint-2, checkpoint-3\)"):
        find_checkpoint("checkpoint-1", saved)


def test_the_count_of_accumulated_parts_is_reset(tmp_path: Path) -> None:
    run = Run()
    run.accelerator.step = 3  # accelerate's count of micro-batches
    path = save_checkpoint(run.accelerator, tmp_path, 3, {})
    assert restore_checkpoint(run.accelerator, path, seed=0) == 3 and run.accelerator.step == 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_of_a_diverged_run_are_skipped(tmp_path: Path, value: float) -> None:
    run = Run()
    run.step()
    save_checkpoint(run.accelerator, tmp_path, 1, {})
    with torch.no_grad():
        run.ema.shadow_params[2].view(-1)[0] = value
    save_checkpoint(run.accelerator, tmp_path, 2, {}, total_limit=1)  # as version 0.1.0 wrote them
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]
    with pytest.warns(UserWarning, match=r"checkpoint-2 is skipped because it is damaged: .* holds NaN or infinity"):
        assert find_checkpoint("latest", tmp_path).name == "checkpoint-1"
    with pytest.raises(ValueError, match=r"checkpoint-2' is damaged: .* holds NaN or infinity, since its run diverged"):
        find_checkpoint("checkpoint-2", tmp_path)
