"""Starts the training script with accelerate's launcher, as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ..training.run.records import read_records


def launch_training(script: Path, options: list[str], threads: int | None = None) -> None:
    """Print the command of a training, and run it with one process.

    Args:
        script: the path of train_pfgm.py.
        options: the options of train_pfgm.py.
        threads: the number of CPU threads; None for all.

    Raises:
        subprocess.CalledProcessError: if the training fails.
    """
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1"]
    launch.append(f"--num_cpu_threads_per_process={threads or os.cpu_count()}")
    print("   accelerate launch", script, *options, flush=True)
    subprocess.run([*launch, str(script), *options], check=True)


def has_ended(output_dir: Path) -> bool:
    """Whether a training has reached its last step, after which its pipeline is in the output folder.

    The pipeline has noise levels that are fitted to its network, unless the fit failed, which the run then reported.
    """
    log = output_dir / "log.jsonl"
    return log.exists() and bool(read_records(log, "end"))
