"""Finds NaN and infinity among weights, in memory and in saved files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open


def all_finite(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return whether all tensors are finite, as a boolean tensor () on the device of the first.

    They may be on several devices: optimizers keep their step counts on the CPU beside weights on a GPU. There may be
    none: an optimizer has no state before its first step, which a gradient scaler may have skipped.
    """
    flags: dict[torch.device, list[torch.Tensor]] = {}
    for tensor in tensors:
        flags.setdefault(tensor.device, []).append(tensor.isfinite().all())
    if not flags:
        return torch.tensor(True)
    first = next(iter(flags))
    return torch.stack([torch.stack(on_device).all().to(first) for on_device in flags.values()]).all()


def non_finite_weight(folder: Path) -> str | None:
    """Return the first weight with NaN or infinity in the safetensors files of a folder; None if there is none."""
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                if not file.get_tensor(name).isfinite().all():
                    return f"{name} in {path.relative_to(folder).as_posix()}"
    return None
