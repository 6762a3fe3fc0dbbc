"""Files of a run are distinguished from files of the user in the same folder."""

import json
from pathlib import Path

import pytest

from diffusers_pfgm.hub.model_card import MARK
from diffusers_pfgm.training.run.checkpoint_contents import write_contents
from diffusers_pfgm.training.run.folders import set_aside
from diffusers_pfgm.training.run.output_folder import check_output_dir
from diffusers_pfgm.training.run.run_files import files_after, files_of_a_run, is_of_the_run, is_run_without_checkpoint

RUN_FILES = [
    "checkpoint-4/contents.json",
    "log.jsonl",
    ".written.json",
    "logs/train_pfgm/events.out.tfevents.1",
    "samples/step-000004.png",
    "best/validation.json",
    "best/unet/config.json",
    "model_index.json",
    "pipeline.py",
    "unet/config.json",
    "scheduler/scheduler_config.json",
    "training.png",
    "sigma-density.png",
    "README.md",
]
USER_FILES = ["notes.txt", "samples/mine.png", "photos/1.png", "logs/mine.txt", "checkpoint-of-mine/1.png", "me.png"]


def fill(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        text = '{"event": "start", "step": 0}\n' if name == "log.jsonl" else MARK if name == "README.md" else "{}"
        (folder / name).write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_only_a_checkpoint_that_is_set_aside_may_be_of_another_run(tmp_path: Path) -> None:
    for folder, seed in ((tmp_path, 2), (tmp_path / "set-aside-1", 2), (tmp_path / "set-aside-2", 1)):
        (folder / "checkpoint-3").mkdir(parents=True)
        write_contents(folder / "checkpoint-3", 3, {"seed": seed})
    checkpoints = [tmp_path / name / "checkpoint-3" for name in ("", "set-aside-1", "set-aside-2")]
    assert all(is_of_the_run(checkpoint, tmp_path) for checkpoint in checkpoints)  # there is no log
    for settings, expected in (({"settings": {"seed": 1}}, [True, False, True]), ({}, [True] * 3)):
        (tmp_path / "log.jsonl").write_text(json.dumps({"event": "start", "step": 0} | settings) + "\n")
        assert [is_of_the_run(checkpoint, tmp_path) for checkpoint in checkpoints] == expected


def test_only_files_of_the_run_are_set_aside(tmp_path: Path) -> None:
    fill(tmp_path, RUN_FILES + USER_FILES)
    aside = set_aside(tmp_path, files_of_a_run(tmp_path, "logs"))
    assert aside == tmp_path / "set-aside-1" and names(aside) == sorted(RUN_FILES)
    assert names(tmp_path) == sorted([*USER_FILES, *(f"set-aside-1/{name}" for name in RUN_FILES)])
    assert set_aside(tmp_path, files_of_a_run(tmp_path, "logs")) is None
    fill(tmp_path, ["log.jsonl"])
    assert set_aside(tmp_path, files_of_a_run(tmp_path, "logs")) == tmp_path / "set-aside-2"


def test_user_files_with_names_of_a_run_are_kept(tmp_path: Path) -> None:
    fill(tmp_path, ["best/photo.png", "samples/step-mine.png"])
    (tmp_path / "README.md").write_text("my own words")
    assert files_of_a_run(tmp_path, "logs") == []


def test_links_keep_their_targets(tmp_path: Path) -> None:
    fill(tmp_path, ["archive/checkpoint-4/contents.json"])
    (tmp_path / "checkpoint-4").symlink_to("archive/checkpoint-4")
    set_aside(tmp_path, files_of_a_run(tmp_path, "logs"))
    assert (tmp_path / "set-aside-1" / "checkpoint-4" / "contents.json").read_text() == "{}"
    assert names(tmp_path / "archive") == ["checkpoint-4/contents.json"]


def test_files_after_a_checkpoint_are_abandoned(tmp_path: Path) -> None:
    fill(tmp_path, [f"checkpoint-{step}/contents.json" for step in (2, 4, 6)])
    fill(tmp_path, [f"samples/step-00000{step}.png" for step in range(8)])
    fill(tmp_path, ["best/model_index.json"])
    (tmp_path / "best" / "validation.json").write_text(json.dumps({"step": 5, "distance": 1.0}))
    abandoned = files_after(tmp_path, 4)
    expected = ["checkpoint-6", *(f"samples/step-00000{step}.png" for step in (5, 6, 7)), "best"]
    assert [path.relative_to(tmp_path).as_posix() for path in abandoned] == expected
    (tmp_path / "best" / "validation.json").write_text(json.dumps({"step": 4, "distance": 1.0}))
    assert tmp_path / "best" not in files_after(tmp_path, 4)
    (tmp_path / "best" / "validation.json").write_text("{")
    assert tmp_path / "best" not in files_after(tmp_path, 4)
    # Steps after the newest checkpoint are repeated and write the same files again.
    assert files_after(tmp_path, 6) == []


FIRST_RECORDS = [
    ".lock",
    "log.jsonl",
    ".written.json",
    "logs/train_pfgm/events.1",
    "samples/step-000001.png",
    ".checkpoint-4.partial/x",
    "samples/step-000002.partial",  # as version 0.1.0 named it
    "samples/.step-000002.png.partial",
    ".written.json.partial",
    "..written.json.partial",
]


@pytest.mark.parametrize("count", range(len(FIRST_RECORDS) + 1))
def test_a_run_that_has_saved_nothing_may_start_again(tmp_path: Path, count: int) -> None:
    fill(tmp_path, FIRST_RECORDS[:count])
    check_output_dir(tmp_path)
    assert is_run_without_checkpoint(tmp_path, "logs")


@pytest.mark.parametrize("name", ["notes.txt", "samples/mine.png", "logs/mine.txt", "model_index.json", "log.txt"])
def test_a_folder_with_other_files_is_refused(tmp_path: Path, name: str) -> None:
    fill(tmp_path, [*FIRST_RECORDS, name])
    with pytest.raises(ValueError, match="is not empty"):
        check_output_dir(tmp_path)
    assert is_run_without_checkpoint(tmp_path, "logs")  # with `latest` the run may start
    (tmp_path / "log.jsonl").write_text("notes")
    assert not is_run_without_checkpoint(tmp_path, "logs")


def test_an_incomplete_log_counts_as_a_log(tmp_path: Path) -> None:
    for text in ("", '{"eve', '{"event": "start", "ste'):
        (tmp_path / "log.jsonl").write_text(text)
        assert is_run_without_checkpoint(tmp_path, "logs")


def test_a_damaged_checkpoint_counts_as_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").symlink_to("a disk that is not there")
    assert not is_run_without_checkpoint(tmp_path, "logs")
    with pytest.raises(ValueError, match="is not empty"):
        check_output_dir(tmp_path)


def test_a_finished_run_without_checkpoints_is_not_started_again(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"event": "start", "step": 0}\n')
    assert is_run_without_checkpoint(tmp_path, "logs")
    (tmp_path / "model_index.json").write_text("{}")
    assert is_run_without_checkpoint(tmp_path, "logs")
    log.write_text('{"event": "start", "step": 0}\n{"event": "end", "step": 9}\n')
    assert not is_run_without_checkpoint(tmp_path, "logs")
