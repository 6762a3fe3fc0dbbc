"""A run resumes from a checkpoint with any numbers of processes and micro-batches, but not from another run's."""

import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from diffusers_pfgm.examples.digits import split_digits, write_parquet
from diffusers_pfgm.training.run.checkpoint_contents import read_settings
from diffusers_pfgm.training.run.checkpoints import find_checkpoint, list_checkpoints
from diffusers_pfgm.training.run.records import read_records
from diffusers_pfgm.training.run.validation import Validation
from tests.training.launch import TORCHRUN
from tests.training.run.layouts import run_all
from tests.training.test_train_pfgm import TINY, largest_difference
from tests.warm_python import WarmPython

MAX_STEPS, RESUME_STEP = 6, 3


@dataclass(frozen=True)
class Layout:
    """How the images of a step are divided."""

    processes: int
    batch_size: int
    parts: int

    def __str__(self) -> str:
        return f"{self.processes}x{self.batch_size}x{self.parts}"


LAYOUTS = [Layout(1, 16, 1), Layout(1, 8, 2), Layout(2, 8, 1), Layout(2, 4, 2)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    write_parquet(split_digits()[0][:100], folder / "digits.parquet")
    (folder / "config.json").write_text(json.dumps(TINY))
    return folder


def options(data: Path, output: Path, *more: str) -> list[str]:
    common = [f"--dataset_name={data / 'digits.parquet'}", f"--output_dir={output}", "--resolution=8", "--seed=0"]
    common += [
        f"--model_config_name_or_path={data / 'config.json'}",
        "--objective=field",
        "--logger=none",
        "--lr_warmup_steps=1",
    ]
    return [*common, "--charges=gathered", "--field_batch_size=32", "--learning_rate=1e-3", *more]


def run(python: WarmPython, jobs: dict[Layout, list[list[str]]], folder: Path) -> None:
    """Run the command lines of every layout; those of two processes by torchrun, with a time limit."""
    one_process = [job for layout, lines in jobs.items() if layout.processes == 1 for job in lines]
    two_processes = [job for layout, lines in jobs.items() if layout.processes == 2 for job in lines]
    run_all(one_process)
    (folder / "jobs.json").write_text(json.dumps(two_processes))
    done = python.run(*TORCHRUN, Path(__file__).parent / "layouts.py", folder / "jobs.json")
    assert done.returncode == 0, done.stdout + done.stderr


def layout_options(layout: Layout) -> list[str]:
    return [f"--train_batch_size={layout.batch_size}", f"--gradient_accumulation_steps={layout.parts}"]


@pytest.fixture(scope="module")
def resumed_runs(python: WarmPython, data: Path) -> Iterator[Path]:
    """A folder with the runs of each layout and of each pair of layouts, all of 6 steps."""
    steps = [f"--max_train_steps={MAX_STEPS}", f"--checkpointing_steps={RESUME_STEP}"]
    run(
        python,
        {layout: [options(data, data / str(layout), *layout_options(layout), *steps)] for layout in LAYOUTS},
        data,
    )
    resumed: dict[Layout, list[list[str]]] = {layout: [] for layout in LAYOUTS}
    for first, second in itertools.product(LAYOUTS, LAYOUTS):
        output = data / f"{first}-{second}"
        shutil.copytree(data / str(first) / f"checkpoint-{RESUME_STEP}", output / f"checkpoint-{RESUME_STEP}")
        more = [*layout_options(second), *steps, "--resume_from_checkpoint=latest"]
        resumed[second].append(options(data, output, *more))
    run(python, resumed, data)
    yield data


@pytest.mark.parametrize(("first", "second"), [*itertools.product(LAYOUTS, LAYOUTS)], ids=str)
def test_any_layout_resumes_from_any_other(resumed_runs: Path, first: Layout, second: Layout) -> None:
    end = resumed_runs / f"{first}-{second}" / f"checkpoint-{MAX_STEPS}"
    reference = resumed_runs / str(LAYOUTS[0]) / f"checkpoint-{MAX_STEPS}"
    same_layout = resumed_runs / str(first) / f"checkpoint-{MAX_STEPS}"
    for part in ("unet", "unet_ema"):
        # Gradients are summed in another order in 6 steps, and Adam's steps are up to 1e-3.
        assert largest_difference(end / part, reference / part) < 2e-5
        if first == second:
            assert largest_difference(end / part, same_layout / part) == 0


def train(data: Path, output: Path, *more: str) -> None:
    """A run of one process without outputs at its end."""
    run_all([options(data, output, "--train_batch_size=16", *more)])


def checkpoints(output: Path) -> list[str]:
    return [path.name for path in list_checkpoints(output)]


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained") / "run"
    train(data, output, "--max_train_steps=8", "--checkpointing_steps=2")
    return output


@pytest.fixture
def output(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_from_the_beginning(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, resume in enumerate(["--resume_from_checkpoint=latest", "--center_crop"]):  # with and without
        output = tmp_path / str(number)
        output.mkdir()
        train(data, output, "--max_train_steps=1", resume)  # nothing is there yet
        shutil.rmtree(output / "checkpoint-1")
        capsys.readouterr()
        train(data, output, "--max_train_steps=2", resume)
        printed = capsys.readouterr().out
        assert ("so the run starts from the beginning" in printed) == (number == 0)
        assert f"Files of an earlier run were moved to {output / 'set-aside-1'}: log.jsonl" in printed
        assert checkpoints(output) == ["checkpoint-2"]
        assert [record["step"] for record in read_records(output / "log.jsonl", "start")] == [0]


def test_folders_without_an_undamaged_checkpoint_are_refused(data: Path, output: Path, tmp_path: Path) -> None:
    resume = ["--max_train_steps=9", "--resume_from_checkpoint=latest"]
    for path in list_checkpoints(output):
        (path / "optimizer.bin").unlink()
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match=r"'latest': there is no undamaged checkpoint-\* folder"),
    ):
        train(data, output, *resume)
    assert len(checkpoints(output)) == 4 and not list(output.glob("set-aside-*"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"'latest': there is no undamaged checkpoint-\* folder"):
        train(data, tmp_path / "other", *resume)
    assert (tmp_path / "other" / "model_index.json").exists()


def test_other_charges_are_refused_and_auto_keeps_those_of_the_checkpoint(data: Path, output: Path) -> None:
    resume = ["--max_train_steps=9", "--resume_from_checkpoint=latest"]
    with pytest.raises(ValueError, match="charges was 'gathered' and is 'dataset'"):
        train(data, output, *resume, "--charges=dataset")
    train(data, output, *resume, "--charges=auto")
    assert read_settings(output / "checkpoint-9")["charges"] == "gathered"


@pytest.mark.slow
def test_the_newer_branch_is_set_aside(data: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--max_train_steps=7", "--checkpointing_steps=1", "--checkpoints_total_limit=1"]
    train(data, output, *more, "--resume_from_checkpoint=checkpoint-4")
    printed = capsys.readouterr().out
    expected = f"Files after step 4 were moved to {output / 'set-aside-1'}: checkpoint-6, checkpoint-8."
    assert expected in printed and f"Resumed from {output / 'checkpoint-4'} after step 4." in printed
    assert checkpoints(output) == ["checkpoint-4", "checkpoint-7"]
    assert checkpoints(output / "set-aside-1") == ["checkpoint-6", "checkpoint-8"]
    assert find_checkpoint("latest", output).name == "checkpoint-7"
    # The abandoned branch can be resumed later.
    train(data, output, "--max_train_steps=9", f"--resume_from_checkpoint={output / 'set-aside-1' / 'checkpoint-8'}")
    assert checkpoints(output)[-1] == "checkpoint-9"


def test_undamaged_checkpoints_are_kept_if_the_newest_is_damaged(data: Path, output: Path) -> None:
    path = output / "checkpoint-8" / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    (output / "checkpoint-2").rename(output / "checkpoint-70")  # the step is in its contents
    more = ["--max_train_steps=7", "--checkpoints_total_limit=1"]
    with pytest.warns(UserWarning, match="checkpoint-8 is skipped"):
        train(data, output, *more, "--resume_from_checkpoint=latest")
    assert checkpoints(output) == ["checkpoint-6", "checkpoint-7"]
    assert checkpoints(output / "set-aside-1") == ["checkpoint-8"]


@pytest.mark.slow
def test_an_end_before_the_checkpoint_is_refused(data: Path, output: Path) -> None:
    shutil.copytree(output / "checkpoint-8", output / "copy")
    before = sorted(output.rglob("*"))
    message = r"written after step 8, but the run ends after step 7 by .* Raise that to at least 8"
    for name in ("latest", "copy"):  # the name of the folder does not matter
        with pytest.raises(ValueError, match=message):
            train(data, output, "--max_train_steps=7", f"--resume_from_checkpoint={name}")
    assert sorted(output.rglob("*")) == before
    train(data, output, "--max_train_steps=8", "--resume_from_checkpoint=latest")
    assert checkpoints(output)[-1] == "checkpoint-8"


@pytest.mark.slow
def test_an_overwritten_run_is_set_aside_completely(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    distances = iter([0.1, 0.2, 0.5, 0.6])
    monkeypatch.setattr(Validation, "distance", lambda *args: next(distances))
    more = ["--checkpointing_steps=3", "--validation_split=0.2", "--keep_best", "--save_images_epochs=1"]
    more += ["--validation_epochs=1", "--num_inference_steps=2", "--eval_batch_size=2", "--checkpointing_steps=7"]
    train(data, output, "--max_train_steps=11", *more)  # an epoch of 80 images is 5 steps
    (output / "notes.txt").write_text("notes")
    with pytest.raises(ValueError, match="is not a file"):  # refused before anything is moved
        run_all([[f"--output_dir={output}", "--overwrite_output_dir", "--dataset_name=no.parquet"]])
    assert checkpoints(output) == ["checkpoint-7", "checkpoint-11"]
    train(data, output, "--max_train_steps=6", "--overwrite_output_dir", *more)
    assert json.loads((output / "best" / "validation.json").read_text()) == {"step": 5, "distance": 0.5}
    assert sorted(path.name for path in (output / "samples").iterdir()) == ["step-000005.png"]
    assert checkpoints(output) == ["checkpoint-6"] and (output / "notes.txt").read_text() == "notes"
    assert max(record["step"] for record in read_records(output / "log.jsonl")) == 6
    assert json.loads((output / "set-aside-1" / "best" / "validation.json").read_text())["distance"] == 0.1


@pytest.mark.slow
def test_a_resumed_run_that_was_set_aside_has_no_files_of_the_later_one(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    train(data, output, "--max_train_steps=4", "--learning_rate=1e-3")
    train(data, output, "--max_train_steps=3", "--learning_rate=1e-4", "--overwrite_output_dir")
    name = output / "set-aside-1" / "checkpoint-4"
    train(data, output, "--max_train_steps=5", "--learning_rate=1e-3", f"--resume_from_checkpoint={name}")
    assert checkpoints(output) == ["checkpoint-5"] and checkpoints(output / "set-aside-2") == ["checkpoint-3"]
    assert [record["step"] for record in read_records(output / "log.jsonl", "start")] == [4]


@pytest.mark.slow
def test_other_images_of_the_same_number_are_refused(data: Path, output: Path, tmp_path: Path) -> None:
    def resume(images: torch.Tensor, folder: Path) -> None:
        write_parquet(images, folder / "others.parquet")
        more = ["--max_train_steps=8", "--resume_from_checkpoint=latest", "--train_batch_size=16"]
        run_all([[*options(data, output, *more), f"--dataset_name={folder / 'others.parquet'}"]])

    images = split_digits()[0]
    resume(images[:100], tmp_path)  # the same images in another folder
    for number, others in enumerate([images[100:200], images[:100].flip(0), images[:100].roll(1, 0)]):
        with pytest.raises(ValueError, match=r"data.images was '[0-9a-f]{16}' and is '[0-9a-f]{16}'.* have changed"):
            resume(others, tmp_path / str(number))
