"""Order and random numbers depend only on seed and position."""

from itertools import islice

import pytest
import torch

from diffusers_pfgm.training.data.order import BatchPlan, ImageOrder, PlannedBatches, position_generators


def keys_of_a_step(step: int, batch_size: int, parts: int, processes: int) -> list[int]:
    """The keys of all processes and parts, ordered by position."""
    order = ImageOrder(50, seed=3)
    plans = [BatchPlan(batch_size, parts, processes, process) for process in range(processes)]
    return [
        key for part in range(parts) for plan in plans for key in order.keys(plan.first(step, part), plan.batch_size)
    ]


@pytest.mark.parametrize(("batch_size", "parts", "processes"), [(32, 1, 1), (16, 1, 2), (8, 4, 1), (4, 2, 4)])
def test_a_step_is_the_same_on_any_number_of_processes_and_parts(batch_size: int, parts: int, processes: int) -> None:
    for step in (0, 1, 7):
        assert keys_of_a_step(step, batch_size, parts, processes) == ImageOrder(50, seed=3).keys(32 * step, 32)


def test_every_epoch_has_every_image_once_in_a_new_order() -> None:
    keys = ImageOrder(50, seed=3).keys(0, 150)
    epochs = [[key - 50 * epoch for key in keys[50 * epoch : 50 * (epoch + 1)]] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != sorted(epochs[0])
    assert ImageOrder(50, seed=4).keys(0, 150) != keys


def test_processes_share_no_image_of_an_epoch() -> None:
    keys: list[int] = []
    for process in range(2):
        batches = PlannedBatches(ImageOrder(64, seed=0), BatchPlan(16, 1, 2, process))
        keys += [key for batch in islice(batches, 2) for key in batch]
    assert sorted(keys) == list(range(64))


def test_batches_can_start_at_any_step() -> None:
    plan, order = BatchPlan(5, 2, 3, 1), ImageOrder(37, seed=1)
    whole = list(islice(PlannedBatches(order, plan), 40))
    assert list(islice(PlannedBatches(ImageOrder(37, seed=1), plan, first_step=13), 14)) == whole[26:]


def test_positions_have_independent_random_numbers() -> None:
    first, again = position_generators(0, 5, 3), position_generators(0, 6, 3)
    numbers, others = ([torch.randn(4, generator=one) for one in each] for each in (first, again))
    assert torch.equal(numbers[1], others[0]) and torch.equal(numbers[2], others[1])
    drawn = torch.stack([torch.randn(50, generator=one) for one in position_generators(0, 0, 400)])
    correlation = torch.corrcoef(drawn).fill_diagonal_(0).abs().max()
    assert correlation < 0.75  # 80,000 pairs of 50 normal numbers: 5 standard errors of 0.14
    assert not torch.equal(torch.randn(4, generator=position_generators(1, 5, 1)[0]), numbers[0])


def test_the_global_random_state_is_untouched() -> None:
    before = torch.get_rng_state()
    next(iter(PlannedBatches(ImageOrder(9, seed=0), BatchPlan(4))))
    [torch.randn(2, generator=one) for one in position_generators(0, 0, 2)]
    assert torch.equal(before, torch.get_rng_state())
