"""The global random states of each process, on which dropout in a network depends."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, load, set_seed

from ..data.order import splitmix64


def restore_random_states(accelerator: Accelerator, checkpoint: Path, seed: int, step: int) -> None:
    """Restore what a checkpoint holds for each process. To be called by every process.

    accelerate restores them too, but goes on without a word where it cannot. A process whose states are not there, or
    cannot be loaded, gets new ones that follow from the seed, the step and its number, and the main process says so.

    Args:
        accelerator: of the run.
        checkpoint: the folder.
        seed: of the run.
        step: of the checkpoint.
    """
    process, device = accelerator.process_index, accelerator.device
    set_seed(splitmix64(splitmix64(seed, step), process) % 2**32)
    path, reason = checkpoint / f"random_states_{process}.pkl", None
    try:
        states = load(path)
        random.setstate(states["random_state"])
        np.random.set_state(states["numpy_random_seed"])
        torch.set_rng_state(states["torch_manual_seed"])
        if device.type != "cpu":
            of_devices = states[f"torch_{device.type}_manual_seed"]
            torch.get_device_module(device).set_rng_state(of_devices[device.index or 0], device)
    except FileNotFoundError:
        reason = f"there is no {path.name}"
    except KeyError as error:
        reason = f"{path.name} has no {error}"
    except Exception as error:  # each library has its own for a state that it does not take
        reason = f"{path.name} cannot be loaded: {error}"
    missing = {number: each for number, each in enumerate(gather_object([reason])) if each is not None}
    if missing:
        accelerator.print(
            f"Of processes {', '.join(map(str, missing))} the random states begin anew, from the seed and the step: in "
            f"{checkpoint}, {next(iter(missing.values()))}."
        )
