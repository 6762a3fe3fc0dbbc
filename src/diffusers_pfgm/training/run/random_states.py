"""The global random states of each process. Dropout in a network depends on them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, load, set_seed

from ..data.order import splitmix64


def restore_random_states(accelerator: Accelerator, checkpoint: Path, seed: int, step: int) -> None:
    """Restore the random states that a checkpoint holds for each process. Every process must call this.

    accelerate restores them too, but ignores errors silently. If the states of a process are missing or cannot be
    loaded, the process gets new ones that depend on the seed, the step and its index, and the main process prints a
    message.

    Args:
        accelerator: accelerate's `Accelerator` of the run.
        checkpoint: The folder of the checkpoint.
        seed: The seed of the run.
        step: The step of the checkpoint.
    """
    process = accelerator.process_index
    device = accelerator.device
    set_seed(splitmix64(splitmix64(seed, step), process) % 2**32)
    path = checkpoint / f"random_states_{process}.pkl"
    reason = None
    try:
        states = load(path)
        random.setstate(states["random_state"])
        np.random.set_state(states["numpy_random_seed"])
        torch.set_rng_state(states["torch_manual_seed"])
        if device.type != "cpu":
            device_states = states[f"torch_{device.type}_manual_seed"]
            torch.get_device_module(device).set_rng_state(device_states[device.index or 0], device)
    except FileNotFoundError:
        reason = f"there is no {path.name}"
    except KeyError as error:
        reason = f"{path.name} has no {error}"
    except Exception as error:  # each library raises its own error for an invalid state
        reason = f"{path.name} cannot be loaded: {error}"
    reasons = {index: text for index, text in enumerate(gather_object([reason])) if text is not None}
    if reasons:
        accelerator.print(
            f"The random states of processes {', '.join(map(str, reasons))} are reinitialized from the seed and the "
            f"step: in {checkpoint}, {next(iter(reasons.values()))}."
        )
