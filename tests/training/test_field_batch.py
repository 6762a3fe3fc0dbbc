"""The images of a step and those that make its field."""

from collections.abc import Iterator
from itertools import islice

import pytest
import torch

from diffusers_pfgm.training import field_batch
from diffusers_pfgm.training.field_batch import FieldWindow, choose_charges
from diffusers_pfgm.training.stream import BatchPlan

CPU = torch.device("cpu")


class TwoProcesses:
    """Stands for accelerate's gather over processes whose images continue each other's."""

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        return torch.cat([own, own + 3])


def numbered(plan: BatchPlan) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches whose images are their positions."""
    step = 0
    while True:
        for part in range(plan.parts):
            first = plan.first(step, part)
            positions = torch.arange(first, first + plan.batch_size)
            yield positions.float().view(-1, 1, 1, 1), positions
        step += 1


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("size", [1, 7, 40])
def test_a_step_has_its_own_images_first(parts: int, size: int) -> None:
    plan = BatchPlan(4, parts)
    for number, step in enumerate(islice(FieldWindow(numbered(plan), plan, size, None, CPU), 5)):
        first, count = number * 4 * parts, max(size, 4 * parts)
        assert step.charges is not None and step.charges.flatten().tolist() == list(range(first, first + count))
        assert torch.equal(step.charge_labels, step.charges.flatten().long())
        own = [int(label) for _, labels in step.parts for label in labels]
        assert own == list(range(first, first + 4 * parts))


@pytest.mark.parametrize("parts", [1, 2])
def test_gathered_images_are_those_of_one_process(parts: int) -> None:
    plan = BatchPlan(3, parts, processes=2, process=0)
    steps = islice(FieldWindow(numbered(plan), plan, 20, TwoProcesses(), CPU), 4)
    for number, step in enumerate(steps):
        first = number * 6 * parts
        assert step.charges is not None and step.charges.flatten().tolist() == list(range(first, first + 20))


def test_no_window_reads_no_further_than_its_step() -> None:
    plan = BatchPlan(4)
    batches = numbered(plan)
    step = next(iter(FieldWindow(batches, plan, 0, None, CPU)))
    assert step.charges is None and next(batches)[1].tolist() == [4, 5, 6, 7]


def test_auto_takes_every_image_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(field_batch, "free_memory", lambda device: 8 * 8 * 1000 * 64)
    assert choose_charges("auto", 1000, 64, CPU, 1) == "dataset"
    assert choose_charges("auto", 1001, 64, CPU, 1) == "local"
    assert choose_charges("auto", 1001, 64, CPU, 2) == "gathered"
    monkeypatch.setattr(field_batch, "free_memory", lambda device: 2**50)
    assert choose_charges("auto", 2**20, 128, CPU, 1) == "dataset"
    assert choose_charges("auto", 2**20 + 1, 128, CPU, 1) == "local"
    assert choose_charges("gathered", 10, 64, CPU, 1) == "gathered"


def test_free_memory_is_some() -> None:
    assert field_batch.free_memory(CPU) > 2**20
