"""The log of a run, one line of JSON for each event, and the statistics of the steps between two records."""

from __future__ import annotations

import contextlib
import dataclasses
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
    """The log file of a run. Each event appends one line of strict JSON.

    Args:
        path: The path of the file. A resumed run appends to it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def write(self, event: str, step: int, **values: Any) -> None:
        """Append a line. NaN and infinity, which JSON does not have, become null.

        Args:
            event: The kind of event, such as "train".
            step: The number of optimizer steps done.
            **values: What to record.

        Raises:
            OSError: if the line cannot be written, for example because the disk is full.
        """
        line = {"event": event, "step": step, "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds")}
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        with self.path.open("ab+") as file:
            # The last line may be incomplete after a kill or on a full disk.
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(line | finite, allow_nan=False).encode() + b"\n")


def read_records(path: str | Path, event: str | None = None) -> list[dict[str, Any]]:
    """Read the records of a log file, sorted by step.

    Lines that are not records are ignored, since a kill, a full disk or a damaged file system may leave incomplete or
    invalid lines. If a run resumed from an earlier step, the records of later steps before that are left out.

    Args:
        path: The path of the file.
        event: The kind of event to return; all by default.
    """
    records: dict[tuple[str, int], dict[str, Any]] = {}
    with Path(path).open("rb") as file:
        for line in file:
            record = _record(line)
            if record is not None and record["event"] == "start":
                records = {key: earlier for key, earlier in records.items() if earlier["step"] <= record["step"]}
            if record is not None and event in (None, record["event"]):
                records[record["event"], record["step"]] = record
    return sorted(records.values(), key=lambda record: record["step"])


def _record(line: bytes) -> dict[str, Any] | None:
    """The record in a line; None if the line is not a record."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # not JSON, not UTF-8, or nested too deeply
        return None
    is_record = isinstance(record, dict) and isinstance(record.get("event"), str) and type(record.get("step")) is int
    return record if is_record else None


class Meter:
    """Statistics of the steps between two records. Values are read from the device only in `summary`.

    Args:
        total_steps: Number of steps of the run.
        images_per_step: Number of images of a step over all processes.
        calls_per_step: Number of forward passes of the network in a step over all processes.
        device: The device whose peak memory is reported.
        first_step: Number of steps done before, if the run was resumed.
    """

    def __init__(
        self, total_steps: int, images_per_step: int, calls_per_step: int, device: torch.device, first_step: int = 0
    ) -> None:
        self.total_steps = total_steps
        self.images_per_step = images_per_step
        self.calls_per_step = calls_per_step
        self.device = device
        self._last_step = first_step
        self._results: list[LossOutput] = []
        self._norms: list[torch.Tensor] = []
        self._started = time.perf_counter()

    def update(self, result: LossOutput, norm: torch.Tensor | None) -> None:
        """Add the loss of a micro-batch and, after the last micro-batch of a step, the norm of the gradient."""
        self._results.append(dataclasses.replace(result, loss=result.loss.detach()))
        if norm is not None:
            self._norms.append(norm.detach())

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """A context whose time does not count as training time."""
        paused = time.perf_counter()
        try:
            yield
        finally:
            self._started += time.perf_counter() - paused

    def summary(self, step: int) -> dict[str, float]:
        """Return statistics since the last call by name. Losses and norms are those of this process.

        Steps that were skipped in float16, because their gradient was infinite, are counted as "skipped_steps" and do
        not enter the norms.

        Args:
            step: Number of steps done.
        """
        seconds = time.perf_counter() - self._started
        steps = step - self._last_step
        losses = torch.cat([result.per_sample for result in self._results])
        sigmas = torch.cat([result.sigma for result in self._results])
        norms = torch.stack(self._norms).float().cpu()
        total = LossOutput(losses.mean(), losses, sigmas)
        values = {"loss": total.loss.item(), **total.bands()}
        for name in self._results[0].parts:
            values[f"loss/{name}"] = torch.cat([result.parts[name] for result in self._results]).mean().item()
        finite_norms = norms[norms.isfinite()]
        if len(finite_norms):
            values |= {"grad_norm": finite_norms.mean().item(), "grad_norm_max": finite_norms.max().item()}
        if len(finite_norms) < len(norms):
            values["skipped_steps"] = len(norms) - len(finite_norms)
        values |= {"images_per_second": steps * self.images_per_step / seconds, "calls": step * self.calls_per_step}
        values["seconds_left"] = (self.total_steps - step) * seconds / steps
        memory = peak_memory(self.device)
        if memory is not None:
            values["memory_mb"] = memory / 1e6
        self._results, self._norms = [], []
        self._last_step = step
        self._started = time.perf_counter()
        return values


def peak_memory(device: torch.device) -> int | None:
    """Peak memory of this process in bytes, on a GPU or else in main memory; None if the system does not record it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    if sys.platform == "win32":
        return None
    import resource  # Unix only

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
