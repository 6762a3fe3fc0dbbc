"""Runs several trainings in one process group, one after another, to save the time of starting processes.

    torchrun --nproc_per_node 2 tests/training/run/layouts.py jobs.json

`jobs.json` is a list of command lines of train_pfgm.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from accelerate import Accelerator

from diffusers_pfgm.training.run import loop
from diffusers_pfgm.training.run.arguments import parse_args
from diffusers_pfgm.training.run.outputs import Outputs


def run_all(jobs: list[list[str]]) -> None:
    at_the_end, end_training = Outputs.at_the_end, Accelerator.end_training
    Outputs.at_the_end = lambda self, step: None  # only checkpoints are compared
    Accelerator.end_training = lambda self: None  # the next run uses the same process group
    try:
        for job in jobs:
            loop.main(parse_args(None, job))
    finally:
        Outputs.at_the_end, Accelerator.end_training = at_the_end, end_training


if __name__ == "__main__":
    run_all(json.loads(Path(sys.argv[1]).read_text()))
