"""A saved folder is whole at any moment, and loads with and without this package's own class."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EDMEulerScheduler, UNet2DModel

from diffusers_pfgm import PFGMPipeline
from tests.conftest import make_tiny_pipeline, make_tiny_unet, seeded


def test_plain_diffusers_loads_it_where_the_code_is_trusted(tmp_path: Path) -> None:
    make_tiny_pipeline().save_pretrained(tmp_path)
    script = """
import sys
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=sys.argv[2] == "True")
print(type(pipe).__module__, type(pipe).__name__, type(pipe.scheduler).__name__)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run([*command, "True"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["diffusers_pfgm.pipeline_pfgm", "PFGMPipeline", "PoissonFlowScheduler"]
    done = subprocess.run([*command, "False"], capture_output=True, text=True)
    assert done.returncode != 0 and "trust_remote_code" in done.stderr


def test_folders_of_earlier_versions_load(tmp_path: Path) -> None:
    make_tiny_pipeline().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"_class_name": "PFGMPipeline"}))
    for name in ("pipeline.py", "scheduler/diffusers_pfgm.py", "README.md"):
        (tmp_path / name).unlink()
    assert type(PFGMPipeline.from_pretrained(tmp_path)) is PFGMPipeline


def test_a_scheduler_of_diffusers_needs_no_code(tmp_path: Path) -> None:
    unet = make_tiny_unet(1, 1)
    PFGMPipeline(unet, EDMEulerScheduler()).save_pretrained(tmp_path)
    assert not (tmp_path / "scheduler" / "diffusers_pfgm.py").exists()
    assert type(PFGMPipeline.from_pretrained(tmp_path).scheduler) is EDMEulerScheduler


def test_half_precision_is_a_variant(tmp_path: Path) -> None:
    pipe = make_tiny_pipeline()
    pipe.save_pretrained(tmp_path)
    pipe.to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    names = sorted(path.name for path in (tmp_path / "unet").glob("*.safetensors"))
    assert names == ["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors"]
    half = PFGMPipeline.from_pretrained(tmp_path, variant="fp16")
    assert torch.equal(half.unet.conv_in.weight, make_tiny_unet().conv_in.weight.half().float())


def test_a_failed_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = make_tiny_pipeline()
    pipe.save_pretrained(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    here = pipe(2, 3, seeded(), output_type="pt").images
    with torch.no_grad():
        pipe.unet.conv_in.weight.zero_()

    def full(self: Any, folder: Any, **options: Any) -> None:
        Path(folder).mkdir(parents=True)
        (Path(folder) / "diffusion_pytorch_model.safetensors").write_text("half")
        raise OSError("No space left on device")

    monkeypatch.setattr(UNet2DModel, "save_pretrained", full)
    with pytest.raises(OSError, match=r"could not be saved to, and is as it was: .*No space left"):
        pipe.save_pretrained(tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    loaded = PFGMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(loaded(2, 3, seeded(), output_type="pt").images, here)


def test_what_a_kill_left_is_swept_up(tmp_path: Path) -> None:
    (tmp_path / ".saving" / "unet").mkdir(parents=True)
    (tmp_path / ".saving" / "unet" / "old.safetensors").write_text("half")
    make_tiny_pipeline().save_pretrained(tmp_path)
    assert not (tmp_path / ".saving").exists() and not (tmp_path / "unet" / "old.safetensors").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"`save_directory` .* is a file. Name a folder"):
        make_tiny_pipeline().save_pretrained(tmp_path / "file")
