"""The record of a run survives kills, is strict JSON, and its means are those of all samples."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_pfgm import LossOutput
from diffusers_pfgm.training.curves import plot_training
from diffusers_pfgm.training.records import Meter, Records, read_records
from tests.conftest import seeded

CPU = torch.device("cpu")


def test_a_line_cut_off_by_a_kill_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    Records(path).write("train", 1, loss=2.0)
    with path.open("a") as file:
        file.write('{"event": "train", "step": 2, "lo')
    Records(path).write("train", 3, loss=1.0)
    assert [record["step"] for record in read_records(path)] == [1, 3]
    Records(path).write("train", 4)
    assert len(path.read_text().splitlines()) == 4


def test_the_later_record_of_a_step_counts(tmp_path: Path) -> None:
    records = Records(tmp_path / "log.jsonl")
    for step, loss in ((1, 0.1), (2, 0.2), (3, 0.3), (2, 0.25)):  # killed after 3, resumed after 1
        records.write("train", step, loss=loss)
    records.write("validation", 2, distance=1.0)
    assert [record["loss"] for record in read_records(records.path, "train")] == [0.1, 0.25, 0.3]
    assert len(read_records(records.path)) == 4


def test_every_line_is_strict_json(tmp_path: Path) -> None:
    records = Records(tmp_path / "log.jsonl")
    records.write("train", 1, loss=float("nan"), norm=float("inf"))

    def refuse(name: str) -> None:
        raise AssertionError(name)

    line = json.loads(records.path.read_text(), parse_constant=refuse)
    assert line["loss"] is None and line["norm"] is None


def result(count: int, seed: int) -> LossOutput:
    losses = torch.rand(count, generator=seeded(seed))
    return LossOutput(losses.mean(), losses, 10 ** (4 * torch.rand(count, generator=seeded(seed + 9)) - 2))


class Reads(TorchDispatchMode):
    """Counts values that are read back from the device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_means_are_those_of_all_samples_and_nothing_is_read_on_the_way() -> None:
    meter, results = Meter(100, 8, 2, CPU), [result(8, seed) for seed in range(5)]
    with Reads() as reads:
        for i, each in enumerate(results):
            meter.update(each, torch.tensor(float(i)))
    assert reads.count == 0
    found = meter.summary(5)
    losses, sigmas = (torch.cat([getattr(each, name) for each in results]) for name in ("per_sample", "sigma"))
    assert found["loss"] == pytest.approx(losses.mean().item())
    chosen = losses[(sigmas > 0.1) & (sigmas <= 1)]
    assert found["loss/sigma_0.1_1.0"] == pytest.approx(chosen.mean().item())
    assert (found["grad_norm"], found["grad_norm_max"], found["calls"]) == (2.0, 4.0, 10) and found["memory_mb"] > 10
    meter.update(results[0], torch.tensor(7.0))
    assert meter.summary(6)["grad_norm"] == 7.0


def test_pauses_are_not_counted() -> None:
    meter = Meter(4, 10, 1, CPU)
    meter.update(result(4, 0), torch.tensor(1.0))
    with meter.pause():
        time.sleep(0.5)
    found = meter.summary(1)
    assert found["images_per_second"] > 40 and found["seconds_left"] < 0.75  # 20 and 1.5 with the pause


def test_the_course_of_a_run_is_drawn(tmp_path: Path) -> None:
    records = Records(tmp_path / "log.jsonl")
    meter = Meter(300, 8, 1, CPU)
    for step in range(1, 301):
        meter.update(result(8, step), torch.tensor(1.0))
        records.write("train", step, **meter.summary(step), lr=1e-4)
    assert [axes.get_title() for axes in plot_training(read_records(records.path)).axes][-1] == "Learning rate"
    for step in (100, 200, 300):
        records.write("validation", step, distance=0.1, distance_of_real_images=0.05)
    figure = plot_training(read_records(records.path))
    assert len(figure.axes[1].lines) == 4  # bands that were met
    assert figure.axes[3].lines[0].get_ydata().tolist() == [0.1] * 3
    figure.savefig(tmp_path / "training.png")
    assert (tmp_path / "training.png").stat().st_size > 20_000
    assert plot_training([]).axes
