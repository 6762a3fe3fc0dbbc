"""The charges of the field objective.

In the paper the field of a step is computed from a batch larger than the one that is perturbed (arXiv 2209.11178,
Algorithm 1). Here the charges are one of

- `local`: a sliding window over each process's own images, those of the step and of the next steps. Every image is read
  once an epoch, whatever the size of the window.
- `gathered`: the same window over the images of all processes. The field then does not depend on the number of
  processes.
- `dataset`: all images, prepared once. The field is then exact, and its cost does not decrease with the batch size.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psutil
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from .order import BatchPlan

Batch = tuple[torch.Tensor, torch.Tensor]  # images (B, C, R, R) and labels (B,)

MEMORY_LIMIT = 2**30  # bytes; `auto` chooses `dataset` up to this size and up to an eighth of the free memory
BYTES_PER_NUMBER = 8  # prepared charges are float64 if the device supports it


@dataclass(frozen=True)
class StepImages:
    """The images of one step. The tensors are views that are valid until the next step is drawn.

    Attributes:
        parts: The micro-batches of this process.
        charges: Images (F, C, R, R) whose field is learned; None without a window.
        charge_labels: Class labels (F,) of the charges; None without a window.
    """

    parts: list[Batch]
    charges: torch.Tensor | None
    charge_labels: torch.Tensor | None


class FieldWindow:
    """Iterates over steps, each with the images that generate its field: those of the step and of the steps after it.

    Every image is kept once, in one tensor with room for 5/4 · F images, through which the window slides.

    Args:
        batches: This process's batches, in the order of the plan.
        plan: The division of a step's positions.
        size: Number F of images that generate the field of a step, raised to the number of images of a step if it is
            smaller; 0 for steps without a field.
        accelerator: The `Accelerator` whose processes share their images; None for a window over the images of this
            process alone.
        device: The device of the images.
        length: Returns the number of images of the data set, or None while it is not known. F is reduced to that
            number, but not below the images of a step. After the same step every process must get the same number.
        stopped: Called by every process after each step that is read to fill the first window. If it returns True, the
            iteration ends.
    """

    def __init__(
        self,
        batches: Iterator[Batch],
        plan: BatchPlan,
        size: int,
        accelerator: Accelerator | None,
        device: torch.device,
        length: Callable[[], int | None] = lambda: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.batches = batches
        self.accelerator = accelerator
        self.device = device
        self.plan = plan if accelerator is not None else dataclasses.replace(plan, processes=1, process=0)
        self.step_size = self.plan.images_per_step
        self.has_field = size > 0
        self.size = max(size, self.step_size)
        self.length = length
        self.stopped = stopped
        self._buffers: list[torch.Tensor] = []  # images and labels; the window is the rows from `_start` to `_end`
        self._start = self._end = 0

    def __iter__(self) -> Iterator[StepImages]:
        if not self._fill():
            return
        while True:
            yield self._step()
            self._start += self.step_size
            while self._count() < self.size:
                if not self._read():
                    return

    def _fill(self) -> bool:
        """Read the images of the first window; False if the batches end before it is full, or it was stopped."""
        hidden = not self.has_field or self.plan.process > 0
        with tqdm(total=self.size, desc="Reading the first field", leave=False, disable=hidden) as progress_bar:
            while self._count() < self.size:
                if not self._read() or self.stopped():
                    return False
                progress_bar.update(self.step_size)
        return True

    def _count(self) -> int:
        return self._end - self._start

    def _step(self) -> StepImages:
        images, labels = (buffer[self._start : self._start + self.size] for buffer in self._buffers)
        firsts = [self.plan.first(0, part) for part in range(self.plan.parts)]
        own = [slice(first, first + self.plan.batch_size) for first in firsts]
        parts = [(images[rows], labels[rows]) for rows in own]
        return StepImages(parts, images, labels) if self.has_field else StepImages(parts, None, None)

    def _read(self) -> bool:
        """Append the images of one more step; False if the batches have ended."""
        plan = self.plan
        parts = list(itertools.islice(self.batches, plan.parts))
        if len(parts) < plan.parts:
            return False
        for room, own in zip(self._room(parts[0]), zip(*parts, strict=True), strict=True):
            rows = room.view(plan.parts, plan.processes, plan.batch_size, *room.shape[1:])  # ordered by position
            if plan.processes > 1 and self.accelerator is not None:
                gathered = self.accelerator.gather(torch.stack(own).to(self.device))
                rows.copy_(gathered.view(plan.processes, plan.parts, *rows.shape[2:]).transpose(0, 1))
            else:
                for row, part in zip(rows, own, strict=True):
                    row[0].copy_(part, non_blocking=part.is_pinned())
        self.size = max(self.step_size, min(self.size, self.length() or self.size))
        return True

    def _room(self, example: Batch) -> list[torch.Tensor]:
        """Return the rows for the next step after the window. If there is no room, the window moves to the front."""
        count = self.step_size
        if not self._buffers:
            largest = math.ceil(self.size / count) * count
            capacity = largest + max(count, largest // 4)
            self._buffers = [
                torch.empty(capacity, *tensor.shape[1:], dtype=tensor.dtype, device=self.device) for tensor in example
            ]
        if self._end + count > len(self._buffers[0]):
            kept = self._count()
            gap = self._start
            for buffer in self._buffers:
                for start in range(0, kept, gap):  # copy in parts, so that source and target do not overlap
                    end = min(start + gap, kept)
                    buffer[start:end] = buffer[start + gap : end + gap]
            self._start, self._end = 0, kept
        self._end += count
        return [buffer[self._end - count : self._end] for buffer in self._buffers]


def free_memory(device: torch.device) -> int:
    """Free memory of a device, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)  # Apple's GPUs share the main memory


def choose_charges(option: str, count: int, dim: int, device: torch.device, processes: int) -> str:
    """Return the kind of charges for `--charges`: "local", "gathered" or "dataset".

    "auto" becomes "dataset" if all images fit into memory, otherwise "gathered" with several processes and "local" with
    one.

    Args:
        option: The value of `--charges`.
        count: Number of images.
        dim: Data dimension N of one image.
        device: The device of the charges.
        processes: Number of processes.
    """
    if option != "auto":
        return option
    if count * dim * BYTES_PER_NUMBER <= min(MEMORY_LIMIT, free_memory(device) // 8):
        return "dataset"
    return "gathered" if processes > 1 else "local"
