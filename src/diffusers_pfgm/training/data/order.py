"""The order of a run: which image is at which position, and the random numbers that belong to it.

A run goes through one endless stream of positions p = 0, 1, 2, ...: position p holds an image of epoch ⌊p / K⌋ of the K
images, each epoch in an order of its own. Step s perturbs the positions from s·G to (s + 1)·G, where G is the number of
images of a step over all processes and accumulated parts. Order and random numbers are functions of the seed and the
position alone. Hence a run is the same on any number of processes and with any accumulation that make the same G, no
image comes twice in an epoch, no two processes share random numbers, and a run goes on exactly where it was by nothing
but its step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class BatchPlan:
    """Who takes which positions of a step.

    Attributes:
        batch_size: images of one process and one accumulated part.
        parts: parts whose gradients are accumulated in a step.
        processes: number of processes.
        process: which of them this is, from 0.
    """

    batch_size: int
    parts: int = 1
    processes: int = 1
    process: int = 0

    @property
    def images_per_step(self) -> int:
        """G, over all processes and parts."""
        return self.batch_size * self.parts * self.processes

    def first(self, step: int, part: int) -> int:
        """Position of the first image of this process's batch, in a part (from 0) of a step (from 0)."""
        return ((step * self.parts + part) * self.processes + self.process) * self.batch_size


class ImageOrder:
    """Which image is at which position.

    Args:
        length: K, number of images.
        seed: of the run.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed
        self._orders: dict[int, torch.Tensor] = {}

    def keys(self, first: int, count: int) -> list[int]:
        """Keys of the positions from `first` on: epoch · K + index of the image."""
        positions = range(first, first + count)
        found = [position // self.length * self.length + self._image(position) for position in positions]
        for epoch in [epoch for epoch in self._orders if epoch < first // self.length]:
            del self._orders[epoch]
        return found

    def _image(self, position: int) -> int:
        epoch, offset = divmod(position, self.length)
        if epoch not in self._orders:
            generator = torch.Generator().manual_seed(splitmix64(self.seed, epoch))
            self._orders[epoch] = torch.randperm(self.length, generator=generator)
        return int(self._orders[epoch][offset])


class PlannedBatches(torch.utils.data.Sampler[list[int]]):
    """The keys of this process's batches from a step on, for ever; a loader's `batch_sampler`."""

    def __init__(self, order: ImageOrder, plan: BatchPlan, first_step: int = 0) -> None:
        self.order, self.plan, self.first_step = order, plan, first_step

    def __iter__(self) -> Iterator[list[int]]:
        step = self.first_step
        while True:
            for part in range(self.plan.parts):
                yield self.order.keys(self.plan.first(step, part), self.plan.batch_size)
            step += 1


def splitmix64(seed: int, number: int) -> int:
    """A seed of 64 bits from a seed and a number, by SplitMix64, so that neighbours have nothing in common."""
    mask = 2**64 - 1
    value = (seed * 0xD1342543DE82EF95 + (number + 1) * 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def position_generators(seed: int, first: int, count: int) -> list[torch.Generator]:
    """One CPU generator for each of the positions from `first` on; diffusers draws from it for any device.

    A CPU generator uses 32 bits of its seed, so consecutive positions get consecutive ones: unlike hashes, no two of
    2³² positions collide.
    """
    start = splitmix64(seed, -1)
    return [torch.Generator().manual_seed((start + position) % 2**32) for position in range(first, first + count)]
