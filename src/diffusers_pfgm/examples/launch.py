"""Starts the training script with accelerate's launcher, as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ..training.run.checkpoint_contents import CHECKPOINT_PREFIX


def launch_training(script: Path, options: list[str], threads: int | None = None) -> None:
    """Print the command of a training, and run it with one process.

    Args:
        script: the path of train_pfgm.py.
        options: the options of train_pfgm.py.
        threads: the number of CPU threads; None for all.

    Raises:
        RuntimeError: if the training fails. Its own message is above that of this error.
    """
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1"]
    launch.append(f"--num_cpu_threads_per_process={threads or os.cpu_count()}")
    print("   accelerate launch", script, *options, flush=True)
    try:
        subprocess.run([*launch, str(script), *options], check=True)
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"The training failed with exit code {error.returncode}. Its message is above.") from error


def has_ended(output_dir: Path, max_train_steps: int) -> bool:
    """Whether a training that `launch_training` has run made its last step, so that no signal has stopped it before.

    The run saves a checkpoint after its last step, and its pipeline before `launch_training` returns. Its log is no
    proof: the run continues if a record cannot be written.
    """
    return (output_dir / f"{CHECKPOINT_PREFIX}{max_train_steps}").exists()
