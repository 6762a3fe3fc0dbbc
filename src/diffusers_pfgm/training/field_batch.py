"""Where the field objective takes its charges from.

The paper's field is that of a batch larger than the one that is trained on (arXiv 2209.11178, Algorithm 1). Here:

- `local`: a window over each process's own images, the step's and those of the next steps, so that every image is read
  once an epoch however large the window is;
- `gathered`: the same window over the images of all processes, hence one large batch's field on any number of them;
- `dataset`: every image, prepared once. The field is then exact, and what it costs does not fall with the batch.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import torch
from accelerate import Accelerator

from .stream import BatchPlan

Batch = tuple[torch.Tensor, torch.Tensor]  # images (B, C, R, R) and labels (B,)

MEMORY_LIMIT = 2**30  # bytes of all images as charges; `auto` takes no more, nor more than an eighth of what is free
BYTES = 8  # of a number in prepared charges, at most: float64 where the device has it


@dataclass(frozen=True)
class Step:
    """Images of one step.

    Attributes:
        parts: this process's batches, one for each accumulated part.
        charges: (F, C, R, R), whose field is learned; None without a window.
        charge_labels: (F,), with them.
    """

    parts: list[Batch]
    charges: torch.Tensor | None
    charge_labels: torch.Tensor | None


class FieldWindow:
    """Steps with the images that make their field: their own and those of the steps to come.

    Args:
        batches: this process's batches, in the order of the plan.
        plan: who takes which images.
        size: F, images in the field of a step, at least those of the step; 0 for none.
        accelerator: gathers over its processes; None for the images of this process alone.
        device: where the images go.
    """

    def __init__(
        self,
        batches: Iterator[Batch],
        plan: BatchPlan,
        size: int,
        accelerator: Accelerator | None,
        device: torch.device,
    ) -> None:
        self.batches, self.plan, self.accelerator, self.device = batches, plan, accelerator, device
        self.step_size = plan.images_per_step if accelerator is not None else plan.batch_size * plan.parts
        self.size = max(size, self.step_size) if size else 0
        self._own: deque[list[Batch]] = deque()
        self._window: deque[Batch] = deque()

    def __iter__(self) -> Iterator[Step]:
        while True:
            while len(self._own) < max(1, math.ceil(self.size / self.step_size)):
                self._read()
            charges, labels = None, None
            if self.size:
                charges, labels = (torch.cat(each)[: self.size] for each in zip(*self._window, strict=True))
                self._window.popleft()
            yield Step(self._own.popleft(), charges, labels)

    def _read(self) -> None:
        parts = [next(self.batches) for _ in range(self.plan.parts)]
        parts = [(images.to(self.device), labels.to(self.device)) for images, labels in parts]
        self._own.append(parts)
        if self.size:
            images, labels = (torch.cat(each) for each in zip(*parts, strict=True))
            self._window.append((self._gathered(images), self._gathered(labels)))

    def _gathered(self, own: torch.Tensor) -> torch.Tensor:
        """All processes' rows, in the order of their positions."""
        if self.accelerator is None or self.plan.processes == 1:
            return own
        rows = self.accelerator.gather(own)
        shape = self.plan.processes, self.plan.parts, self.plan.batch_size, *own.shape[1:]
        return rows.view(shape).transpose(0, 1).reshape(-1, *own.shape[1:])


def free_memory(device: torch.device) -> int:
    """Bytes that are free where charges would lie."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)  # Apple's GPUs share it


def choose_charges(wanted: str, count: int, dim: int, device: torch.device, processes: int) -> str:
    """`local`, `gathered` or `dataset` for `--charges auto`: all images where they fit, else the largest batch.

    Args:
        wanted: what the option says.
        count: images.
        dim: N, numbers of one image.
        device: where charges lie.
        processes: number of processes.
    """
    if wanted != "auto":
        return wanted
    if count * dim * BYTES <= min(MEMORY_LIMIT, free_memory(device) // 8):
        return "dataset"
    return "gathered" if processes > 1 else "local"
