"""Only files that the run has written are published, also if the folder contains files of the user."""

from pathlib import Path

import pytest

from diffusers_pfgm.hub.written_files import WrittenFiles
from tests.networks import make_tiny_pipeline

PIPELINE = {
    "model_index.json",
    "pipeline.py",
    "README.md",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
    "scheduler/diffusers_pfgm.py",
}


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")


def test_files_of_the_user_are_not_published(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    make_tiny_pipeline().save_pretrained(folder)
    write(folder, "me.png", "photos/1.png", "unet/notes.txt", "unet/deep/config.json", "logs/old", "log.jsonl.bak")
    write(folder, "samples/me.png", "scheduler/private.json", "best/unet/config.json", "checkpoint-3/optimizer.bin")
    written = WrittenFiles(folder)
    assert set(written.published()) == PIPELINE
    write(folder, "samples/step-000007.png", "log.jsonl")
    for name in ("samples/step-000007.png", "log.jsonl", "log.jsonl", "training.png"):
        written.add(name)  # the last one does not exist
    again = WrittenFiles(folder)  # a resumed run
    assert set(again.published()) == PIPELINE | {"samples/step-000007.png", "log.jsonl"}


def test_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    folder, outside = tmp_path / "run", tmp_path / "outside"
    make_tiny_pipeline().save_pretrained(folder)
    write(outside, "key.png", "step-000007.png")
    (folder / "samples").symlink_to(outside)
    (folder / "training.png").symlink_to(outside / "key.png")
    (folder / "unet" / "config.json").rename(outside / "config.json")
    (folder / "unet" / "config.json").symlink_to(outside / "config.json")
    written = WrittenFiles(folder)
    for name in ("samples/step-000007.png", "training.png", "../outside/key.png", str(outside / "key.png")):
        written.add(name)
    with pytest.warns(UserWarning, match=r"a symbolic link leads to it: unet/config\.json, samples/step-000007\.png"):
        assert set(written.published()) == PIPELINE - {"unet/config.json"}
    (tmp_path / "link").symlink_to(folder)  # the folder itself may be one
    (folder / "unet" / "config.json").unlink()
    (outside / "config.json").rename(folder / "unet" / "config.json")
    with pytest.warns(UserWarning, match="symbolic link"):
        assert set(WrittenFiles(tmp_path / "link").published()) == PIPELINE


def test_a_card_of_the_user_is_only_published_if_the_run_has_written_one(tmp_path: Path) -> None:
    make_tiny_pipeline().save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("of another project")
    assert set(WrittenFiles(tmp_path).published()) == PIPELINE - {"README.md"}
    WrittenFiles(tmp_path).add("README.md")  # the run has written a card, and the user has edited it
    assert set(WrittenFiles(tmp_path).published()) == PIPELINE


def test_shards_are_published_by_their_index(tmp_path: Path) -> None:
    make_tiny_pipeline().save_pretrained(tmp_path, max_shard_size="20KB")
    shards = {f"unet/{path.name}" for path in (tmp_path / "unet").glob("*.safetensors*")}
    write(tmp_path, "unet/diffusion_pytorch_model-00009-of-00009.safetensors")
    assert len(shards) > 3
    whole = "unet/diffusion_pytorch_model.safetensors"
    assert set(WrittenFiles(tmp_path).published()) == PIPELINE - {whole} | shards


def test_an_invalid_list_is_read_as_empty(tmp_path: Path) -> None:
    for content in (b"\xff", b"[", b"3", b'{"a": 1}', b"[1, null]"):
        (tmp_path / ".written.json").write_bytes(content)
        assert WrittenFiles(tmp_path).names() == []
