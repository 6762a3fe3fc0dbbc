"""Starts the training script as a user does, by accelerate's launcher."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = "training/train_pfgm.py"
ROOT = Path(__file__).resolve().parents[3]  # the checkout, which has the training script


def launch_training(options: list[str], threads: int | None = None) -> None:
    """Print the command of a training, and run it with one process.

    Args:
        options: the options of train_pfgm.py.
        threads: the number of CPU threads; None for all.

    Raises:
        subprocess.CalledProcessError: if the training fails.
    """
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1"]
    launch.append(f"--num_cpu_threads_per_process={threads or os.cpu_count()}")
    print("   accelerate launch", SCRIPT, *options, flush=True)
    subprocess.run([*launch, str(ROOT / SCRIPT), *options], check=True)
