"""The log of a run survives kills and is strict JSON, and its means are taken over all samples."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusers_pfgm import LossOutput
from diffusers_pfgm.plots.training_curves import plot_training
from diffusers_pfgm.training.run.records import Meter, Records, read_records
from tests.device_reads import DeviceReads
from tests.networks import seeded

CPU = torch.device("cpu")


def test_an_incomplete_line_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    Records(path).write("train", 1, loss=2.0)
    with path.open("a") as file:
        file.write('{"event": "train", "step": 2, "lo')
    Records(path).write("train", 3, loss=1.0)
    assert [record["step"] for record in read_records(path)] == [1, 3]
    Records(path).write("train", 4)
    assert len(path.read_text().splitlines()) == 4


def test_the_last_record_of_a_step_counts(tmp_path: Path) -> None:
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


def test_means_are_taken_over_all_samples_and_updates_do_not_read_from_the_device() -> None:
    meter, results = Meter(100, 8, 2, CPU), [result(8, seed) for seed in range(5)]
    with DeviceReads() as reads:
        for i, each in enumerate(results):
            meter.update(each, torch.tensor(float(i)))
    assert reads.count == 0
    summary = meter.summary(5)
    losses, sigmas = (torch.cat([getattr(each, name) for each in results]) for name in ("per_sample", "sigma"))
    assert summary["loss"] == pytest.approx(losses.mean().item())
    band = losses[(sigmas > 0.1) & (sigmas <= 1)]
    assert summary["loss/sigma_0.1_1.0"] == pytest.approx(band.mean().item())
    assert (summary["grad_norm"], summary["grad_norm_max"], summary["calls"]) == (2.0, 4.0, 10)
    assert summary["memory_mb"] > 10
    meter.update(results[0], torch.tensor(7.0))
    assert meter.summary(6)["grad_norm"] == 7.0


def test_pauses_are_not_counted() -> None:
    meter = Meter(4, 10, 1, CPU)
    meter.update(result(4, 0), torch.tensor(1.0))
    with meter.pause():
        time.sleep(0.5)
    summary = meter.summary(1)
    assert summary["images_per_second"] > 40 and summary["seconds_left"] < 0.75  # 20 and 1.5 with the pause


@pytest.mark.slow
def test_a_log_is_plotted(tmp_path: Path) -> None:
    records = Records(tmp_path / "log.jsonl")
    meter = Meter(300, 8, 1, CPU)
    for step in range(1, 301):
        meter.update(result(8, step), torch.tensor(1.0))
        records.write("train", step, **meter.summary(step), lr=1e-4)
    assert [axes.get_title() for axes in plot_training(read_records(records.path)).axes][-1] == "Learning rate"
    for step in (100, 200, 300):
        records.write("validation", step, distance=0.1, distance_of_real_images=0.05)
    figure = plot_training(read_records(records.path))
    assert len(figure.axes[1].lines) == 4  # bands that contain samples
    assert figure.axes[3].lines[0].get_ydata().tolist() == [0.1] * 3
    figure.savefig(tmp_path / "training.png")
    assert (tmp_path / "training.png").stat().st_size > 20_000
    assert plot_training([]).axes


GARBAGE = [
    b'{"event": "train", "step": 2, "lo',
    b"[1, 2]",
    b'"event"',
    b"null",
    b'{"step": 2}',
    b'{"event": "train"}',
    b'{"event": ["train"], "step": 2}',
    b'{"event": "train", "step": "2"}',
    b'{"event": "train", "step": true}',
    b"\xff\xfe\x00garbage",
    b"[" * 100_000,
    b"\x00" * 512,
    b'{"event": "train", "step": ' + b"9" * 5000 + b"}",
]


def test_lines_that_are_not_records_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    Records(path).write("train", 1, loss=2.0, note="a\u2028b\x85c")
    with path.open("ab") as file:
        file.write(b"\n".join(GARBAGE))
    Records(path).write("train", 3, loss=1.0)
    assert [(record["step"], record["loss"]) for record in read_records(path, "train")] == [(1, 2.0), (3, 1.0)]
    assert read_records(path)[0]["note"] == "a\u2028b\x85c"
    assert len(plot_training(read_records(path)).axes[0].lines[0].get_xdata()) == 2


def test_an_incomplete_line_on_a_full_disk_does_not_affect_others(tmp_path: Path) -> None:
    records = Records(tmp_path / "log.jsonl")
    for step in range(1, 4):
        records.write("train", step, loss=1.0)
        with records.path.open("ab") as file:  # the part of the next line that fits on the disk
            file.write(b'{"event": "train", "st')
    assert [record["step"] for record in read_records(records.path)] == [1, 2, 3]


def test_values_that_are_not_numbers_are_not_plotted() -> None:
    records = [{"event": "train", "step": step, "loss": 1.0, "loss/sigma_0_0.1": 2.0} for step in range(1, 4)]
    records[1] |= {"loss": "high", "grad_norm": None, "lr": [1], "loss/sigma_x_1": 1.0, "loss/sigma_1": 1.0}
    records.append({"event": "train", "step": 10**400, "loss": 10**400})
    records.append({"event": "train", "step": 5, "loss": float("nan"), "loss/sigma_0_0.1": float("inf")})
    records.append({"event": "validation", "step": 5, "distance": 0.5})
    figure = plot_training(records)
    assert figure.axes[0].lines[0].get_xdata().tolist() == [1, 3] and len(figure.axes[1].lines) == 1
    assert figure.axes[3].lines[0].get_ydata().tolist() == [0.5]


def test_the_thick_line_is_the_running_median_and_fast() -> None:
    for count in (150, 20_000):
        values = np.random.default_rng(0).lognormal(size=count)
        started = time.process_time()
        figure = plot_training([{"event": "train", "step": i, "loss": v} for i, v in enumerate(values.tolist())])
        seconds = time.process_time() - started
        thin, thick = figure.axes[0].lines
        assert thin.get_ydata().tolist() == values.tolist()
        steps = thick.get_xdata().astype(int)
        assert len(steps) == min(count, 200) and (steps[0], steps[-1]) == (0, count - 1)
        width = int(0.05 * count)
        for step, value in zip(steps, thick.get_ydata(), strict=True):
            assert value == np.median(values[max(0, step - width) : step + width + 1])
    assert seconds < 3  # a median at every record took 20


def test_a_pause_that_ends_with_an_error_is_not_counted() -> None:
    meter = Meter(4, 10, 1, CPU)
    meter.update(result(4, 0), torch.tensor(1.0))
    with pytest.raises(KeyError), meter.pause():
        time.sleep(0.5)
        raise KeyError
    assert meter.summary(1)["images_per_second"] > 40


def test_records_of_an_abandoned_branch_are_left_out(tmp_path: Path) -> None:
    records = Records(tmp_path / "log.jsonl")
    records.write("start", 0)
    for step in (2, 4, 6, 8):
        records.write("train", step, loss=float(step))
    records.write("validation", 8, distance=0.1)
    records.write("start", 4)  # from an older checkpoint
    records.write("train", 5, loss=50.0)
    events = [(record["event"], record["step"]) for record in read_records(records.path)]
    assert events == [("start", 0), ("train", 2), ("train", 4), ("start", 4), ("train", 5)]
    assert [record["loss"] for record in read_records(records.path, "train")] == [2.0, 4.0, 50.0]
    assert read_records(records.path, "validation") == []


def test_skipped_steps_of_float16_are_counted_separately() -> None:
    meter = Meter(10, 8, 1, CPU)
    for norm in (1.0, float("inf"), 3.0, float("nan")):
        meter.update(result(8, 0), torch.tensor(norm))
    summary = meter.summary(4)
    assert (summary["grad_norm"], summary["grad_norm_max"], summary["skipped_steps"]) == (2.0, 3.0, 2)
    meter.update(result(8, 0), torch.tensor(float("inf")))
    summary = meter.summary(5)
    assert summary["skipped_steps"] == 1 and "grad_norm" not in summary
    meter.update(result(8, 0), torch.tensor(1.0))
    assert "skipped_steps" not in meter.summary(6)
