"""Kills a training run by SIGKILL at random times, resumes it each time, and compares it with an uninterrupted run.

`make soak` kills 20 times, and the tests twice. A checkpoint is written after every step, so that about half of the
kills happen while a checkpoint is written.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file

from diffusers_pfgm import PFGMPipeline
from diffusers_pfgm.examples.digits import split_digits, split_labels, write_parquet
from diffusers_pfgm.training.run.checkpoint_contents import checkpoint_step, find_corruption
from diffusers_pfgm.training.run.checkpoints import find_checkpoint, list_checkpoints
from tests.training.test_train_pfgm import SCRIPT, TINY

NETWORK = TINY | {"dropout": 0.1}  # so that the run depends on the global random state


@dataclass
class Report:
    """The state of the output folder after the kills.

    Attributes:
        steps: The step of the newest undamaged checkpoint after each kill.
        writing: Number of kills that left an incomplete checkpoint.
        logged: Largest number of steps logged after the newest checkpoint, over all kills.
    """

    steps: list[int]
    writing: int
    logged: int


class Process(Protocol):
    """A process that was started, as of `subprocess.Popen`."""

    returncode: int | None

    def poll(self) -> int | None: ...

    def wait(self) -> int: ...

    def kill(self) -> None: ...


def start_python(*arguments: str) -> Process:
    """Start a `python` command, whose output is not read."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, *arguments], **quiet)


def command(folder: Path, output: Path, steps: int) -> list[str]:
    """The arguments of `python` for a run of train_pfgm.py in `output`, with the data and the network in `folder`."""
    options = [f"--dataset_name={folder / 'digits.parquet'}", f"--output_dir={output}", "--resolution=8", "--seed=0"]
    options += [
        f"--model_config_name_or_path={folder / 'config.json'}",
        "--objective=field",
        "--train_batch_size=16",
        "--random_flip",
    ]
    options += [f"--max_train_steps={steps}", "--checkpointing_steps=1", "--checkpoints_total_limit=3"]
    options += ["--charges=local", "--field_batch_size=64", "--logging_steps=1", "--logger=none", "--lr_warmup_steps=1"]
    return [str(SCRIPT), *options, "--save_images_epochs=1000", "--num_inference_steps=3"]


def run_and_kill(process: Process, log: Path, seconds: float) -> bool:
    """Kill a run some time after its training has begun, and return whether it was still running.

    Args:
        process: The run, which was just started.
        log: Its file of records.
        seconds: The time from its "start" record to the kill.
    """
    started = datetime.now(timezone.utc).isoformat(timespec="milliseconds")

    def has_begun() -> bool:
        return log.exists() and any(r["event"] == "start" and r["time"] >= started for r in records(log))

    while process.poll() is None and not has_begun():
        time.sleep(0.02)
    time.sleep(seconds)
    running = process.poll() is None
    process.kill()
    process.wait()
    if not running and process.returncode != 0:
        raise RuntimeError(f"The run has ended with the exit code {process.returncode}")
    return running


def soak(
    folder: Path,
    kills: int,
    steps: int,
    mean_seconds: float,
    seed: int = 0,
    start: Callable[..., Process] = start_python,
    command: Callable[[Path, Path, int], list[str]] = command,
) -> Report:
    """Make two runs in `folder`: `uninterrupted` and `killed`.

    Args:
        folder: The folder of the runs and their data.
        kills: Number of kills.
        steps: Number of steps of a run.
        mean_seconds: Mean time from the beginning of training to a kill.
        seed: The seed of the times.
        start: A function that starts a process, given the arguments of a `python` command.
        command: A function that returns these arguments for a run, given `folder`, the output folder and the number of
            steps; by default for train_pfgm.py.

    Raises:
        AssertionError: if a run fails, or if a kill leaves a damaged checkpoint, or loses one.
    """
    write_parquet(split_digits()[0][:200], folder / "digits.parquet", split_labels()[0][:200])
    (folder / "config.json").write_text(json.dumps(NETWORK))
    assert start(*command(folder, folder / "uninterrupted", steps)).wait() == 0
    output = folder / "killed"
    times = random.Random(seed)
    newest_steps, writing, logged = [], 0, 0
    resume = ["--resume_from_checkpoint=latest"]  # the same command for every start, as in a job queue
    while len(newest_steps) < kills:
        process = start(*command(folder, output, steps), *resume)
        if not run_and_kill(process, output / "log.jsonl", 2 * mean_seconds * times.random()):
            break
        checkpoints = list_checkpoints(output)
        damages = [find_corruption(path) for path in checkpoints]
        assert all(damage is None for damage in damages), damages
        if not checkpoints:  # killed before its first checkpoint: the run starts from the beginning
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            newest = checkpoint_step(find_checkpoint("latest", output))
        assert not newest_steps or newest >= newest_steps[-1]
        last_logged = max(record["step"] for record in records(output / "log.jsonl"))
        writing += bool(list(output.glob(".checkpoint-*")))
        logged = max(logged, last_logged - newest)
        newest_steps.append(newest)
    assert start(*command(folder, output, steps), *resume).wait() == 0
    return Report(newest_steps, writing, logged)


def records(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # an incomplete line after a kill
            continue


def differences(folder: Path, steps: int) -> list[str]:
    """Return the names of the tensors that differ at the end of both runs."""
    runs = [folder / "uninterrupted", folder / "killed"]
    checkpoints = [run / f"checkpoint-{steps}" for run in runs]
    names = []
    for part in ("unet", "unet_ema"):
        first, second = (load_file(path / part / "diffusion_pytorch_model.safetensors") for path in checkpoints)
        names += [f"{part}.{name}" for name, value in first.items() if not torch.equal(value, second[name])]
    first, second = (torch.load(path / "optimizer.bin", weights_only=True)["state"] for path in checkpoints)
    for number, state in first.items():
        names += [f"{number}.{name}" for name, value in state.items() if not torch.equal(value, second[number][name])]
    first, second = (PFGMPipeline.from_pretrained(run).unet.state_dict() for run in runs)
    return names + [f"pipeline.{name}" for name, value in first.items() if not torch.equal(value, second[name])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument(
        "--mean_seconds", type=float, default=2.5, help="mean time from the beginning of training to a kill"
    )
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(2)), help="seed of the times")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = soak(Path(folder), args.kills, args.steps, args.mean_seconds, args.seed)
        print(f"{len(report.steps)} kills (seed {args.seed}), newest checkpoint after each: {report.steps}")
        print(f"{report.writing} of them left an incomplete checkpoint; all other checkpoints were undamaged")
        print(f"steps logged after the newest checkpoint: at most {report.logged}")
        unequal = differences(Path(folder), args.steps)
        print(f"weights, EMA weights, optimizer, pipeline: {unequal or 'equal to the bit'}")
    sys.exit(bool(unequal) or len(report.steps) < args.kills)


if __name__ == "__main__":
    main()
