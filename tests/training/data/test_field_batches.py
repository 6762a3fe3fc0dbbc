"""The images of a step and the images that generate its field."""

import gc
from collections.abc import Iterator
from itertools import islice

import pytest
import torch

from diffusers_pfgm.training.data import field_batches
from diffusers_pfgm.training.data.field_batches import FieldWindow, choose_charges
from diffusers_pfgm.training.data.order import BatchPlan

CPU = torch.device("cpu")


class TwoProcesses:
    """A substitute for accelerate's `gather` over two processes. The second process's images follow the first's."""

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        return torch.cat([own, own + 3])


def numbered(plan: BatchPlan) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of one-pixel images whose value and label are their position."""
    step = 0
    while True:
        for part in range(plan.parts):
            first = plan.first(step, part)
            positions = torch.arange(first, first + plan.batch_size)
            yield positions.float().view(-1, 1, 1, 1), positions
        step += 1


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("size", [1, 7, 40])
def test_a_window_begins_with_the_images_of_the_step(parts: int, size: int) -> None:
    plan = BatchPlan(4, parts)
    for number, step in enumerate(islice(FieldWindow(numbered(plan), plan, size, None, CPU), 5)):
        first, count = number * 4 * parts, max(size, 4 * parts)
        assert step.charges is not None and step.charges.flatten().tolist() == list(range(first, first + count))
        assert torch.equal(step.charge_labels, step.charges.flatten().long())
        own = [int(label) for _, labels in step.parts for label in labels]
        assert own == list(range(first, first + 4 * parts))


@pytest.mark.parametrize("parts", [1, 2])
def test_a_gathered_window_equals_that_of_one_process(parts: int) -> None:
    plan = BatchPlan(3, parts, processes=2, process=0)
    steps = islice(FieldWindow(numbered(plan), plan, 20, TwoProcesses(), CPU), 4)
    for number, step in enumerate(steps):
        first = number * 6 * parts
        assert step.charges is not None and step.charges.flatten().tolist() == list(range(first, first + 20))


def live_bytes() -> int:
    """The size of all live tensors in bytes. Tensors inside a transform of torch.func have no storage."""
    gc.collect()
    storages = {}
    for value in gc.get_objects():
        if type(value) is torch.Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(value):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("gathered", [True, False])
def test_a_window_is_in_memory_only_once(gathered: bool) -> None:
    plan = BatchPlan(8, 2, 1 + gathered)
    large = ((images.expand(-1, 3, 32, 32), labels) for images, labels in numbered(plan))
    before = live_bytes()
    window = iter(FieldWindow(large, plan, 640, TwoProcesses() if gathered else None, CPU))
    step = next(islice(window, 45, None))
    assert step.charges is not None and live_bytes() - before < 1.5 * step.charges.nbytes


def test_a_window_slides_over_many_steps() -> None:
    plan = BatchPlan(3, 2)
    for number, step in enumerate(islice(FieldWindow(numbered(plan), plan, 20, None, CPU), 200)):
        assert step.charges is not None and step.charges.flatten().tolist() == list(range(6 * number, 6 * number + 20))


@pytest.mark.parametrize(("length", "expected"), [(6, 8), (11, 11), (50, 30), (None, 30)])
def test_a_window_is_no_longer_than_the_stream(length: int | None, expected: int) -> None:
    plan = BatchPlan(4, 2)
    read = 0

    def counted() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        nonlocal read
        for batch in numbered(plan):
            read += plan.batch_size
            yield batch

    window = FieldWindow(
        counted(), plan, 30, None, CPU, lambda: length if length is not None and read > length else None
    )
    for number, step in enumerate(islice(window, 6)):
        first = 8 * number
        assert step.charges is not None and step.charges.flatten().tolist() == list(range(first, first + expected))


@pytest.mark.parametrize("size", [0, 40])
def test_filling_a_window_can_be_stopped(size: int) -> None:
    plan = BatchPlan(4)
    calls = []

    def stopped() -> bool:
        calls.append(None)
        return len(calls) == (3 if size else 1)

    assert list(FieldWindow(numbered(plan), plan, size, None, CPU, stopped=stopped)) == []
    calls = [None] * 100
    assert len(list(islice(FieldWindow(numbered(plan), plan, size, None, CPU, stopped=stopped), 20))) == 20
    assert len(calls) == 100 + (10 if size else 1)  # not called once the window is full: the training loop does that


def test_without_a_window_only_the_images_of_the_step_are_read() -> None:
    plan = BatchPlan(4)
    batches = numbered(plan)
    step = next(iter(FieldWindow(batches, plan, 0, None, CPU)))
    assert step.charges is None and next(batches)[1].tolist() == [4, 5, 6, 7]


def test_auto_chooses_the_whole_data_set_if_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(field_batches, "free_memory", lambda device: 8 * 8 * 1000 * 64)
    assert choose_charges("auto", 1000, 64, CPU, 1) == "dataset"
    assert choose_charges("auto", 1001, 64, CPU, 1) == "local"
    assert choose_charges("auto", 1001, 64, CPU, 2) == "gathered"
    monkeypatch.setattr(field_batches, "free_memory", lambda device: 2**50)
    assert choose_charges("auto", 2**20, 128, CPU, 1) == "dataset"
    assert choose_charges("auto", 2**20 + 1, 128, CPU, 1) == "local"
    assert choose_charges("gathered", 10, 64, CPU, 1) == "gathered"


def test_free_memory_is_positive() -> None:
    assert field_batches.free_memory(CPU) > 2**20
