"""A saved folder is never incomplete, and loads with and without this package's own class."""

import json
from inspect import Parameter, signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, EDMEulerScheduler, UNet2DModel
from diffusers.pipelines import pipeline_utils

from diffusers_pfgm import PFGMEditingPipeline, PFGMPipeline, PoissonFlowScheduler, SongUNet, pretrained_model
from diffusers_pfgm.hub.pretrained import MODELS
from diffusers_pfgm.pipelines import saving
from tests.networks import make_tiny_pipeline, make_tiny_unet, seeded
from tests.schedulers.tiny_pipelines import SCALED_LINEAR, make
from tests.warm_python import WarmPython


@pytest.mark.parametrize("pretrained", [None, *MODELS])
def test_plain_diffusers_loads_a_folder_with_trusted_code(
    plain_python: WarmPython, tmp_path: Path, pretrained: str | None
) -> None:
    if pretrained is None:
        make_tiny_pipeline().save_pretrained(tmp_path)
    folder = tmp_path if pretrained is None else pretrained_model(pretrained)
    script = """
import sys
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=sys.argv[2] == "True")
print(type(pipe).__module__, type(pipe).__name__, type(pipe.scheduler).__name__)
"""
    process = plain_python.run("-c", script, folder, True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["diffusers_pfgm.pipelines.pipeline_pfgm", "PFGMPipeline", "PoissonFlowScheduler"]
    process = plain_python.run("-c", script, folder, False)
    assert process.returncode != 0 and "trust_remote_code" in process.stderr


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


STABLE_DIFFUSION = """
import sys
from pathlib import Path
from diffusers import StableDiffusionPipeline
if sys.argv[2] == "imported":
    import diffusers_pfgm
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=sys.argv[2] == "trusted")
print(type(pipe.scheduler).__module__, type(pipe.scheduler).__name__)
"""


def test_a_pipeline_of_diffusers_with_this_scheduler_loads_in_a_new_process(
    plain_python: WarmPython, tmp_path: Path
) -> None:
    scheduler = PoissonFlowScheduler(aug_dim=None, prediction_type="epsilon", **SCALED_LINEAR)
    (tmp_path / "tokenizer").mkdir()
    make("StableDiffusion", scheduler, tmp_path / "tokenizer").save_pretrained(tmp_path / "model")
    for how in ("trusted", "imported"):
        process = plain_python.run("-c", STABLE_DIFFUSION, tmp_path / "model", how)
        assert process.stdout.split() == ["diffusers_pfgm", "PoissonFlowScheduler"], process.stderr


def test_half_precision_is_a_variant(tmp_path: Path) -> None:
    pipe = make_tiny_pipeline()
    pipe.save_pretrained(tmp_path)
    pipe.to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    names = sorted(path.name for path in (tmp_path / "unet").glob("*.safetensors"))
    assert names == ["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors"]
    half = PFGMPipeline.from_pretrained(tmp_path, variant="fp16")
    assert torch.equal(half.unet.conv_in.weight, make_tiny_unet().conv_in.weight.half().float())


SHARDED = {"max_shard_size": "100KB"}  # the weights have 178 KB
PICKLED = {"safe_serialization": False}


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize(
    ("first", "second"),
    [({}, PICKLED), (PICKLED, {}), (SHARDED, {}), ({}, SHARDED), (SHARDED, PICKLED), (PICKLED | SHARDED, SHARDED)],
    ids=["to pickled", "from pickled", "from shards", "to shards", "shards to pickled", "pickled shards to shards"],
)
def test_the_last_weights_are_loaded(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], variant: str | None
) -> None:
    pipe, fresh = make_tiny_pipeline(), tmp_path / "fresh"
    unet, folder = pipe.unet, tmp_path / "folder"
    other = "ema" if variant is None else None  # another variant and the user's files stay
    pipe.save_pretrained(folder, variant=other, **first)
    kept = {path.name: path.read_bytes() for path in (folder / "unet").iterdir()}
    for name in ("notes.txt", "diffusion_pytorch_model.safetensors.bak", "my_model.bin"):
        (folder / "unet" / name).write_bytes(b"mine")
        kept[name] = b"mine"
    pipe.save_pretrained(folder, variant=variant, **first)
    with torch.no_grad():
        unet.conv_in.weight.fill_(0.5)
    pipe.save_pretrained(folder, variant=variant, **second)
    loaded = PFGMPipeline.from_pretrained(folder, variant=variant)
    assert all(torch.equal(a, b) for a, b in zip(loaded.unet.parameters(), unet.parameters(), strict=True))
    pipe.save_pretrained(fresh, variant=variant, **second)
    present = {path.name for path in (folder / "unet").iterdir()}
    assert present == {path.name for path in (fresh / "unet").iterdir()} | set(kept)
    assert all((folder / "unet" / name).read_bytes() == data for name, data in kept.items() if name != "config.json")


