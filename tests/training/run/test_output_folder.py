"""An output folder belongs to one run."""

import time
from pathlib import Path

import datasets
import pytest
from filelock import FileLock

from diffusers_pfgm.training.run.output_folder import check_output_dir, check_outside_data, lock_output_dir
from tests.warm_python import WarmPython


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    check_output_dir(tmp_path / "new")
    check_output_dir(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    check_output_dir(tmp_path, overwrite=True)
    check_output_dir(tmp_path, resume_from="latest")
    check_output_dir(tmp_path, resume_from=str(tmp_path / "checkpoint-3"))
    with pytest.raises(ValueError, match=r"is not empty and may hold another model.*`--overwrite_output_dir`"):
        check_output_dir(tmp_path)
    with pytest.raises(ValueError, match="is not empty"):  # another run's checkpoint
        check_output_dir(tmp_path, resume_from=str(tmp_path / "other" / "checkpoint-3"))
    (tmp_path / "checkpoint-3").mkdir()
    check_output_dir(tmp_path, resume_from="checkpoint-3")
    check_output_dir(tmp_path, resume_from=str(tmp_path / "set-aside-1" / "checkpoint-3"))
    with pytest.raises(ValueError, match="is not empty"):  # a name that does not exist
        check_output_dir(tmp_path, resume_from="checkpoint-4")
    with pytest.raises(ValueError, match="is a file"):
        check_output_dir(tmp_path / "model_index.json", overwrite=True)


def test_an_output_folder_is_not_in_the_folder_of_the_data(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    photos = str(tmp_path / "photos")
    for inside in (photos, f"{photos}/model", f"{photos}/../photos/a/b"):
        with pytest.raises(ValueError, match=r"is in the folder of `--train_data_dir` .*Choose a folder outside of it"):
            check_outside_data(inside, train_data_dir=photos, dataset_name=None)
    check_outside_data(f"{photos}-model", train_data_dir=photos)
    check_outside_data(f"{photos}/.models/a", train_data_dir=photos)  # hidden folders are not read
    datasets.Dataset.from_dict({"image": []}).save_to_disk(tmp_path / "saved")
    check_outside_data(tmp_path / "saved" / "model", train_data_dir=None, dataset_name=str(tmp_path / "saved"))
    check_outside_data(tmp_path / "model", train_data_dir=None, dataset_name="mnist")


def test_any_file_makes_an_output_folder_not_empty(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(ValueError, match="is not empty"):
        check_output_dir(tmp_path)


def test_one_process_at_a_time(python: WarmPython, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    script = (
        "import time\nfrom diffusers_pfgm.training.run.output_folder import lock_output_dir\n"
        f"lock = lock_output_dir({str(folder)!r})\nprint('locked', flush=True)\ntime.sleep(300)"
    )
    holder = python.start("-c", script)
    while "locked" not in holder.output():
        assert holder.poll() is None, holder.output()
        time.sleep(0.05)
    with pytest.raises(ValueError, match=rf"in use by a running process \(process {holder.pid}\)"):
        lock_output_dir(folder)
    holder.kill()
    holder.wait()
    check_output_dir(folder)  # the lock file that remains does not count
    lock_output_dir(folder).release()


def test_a_locked_file_that_cannot_be_read_and_written_still_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *args: object, **options: object) -> str:
        raise PermissionError(13, "Permission denied")  # as on Windows, where locks are mandatory

    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr(Path, "read_text", refuse)
    lock = lock_output_dir(tmp_path)
    with pytest.raises(ValueError, match=r"in use by a running process\. Wait for it"):
        lock_output_dir(tmp_path)
    lock.release()


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"`--output_dir` .*inside' cannot be written to: Not a directory"):
        lock_output_dir(tmp_path / "file" / "inside")


@pytest.mark.parametrize("kind", ["a folder", "a link"])
def test_a_lock_file_that_cannot_be_opened_is_named(tmp_path: Path, kind: str) -> None:
    if kind == "a folder":
        (tmp_path / ".lock").mkdir()
    else:
        (tmp_path / ".lock").symlink_to("nowhere/.lock")
    with pytest.raises(ValueError, match=r"cannot be locked: its file .lock, .*remove that file; else choose another"):
        lock_output_dir(tmp_path)


def test_a_lock_file_of_another_user_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: FileLock, *args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(ValueError, match=r"cannot be locked: its file .lock, .* \(Permission denied\)"):
        lock_output_dir(tmp_path)
