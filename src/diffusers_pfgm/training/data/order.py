"""The order of the images in a run, and the random numbers of each image.

A run is an endless sequence of positions p = 0, 1, 2, ... With K images, position p holds an image of epoch ⌊p / K⌋,
and each epoch is a new permutation of the images. Step s trains on the positions s·G, ..., (s + 1)·G - 1, where G is
the number of images of a step over all processes and micro-batches: with gradient accumulation each process divides its
images of a step into several micro-batches. Order and random numbers depend only on the seed and the position. Hence

- a run is the same for any number of processes and micro-batches with the same G,
- no image occurs twice in an epoch,
- no two processes share random numbers,
- resuming needs only the step count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class BatchPlan:
    """The division of a step's positions among processes and micro-batches.

    Attributes:
        batch_size: Number of images of one process in one micro-batch.
        parts: Number of micro-batches of a step, whose gradients are accumulated.
        processes: Number of processes.
        process: Index of this process, counted from 0.
    """

    batch_size: int
    parts: int = 1
    processes: int = 1
    process: int = 0

    @property
    def images_per_step(self) -> int:
        """G, the number of images of a step over all processes and micro-batches."""
        return self.batch_size * self.parts * self.processes

    def first(self, step: int, part: int) -> int:
        """Position of the first image in a micro-batch of this process. Steps and micro-batches are counted from 0."""
        return ((step * self.parts + part) * self.processes + self.process) * self.batch_size


class ImageOrder:
    """The image at each position.

    Args:
        length: Number of images K.
        seed: The seed of the run.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self._orders: dict[int, torch.Tensor] = {}

    def keys(self, first: int, count: int) -> list[int]:
        """Keys, epoch · K + index of the image, of `count` positions from `first` on."""
        positions = range(first, first + count)
        keys = [position // self.length * self.length + self._image(position) for position in positions]
        for epoch in [epoch for epoch in self._orders if epoch < first // self.length]:
            del self._orders[epoch]
        return keys

    def _image(self, position: int) -> int:
        epoch, offset = divmod(position, self.length)
        if epoch not in self._orders:
            generator = torch.Generator().manual_seed(splitmix64(self.seed, epoch))
            self._orders[epoch] = torch.randperm(self.length, generator=generator)
        return int(self._orders[epoch][offset])


class PlannedBatches(torch.utils.data.Sampler[list[int]]):
    """An endless `batch_sampler` that yields the keys of this process's batches.

    Args:
        order: The order of the images.
        plan: The division of a step's positions.
        first_step: The first step to yield, counted from 0.
    """

    def __init__(self, order: ImageOrder, plan: BatchPlan, first_step: int = 0) -> None:
        self.order = order
        self.plan = plan
        self.first_step = first_step

    def __iter__(self) -> Iterator[list[int]]:
        step = self.first_step
        while True:
            for part in range(self.plan.parts):
                yield self.order.keys(self.plan.first(step, part), self.plan.batch_size)
            step += 1


def splitmix64(seed: int, number: int) -> int:
    """Mix a seed and a number into a 64-bit seed by SplitMix64, so that consecutive numbers give unrelated seeds."""
    mask = 2**64 - 1
    value = (seed * 0xD1342543DE82EF95 + (number + 1) * 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def position_generators(seed: int, first: int, count: int) -> list[torch.Generator]:
    """Return one generator for each of `count` positions from `first` on.

    The generators are on the CPU; diffusers draws from them for any device. A CPU generator uses only 32 bits of its
    seed. Consecutive positions therefore get consecutive seeds, which unlike hashes do not collide within 2³²
    positions.
    """
    start = splitmix64(seed, -1)
    return [torch.Generator().manual_seed((start + position) % 2**32) for position in range(first, first + count)]


def evenly_spaced(length: int, count: int) -> torch.Tensor:
    """Indices that are evenly spaced from 0 to `length` - 1: `count` of them, or all if there are fewer."""
    return torch.linspace(0, length - 1, min(count, length), dtype=torch.float64).round().long()
