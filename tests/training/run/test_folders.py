"""A folder is replaced in one step if the system can, and otherwise recovered after a kill."""

from pathlib import Path

import pytest

from diffusers_pfgm.training.run import folders
from diffusers_pfgm.training.run.folders import recover_folder, replace_folder


def make(folder: Path, text: str, *more: str) -> Path:
    for name in ("weights", "part/note", *more):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced_and_other_files_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(folders, "_exchange", lambda first, second: False)
    target = tmp_path / "best"
    replace_folder(make(tmp_path / ".best.partial", "old"), target)
    make(target, "old", "mine.txt", "part/mine.txt")
    replace_folder(make(tmp_path / ".best.partial", "new"), target)
    assert contents(target) == {"weights": "new", "part/note": "new", "mine.txt": "old", "part/mine.txt": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_kill_between_two_renames_is_recovered_from(tmp_path: Path) -> None:
    make(tmp_path / ".best.replaced", "old")
    recover_folder(tmp_path / "best")
    recover_folder(tmp_path / "best")
    assert contents(tmp_path / "best") == {"weights": "old", "part/note": "old"}


def test_older_weights_are_not_kept_beside_the_new_ones(tmp_path: Path) -> None:
    unet, shards = "unet/diffusion_pytorch_model", ("-00001-of-00002.safetensors", "-00002-of-00002.safetensors")
    old = make(
        tmp_path / "best", "old", f"{unet}.safetensors.index.json", *(unet + each for each in shards), "notes.txt"
    )
    new = make(tmp_path / "new", "new", f"{unet}.safetensors")
    replace_folder(new, old)
    assert {"notes.txt", f"{unet}.safetensors"} <= contents(old).keys()
    assert not [name for name in contents(old) if "index" in name or "-of-" in name]
