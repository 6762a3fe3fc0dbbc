"""A run does not depend on the numbers of processes and micro-batches, nor on interruptions."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from diffusers_pfgm.examples.digits import split_digits, write_parquet
from diffusers_pfgm.training.run.output_folder import lock_output_dir
from diffusers_pfgm.training.run.records import read_records
from tests.training.launch import ACCELERATE, CHEAP_OUTPUTS, TORCHRUN
from tests.training.soak import differences, soak
from tests.training.test_train_pfgm import TINY, largest_difference
from tests.warm_python import WarmProcess, WarmPython

SCRIPT = Path(__file__).parent / "run" / "without_outputs.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("laws")
    write_parquet(split_digits()[0][:200], folder / "digits.parquet")
    (folder / "config.json").write_text(json.dumps(TINY))
    return folder


def command(data: Path, output: Path, processes: int, *options: str) -> list[str]:
    # accelerate's launcher needs MPI for several processes on CPUs
    launch = [*(TORCHRUN if processes > 1 else (*ACCELERATE, "--cpu")), str(SCRIPT)]
    run = [f"--dataset_name={data / 'digits.parquet'}", f"--output_dir={output}", "--resolution=8"]
    run += [
        f"--model_config_name_or_path={data / 'config.json'}",
        "--objective=field",
        "--seed=0",
        "--logger=none",
        "--lr_warmup_steps=1",
    ]
    return [*launch, *run, "--random_flip", "--field_batch_size=100", *options]


def run(python: WarmPython, *arguments: object) -> None:
    done = python.run(*command(*arguments))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def reference(python: WarmPython, data: Path) -> Path:
    """20 steps of one process with batches of 32."""
    run(python, data, data / "reference", 1, "--train_batch_size=32", "--max_train_steps=20", "--charges=gathered")
    return data / "reference"


@pytest.fixture(scope="module")
def two_processes(python: WarmPython, data: Path) -> Path:
    """20 steps of two processes with batches of 16."""
    run(python, data, data / "2-1", 2, "--train_batch_size=16", "--max_train_steps=20", "--charges=gathered")
    return data / "2-1"


@pytest.fixture(scope="module")
def four_parts(python: WarmPython, data: Path) -> Path:
    """20 steps of one process with 4 micro-batches of 8."""
    options = ["--train_batch_size=8", "--gradient_accumulation_steps=4", "--max_train_steps=20"]
    run(python, data, data / "1-4", 1, *options, "--charges=gathered")
    return data / "1-4"


@pytest.mark.parametrize("layout", ["two_processes", "four_parts"])
def test_steps_of_32_images_are_equal_in_any_layout(
    reference: Path, layout: str, request: pytest.FixtureRequest
) -> None:
    output = request.getfixturevalue(layout)
    # Gradients are summed in another order in 20 steps, and Adam's steps are up to 1e-4.
    for part in ("unet", "unet_ema"):
        assert largest_difference(output / "checkpoint-20" / part, reference / "checkpoint-20" / part) < 1e-5


def test_a_run_resumes_on_another_number_of_processes(
    python: WarmPython, data: Path, reference: Path, tmp_path: Path
) -> None:
    options = ["--train_batch_size=16", "--charges=gathered"]
    run(python, data, tmp_path, 2, *options, "--max_train_steps=20", "--checkpointing_steps=10")
    for name in ("checkpoint-20", "log.jsonl"):
        os.rename(tmp_path / name, tmp_path / f".{name}")
    resume = ["--charges=gathered", "--max_train_steps=20", "--resume_from_checkpoint=latest"]
    run(python, data, tmp_path, 1, *resume, "--train_batch_size=32")
    assert largest_difference(tmp_path / "checkpoint-20" / "unet", reference / "checkpoint-20" / "unet") < 1e-5
    done = python.run(*command(data, tmp_path, 1, *resume, "--train_batch_size=16"))
    assert done.returncode != 0 and "images_per_step was 32 and is 16" in done.stderr


def is_locked(output: Path) -> bool:
    """Whether a run in this folder goes on."""
    try:
        lock_output_dir(output).release()
    except ValueError:
        return True
    return False


@pytest.mark.parametrize(("number", "processes", "workers"), [(signal.SIGTERM, 1, 1), (signal.SIGINT, 2, 0)])
def test_a_signal_saves_a_checkpoint_and_prints_a_message(
    python: WarmPython, data: Path, tmp_path: Path, number: int, processes: int, workers: int
) -> None:
    output = tmp_path / "model"
    options = ["--train_batch_size=16", "--max_train_steps=100000", "--charges=gathered", "--logging_steps=1"]
    options.append(f"--dataloader_num_workers={workers}")  # workers get the signal too
    process = python.start(*command(data, output, processes, *options))
    limit = time.monotonic() + 120
    while not (output / "log.jsonl").exists() or not read_records(output / "log.jsonl", "train"):
        assert process.poll() is None and time.monotonic() < limit, process.output()
        time.sleep(0.1)
    os.killpg(process.pid, number)  # as a terminal or a cluster does
    while "Stopped by " not in process.output() or is_locked(output):  # the launcher may end before the script does
        assert time.monotonic() < limit, process.output()
        time.sleep(0.1)
    process.wait()
    printed = process.output()
    lines = [line for line in printed.splitlines() if line.startswith("Stopped by ")]
    assert len(lines) == 1, printed
    step = int(lines[0].split("after step ")[1].split()[0].replace(",", ""))
    assert (output / f"checkpoint-{step}" / "contents.json").exists() and "--resume_from_checkpoint latest" in lines[0]
    assert read_records(output / "log.jsonl")[-1]["event"] == "stop"


def test_a_killed_and_resumed_run_ends_with_the_same_weights(python: WarmPython, tmp_path: Path) -> None:
    def start(*command: str) -> WarmProcess:
        return python.start(CHEAP_OUTPUTS, *command)

    report = soak(tmp_path, kills=2, steps=24, mean_seconds=0.4, start=start)
    assert len(report.steps) == 2 and not differences(tmp_path, 24)


def test_random_numbers_differ_between_processes(two_processes: Path) -> None:
    paths = [two_processes / "checkpoint-20" / f"random_states_{i}.pkl" for i in (0, 1)]
    states = [torch.load(path, weights_only=False) for path in paths]
    assert not torch.equal(states[0]["torch_manual_seed"], states[1]["torch_manual_seed"])