def test_the_uploaded_weights_have_the_shards_of_the_saved_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded: list[str] = []

    def upload_folder(folder_path: str, **options: Any) -> None:
        assert options["commit_message"] == "mine"
        uploaded.extend(path.name for path in (Path(folder_path) / "unet").iterdir())

    monkeypatch.setattr(saving, "create_repo", lambda repo_id, **options: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(saving, "file_exists", lambda *names, **options: False)
    monkeypatch.setattr(saving, "list_repo_files", lambda *names, **options: [])
    monkeypatch.setattr(saving, "upload_folder", upload_folder)
    make_tiny_pipeline().save_pretrained(tmp_path, push_to_hub=True, commit_message="mine", variant="fp16", **SHARDED)
    saved = sorted(path.name for path in (tmp_path / "unet").iterdir())
    assert sorted(uploaded) == saved and "diffusion_pytorch_model.fp16-00001-of-00002.safetensors" in saved


def test_a_failed_save_leaves_the_folder_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = make_tiny_pipeline()
    pipe.save_pretrained(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    images = pipe(2, 3, seeded(), output_type="pt").images
    with torch.no_grad():
        pipe.unet.conv_in.weight.zero_()

    def full(self: Any, folder: Any, **options: Any) -> None:
        Path(folder).mkdir(parents=True)
        (Path(folder) / "diffusion_pytorch_model.safetensors").write_text("half")
        raise OSError("No space left on device")

    monkeypatch.setattr(UNet2DModel, "save_pretrained", full)
    with pytest.raises(OSError, match=r"could not be saved to, and is unchanged: .*No space left"):
        pipe.save_pretrained(tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    loaded = PFGMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(loaded(2, 3, seeded(), output_type="pt").images, images)


def test_files_of_a_killed_save_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".saving" / "unet").mkdir(parents=True)
    (tmp_path / ".saving" / "unet" / "old.safetensors").write_text("half")
    make_tiny_pipeline().save_pretrained(tmp_path)
    assert not (tmp_path / ".saving").exists() and not (tmp_path / "unet" / "old.safetensors").exists()


def test_a_file_as_save_directory_raises(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"`save_directory` .* is a file. Name a folder"):
        make_tiny_pipeline().save_pretrained(tmp_path / "file")


def test_class_names_are_a_component(tmp_path: Path) -> None:
    names = {0: "left", 1: "right"}
    unet, scheduler = make_tiny_unet(num_class_embeds=3), PoissonFlowScheduler(max_norm=300.0)
    PFGMPipeline(unet, scheduler, names).save_pretrained(tmp_path)
    pipe = PFGMPipeline.from_pretrained(tmp_path)
    for other in (PFGMEditingPipeline(**pipe.components), PFGMEditingPipeline.from_pipe(pipe)):
        assert other.config.id2label == names and other.unet is pipe.unet
    assert set(make_tiny_pipeline().components) == {"unet", "scheduler"}  # a network without classes
    assert set(pipe.components) == {"unet", "scheduler", "id2label"}


def test_a_network_of_another_class_is_loaded_without_a_warning_and_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(pipeline_utils.logger, "warning", warnings.append)
    unet = SongUNet(sample_size=8, block_out_channels=(16,), layers_per_block=1, model_channels=16)
    PFGMPipeline(unet, PoissonFlowScheduler()).save_pretrained(tmp_path)
    pipe = PFGMPipeline.from_pretrained(tmp_path)
    assert PFGMEditingPipeline.from_pipe(pipe).unet is pipe.unet
    assert PFGMEditingPipeline.from_pipe(pipe, unet=unet).unet is unet
    assert not warnings


class PipelineWithoutUNet(DiffusionPipeline):
    def __init__(self, scheduler: DDIMScheduler) -> None:
        super().__init__()
        self.register_modules(scheduler=scheduler)


def test_a_pipeline_without_a_unet_is_not_taken_over() -> None:
    with pytest.raises(ValueError, match=r"expected.*unet"):
        PFGMPipeline.from_pipe(PipelineWithoutUNet(DDIMScheduler()))


def test_a_saved_folder_does_not_contain_the_path_it_was_loaded_from(tmp_path: Path) -> None:
    first, second = tmp_path / "home-of-ada" / "model", tmp_path / "again"
    make_tiny_pipeline().save_pretrained(first)
    pipe = PFGMPipeline.from_pretrained(first)
    pipe.save_pretrained(second)
    assert not [path for path in second.rglob("*") if path.is_file() and b"home-of-ada" in path.read_bytes()]
    pipe.unet.register_to_config(_name_or_path="ada/digits")  # a Hub id may be saved
    pipe.save_pretrained(second)
    assert json.loads((second / "unet" / "config.json").read_text())["_name_or_path"] == "ada/digits"
    assert type(PFGMPipeline.from_pretrained(second)) is PFGMPipeline


@pytest.mark.parametrize("name", ["save_pretrained", "push_to_hub", "from_pretrained"])
def test_positional_arguments_are_those_of_diffusers(name: str) -> None:
    def names(pipeline_class: type) -> list[str]:
        parameters = signature(getattr(pipeline_class, name)).parameters.values()
        return [parameter.name for parameter in parameters if parameter.kind != Parameter.VAR_KEYWORD]

    ours = names(PFGMPipeline)
    assert names(DiffusionPipeline)[: len(ours)] == ours
