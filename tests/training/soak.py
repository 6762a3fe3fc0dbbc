"""Kills a training run by SIGKILL at random moments, resumes it each time, and compares it with one left alone.

`make soak` kills 20 times; the test command twice. A checkpoint is written after every step, so that about half of the
kills fall into the writing of one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from diffusers_pfgm import PFGMPipeline
from diffusers_pfgm.examples.digits import split_digits, write_parquet
from diffusers_pfgm.training.run.checkpoint_contents import checkpoint_step, find_corruption
from diffusers_pfgm.training.run.checkpoints import find_checkpoint, list_checkpoints

SCRIPT = Path(__file__).parents[2] / "training" / "train_pfgm.py"
NETWORK = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 2,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "dropout": 0.1,  # so that the global random state counts
}


@dataclass
class Report:
    """What the kills met.

    Attributes:
        steps: newest whole checkpoint after each kill.
        writing: kills that left a half-written checkpoint.
        logged: steps that were logged beyond the newest checkpoint, at most, over all kills.
    """

    steps: list[int]
    writing: int
    logged: int


def command(folder: Path, output: Path, steps: int) -> list[str]:
    options = [f"--dataset_name={folder / 'digits.parquet'}", f"--output_dir={output}", "--resolution=8", "--seed=0"]
    options += [f"--model_config_name_or_path={folder / 'config.json'}", "--train_batch_size=16", "--random_flip"]
    options += [f"--max_train_steps={steps}", "--checkpointing_steps=1", "--checkpoints_total_limit=3"]
    options += ["--charges=local", "--field_batch_size=64", "--logging_steps=1", "--logger=none", "--lr_warmup_steps=1"]
    return [sys.executable, str(SCRIPT), *options, "--save_images_epochs=1000", "--num_inference_steps=3"]


def run_to_its_end(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def run_and_kill(command: list[str], seconds: float) -> bool:
    """Kill some time after the first step's record; whether it was still running."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1)
    assert process.stdout is not None
    lines: list[str] = []
    started = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if "steps of" in line:  # the last line before training
                started.set()
        started.set()

    reader = threading.Thread(target=read)
    reader.start()
    started.wait()
    time.sleep(seconds)
    running = process.poll() is None
    process.kill()
    process.wait()
    reader.join()
    if not running and process.returncode != 0:
        raise RuntimeError("".join(lines[-30:]))
    return running


def soak(folder: Path, kills: int, steps: int, mean_seconds: float, seed: int = 0) -> Report:
    """Two runs in `folder`, `alone` and `killed`.

    Raises:
        AssertionError: if a kill leaves a checkpoint that is not whole, or loses one.
    """
    write_parquet(split_digits()[0][:200], folder / "digits.parquet")
    (folder / "config.json").write_text(json.dumps(NETWORK))
    run_to_its_end(command(folder, folder / "alone", steps))
    output, moments = folder / "killed", random.Random(seed)
    found, writing, logged = [], 0, 0
    resume = ["--resume_from_checkpoint=latest"]  # as the command of a job that is put into its queue again
    while len(found) < kills:
        if not run_and_kill([*command(folder, output, steps), *resume], 2 * mean_seconds * moments.random()):
            break
        whole = list_checkpoints(output)
        assert all(find_corruption(path) is None for path in whole), [find_corruption(path) for path in whole]
        if not whole:  # killed before its first checkpoint, it starts anew
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            newest = checkpoint_step(find_checkpoint("latest", output))
        assert not found or newest >= found[-1]
        last = max(record["step"] for record in records(output / "log.jsonl"))
        writing, logged = writing + bool(list(output.glob(".checkpoint-*"))), max(logged, last - newest)
        found.append(newest)
    run_to_its_end([*command(folder, output, steps), *resume])
    return Report(found, writing, logged)


def records(path: Path) -> Iterator[dict[str, float]]:
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # cut off by a kill
            continue


def differences(folder: Path, steps: int) -> list[str]:
    """Names of the tensors in which the two runs' ends differ."""
    alone, killed = (folder / name / f"checkpoint-{steps}" for name in ("alone", "killed"))
    found = []
    for part in ("unet", "unet_ema"):
        first, second = (load_file(each / part / "diffusion_pytorch_model.safetensors") for each in (alone, killed))
        found += [f"{part}.{name}" for name, value in first.items() if not torch.equal(value, second[name])]
    first, second = (torch.load(each / "optimizer.bin", weights_only=True)["state"] for each in (alone, killed))
    for number, state in first.items():
        found += [f"{number}.{name}" for name, value in state.items() if not torch.equal(value, second[number][name])]
    first, second = (PFGMPipeline.from_pretrained(folder / name).unet.state_dict() for name in ("alone", "killed"))
    return found + [f"pipeline.{name}" for name, value in first.items() if not torch.equal(value, second[name])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--mean_seconds", type=float, default=2.5, help="from the start of training to a kill")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(2)), help="of the moments")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = soak(Path(folder), args.kills, args.steps, args.mean_seconds, args.seed)
        print(f"{len(report.steps)} kills (seed {args.seed}), newest checkpoint after each: {report.steps}")
        print(f"{report.writing} of them left a half-written checkpoint; every other one was whole")
        print(f"steps logged beyond the newest checkpoint: at most {report.logged}")
        unequal = differences(Path(folder), args.steps)
        print(f"weights, average, optimiser, pipeline: {unequal or 'equal to the bit'}")
    sys.exit(bool(unequal) or len(report.steps) < args.kills)


if __name__ == "__main__":
    main()
