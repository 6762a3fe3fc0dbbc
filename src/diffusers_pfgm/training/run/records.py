"""The records of a run: one JSON line an event, and what is measured between two of them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ...losses.loss_output import LossOutput


class Records:
    """The file `log.jsonl` of a run, to which each event adds one line of strict JSON.

    Args:
        path: of the file; a run that goes on adds to what is there.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def write(self, event: str, step: int, **values: Any) -> None:
        """Add a line; numbers that are not finite, which JSON does not have, become None.

        Raises:
            OSError: if the line cannot be written, a full disk for instance.
        """
        line = {"event": event, "step": step, "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds")}
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        with self.path.open("ab+") as file:
            # A kill or a full disk may have cut the last line off.
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(line | finite, allow_nan=False).encode() + b"\n")


def read_records(path: str | Path, event: str | None = None) -> list[dict[str, Any]]:
    """The records in a run's file, in the order of their steps.

    A line that is not a record is left out: a kill, a full disk or a damaged file system may leave half a line or
    bytes of something else. Where a run went on from an earlier step, what it had recorded of later steps does not
    count.

    Args:
        path: of the file.
        event: the one kind of event to return; all by default.
    """
    found: dict[tuple[str, int], dict[str, Any]] = {}
    with Path(path).open("rb") as file:
        for line in file:
            record = _record(line)
            if record is not None and record["event"] == "start":
                found = {key: each for key, each in found.items() if each["step"] <= record["step"]}
            if record is not None and event in (None, record["event"]):
                found[record["event"], record["step"]] = record
    return sorted(found.values(), key=lambda record: record["step"])


def _record(line: bytes) -> dict[str, Any] | None:
    """The record in a line; None if there is none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):  # no JSON, not UTF-8, or nested too deeply
        return None
    is_record = isinstance(found, dict) and isinstance(found.get("event"), str) and type(found.get("step")) is int
    return found if is_record else None


class Meter:
    """What happens between two lines of the record, without a look at the device until then.

    Args:
        total_steps: of the run.
        images_per_step: over all processes.
        calls_per_step: forward passes of the network, over all processes.
        device: whose memory is told.
        first_step: after which the run begins.
    """

    def __init__(
        self, total_steps: int, images_per_step: int, calls_per_step: int, device: torch.device, first_step: int = 0
    ) -> None:
        self.total_steps, self.images_per_step, self.calls_per_step = total_steps, images_per_step, calls_per_step
        self.device, self._last = device, first_step
        self._results: list[LossOutput] = []
        self._norms: list[torch.Tensor] = []
        self._started = time.perf_counter()

    def update(self, result: LossOutput, norm: torch.Tensor | None) -> None:
        """Note a batch's loss and, after the last part of a step, the norm of the gradient."""
        self._results.append(LossOutput(result.loss.detach(), result.per_sample, result.sigma))
        if norm is not None:
            self._norms.append(norm.detach())

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time in here is none of the training's."""
        stopped = time.perf_counter()
        try:
            yield
        finally:
            self._started += time.perf_counter() - stopped

    def summary(self, step: int) -> dict[str, float]:
        """Means since the last call, by name; losses and norms are this process's own.

        Steps that float16 has skipped, for their gradient is infinite, are counted apart.
        """
        seconds, steps = time.perf_counter() - self._started, step - self._last
        losses, sigmas = (
            torch.cat([getattr(each, name) for each in self._results]) for name in ("per_sample", "sigma")
        )
        whole, norms = LossOutput(losses.mean(), losses, sigmas), torch.stack(self._norms).float().cpu()
        found = {"loss": whole.loss.item(), **whole.bands()}
        taken = norms[norms.isfinite()]
        if len(taken):
            found |= {"grad_norm": taken.mean().item(), "grad_norm_max": taken.max().item()}
        if len(taken) < len(norms):
            found["skipped_steps"] = len(norms) - len(taken)
        found |= {"images_per_second": steps * self.images_per_step / seconds, "calls": step * self.calls_per_step}
        found["seconds_left"] = (self.total_steps - step) * seconds / steps
        memory = peak_memory(self.device)
        if memory is not None:
            found["memory_mb"] = memory / 1e6
        self._results, self._norms, self._last, self._started = [], [], step, time.perf_counter()
        return found


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that this process has had on its accelerator, or in main memory; None where nobody counts."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    if sys.platform == "win32":
        return None
    import resource  # Unix only

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
