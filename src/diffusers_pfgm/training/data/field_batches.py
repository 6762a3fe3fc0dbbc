"""Where the field objective takes its charges from.

The paper's field is that of a batch larger than the one that is trained on (arXiv 2209.11178, Algorithm 1). Here:

- `local`: a window over each process's own images, the step's and those of the next steps, so that every image is read
  once an epoch however large the window is;
- `gathered`: the same window over the images of all processes, hence one large batch's field on any number of them;
- `dataset`: every image, prepared once. The field is then exact, and what it costs does not fall with the batch.
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

MEMORY_LIMIT = 2**30  # bytes of all images as charges; `auto` takes no more, nor more than an eighth of what is free
BYTES = 8  # of a number in prepared charges, at most: float64 where the device has it


@dataclass(frozen=True)
class Step:
    """Images of one step, as views that hold until the next step is drawn.

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

    Every image is kept once, in one tensor of F images and a quarter, through which the window slides.

    Args:
        batches: this process's batches, in the order of the plan.
        plan: who takes which images.
        size: F, images in the field of a step, at least those of the step; 0 for none.
        accelerator: gathers over its processes; None for the images of this process alone.
        device: where the images go.
        length: says how many images there are, once it is known; None until then. F is then at most that many, or those
            of a step. Every process must be told the same after the same step.
        stopped: asked by every process after each step that is read before the first one is full. No more steps come
            when it is true.
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
        self.batches, self.accelerator, self.device = batches, accelerator, device
        self.plan = plan if accelerator is not None else dataclasses.replace(plan, processes=1, process=0)
        self.step_size = self.plan.images_per_step
        self.has_field, self.size = size > 0, max(size, self.step_size)
        self.length, self.stopped = length, stopped
        self._kept: list[torch.Tensor] = []  # images and labels, of which the rows from start to end are the window's
        self._start = self._end = 0

    def __iter__(self) -> Iterator[Step]:
        if not self._fill():
            return
        while True:
            yield self._step()
            self._start += self.step_size
            while self._held() < self.size:
                if not self._read():
                    return

    def _fill(self) -> bool:
        """Read the images of the first field; False if there are too few, or it was stopped."""
        hidden = not self.has_field or self.plan.process > 0
        with tqdm(total=self.size, desc="Reading the first field", leave=False, disable=hidden) as shown:
            while self._held() < self.size:
                if not self._read() or self.stopped():
                    return False
                shown.update(self.step_size)
        return True

    def _held(self) -> int:
        return self._end - self._start

    def _step(self) -> Step:
        images, labels = (kept[self._start : self._start + self.size] for kept in self._kept)
        firsts = [self.plan.first(0, part) for part in range(self.plan.parts)]
        own = [slice(first, first + self.plan.batch_size) for first in firsts]
        parts = [(images[rows], labels[rows]) for rows in own]
        return Step(parts, images, labels) if self.has_field else Step(parts, None, None)

    def _read(self) -> bool:
        """Append the images of one more step; whether there were any."""
        plan = self.plan
        parts = list(itertools.islice(self.batches, plan.parts))
        if len(parts) < plan.parts:
            return False
        for room, own in zip(self._room(parts[0]), zip(*parts, strict=True), strict=True):
            rows = room.view(plan.parts, plan.processes, plan.batch_size, *room.shape[1:])  # in the order of positions
            if plan.processes > 1 and self.accelerator is not None:
                gathered = self.accelerator.gather(torch.stack(own).to(self.device))
                rows.copy_(gathered.view(plan.processes, plan.parts, *rows.shape[2:]).transpose(0, 1))
            else:
                for row, part in zip(rows, own, strict=True):
                    row[0].copy_(part)
        self.size = max(self.step_size, min(self.size, self.length() or self.size))
        return True

    def _room(self, example: Batch) -> list[torch.Tensor]:
        """Rows for one more step behind the window, which goes back to the front where there are none left."""
        count = self.step_size
        if not self._kept:
            most = math.ceil(self.size / count) * count
            capacity = most + max(count, most // 4)
            self._kept = [
                torch.empty(capacity, *each.shape[1:], dtype=each.dtype, device=self.device) for each in example
            ]
        if self._end + count > len(self._kept[0]):
            held, gap = self._end - self._start, self._start
            for kept in self._kept:
                for at in range(0, held, gap):  # by parts that do not overlap with where they go
                    end = min(at + gap, held)
                    kept[at:end] = kept[at + gap : end + gap]
            self._start, self._end = 0, held
        self._end += count
        return [kept[self._end - count : self._end] for kept in self._kept]


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
