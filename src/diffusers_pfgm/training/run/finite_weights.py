"""Finds weights that are not finite numbers, in memory and in saved files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open


def all_finite(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Whether no tensor holds NaN or infinity, (), on their device."""
    return torch.stack([tensor.isfinite().all() for tensor in tensors]).all()


def non_finite_weight(folder: Path) -> str | None:
    """The first weight in the safetensors files below a folder that holds NaN or infinity; None if there is none."""
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118, not a dict
                if not file.get_tensor(name).isfinite().all():
                    return f"{name} in {path.relative_to(folder).as_posix()}"
    return None
