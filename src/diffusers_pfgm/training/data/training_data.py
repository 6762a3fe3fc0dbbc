"""The images that train_pfgm.py's options name: to train on, to measure on, and as charges."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from ...physics import Charges, ClassCharges
from ..run.agreement import broadcast_from_main
from ..run.validation import MOST_IMAGES, Validation, split_indices
from .field_batches import Batch, choose_charges
from .images import ImageTensors, RandomCropError
from .labels import LabelledImages, read_class_labels
from .order import BatchPlan, ImageOrder, PlannedBatches
from .source import load_image_dataset
from .streams import StreamedImages

NAMED = 10  # broken images that are told by name


class TrainingData:
    """A data set as a run reads it.

    Args:
        args: of the command line.
        seed: of the run: of the images held out, of order, crops and flips.
        accelerator: of the run.

    Attributes:
        images: to train on.
        labels: (count,), of their classes; None without classes.
        count: how many there are; 0 for a stream, which does not tell.
        id2label: names of the classes by number; None without classes.
    """

    def __init__(self, args: argparse.Namespace, seed: int, accelerator: Accelerator) -> None:
        self.args, self.seed, self.accelerator = args, seed, accelerator
        self.mode = args.image_mode
        source = args.dataset_name, args.dataset_config_name, args.train_data_dir, args.cache_dir
        dataset: Any = load_image_dataset(*source, args.streaming)
        self._held_out = self.labels = None
        if args.streaming:
            self.images: Any = self._stream(dataset)
            self.count, self.id2label = 0, self.images.id2label
            return
        if args.broken_images == "skip":
            dataset = self._without_broken(dataset)
        labels = self.id2label = None
        if args.class_conditional:
            labels, self.id2label = read_class_labels(dataset, args.label_column)
        train, held_out = list(range(len(dataset))), list[int]()
        if args.validation_split:
            train, held_out = split_indices(len(dataset), args.validation_split, seed)
        self.images = self._tensors(dataset.select(train), args.center_crop, args.random_flip)
        self.mode = self.images.mode  # of the images held out too
        self.labels, self.count = None if labels is None else labels[train], len(train)
        self._held_out = dataset.select(held_out[:MOST_IMAGES]) if held_out else None
        self._held_out_labels = None if labels is None else labels[held_out[:MOST_IMAGES]]

    @property
    def stream_length(self) -> int | None:
        """Images of a stream, once they were all read; None until then, and without a stream."""
        return self.images.length if self.args.streaming else None

    def batches(self, plan: BatchPlan, first_step: int, stopped: Callable[[], bool] = lambda: False) -> Iterator[Batch]:
        """This process's batches from a step on, for ever, or until `stopped` while a stream reads up to that step."""
        if self.args.streaming:
            batches: Iterator[Batch] = self.images.batches(plan, first_step, stopped)
            return batches
        loader = torch.utils.data.DataLoader(
            LabelledImages(self.images, self.labels),
            batch_sampler=PlannedBatches(ImageOrder(self.count, self.seed), plan, first_step),
            collate_fn=tuple,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
            generator=torch.Generator(),  # it would draw from the global state, which a run that goes on restores
        )
        return iter(loader)

    def charges(self, wanted: str) -> tuple[str, Charges | ClassCharges | None]:
        """Whose field is learned, and all images as charges where it is theirs. To be called by every process.

        The main process decides: each has another amount of free memory, and processes that disagree would wait for
        each other for ever.
        """
        args, device, processes = self.args, self.accelerator.device, self.accelerator.num_processes
        if args.streaming and wanted == "dataset":
            raise ValueError("`--charges dataset` needs all images, not a stream. Leave out `--streaming`.")
        count = self.count * (1 + args.random_flip)  # mirror images are charges too
        dim = self.images.channels * args.resolution**2
        pixels, chosen = None, broadcast_from_main(choose_charges(wanted, count or sys.maxsize, dim, device, processes))
        if chosen == "dataset":
            try:
                pixels = self.images.plain().to(device)
            except RandomCropError:
                if wanted == "dataset":
                    raise
                chosen = "gathered" if processes > 1 else "local"
        chosen = broadcast_from_main(chosen)
        if chosen != "dataset":
            self.accelerator.print(f"The field of a step is that of {args.field_batch_size:,} images, {chosen}.")
            return chosen, None
        pixels = self.images.plain().to(device) if pixels is None else pixels
        labels = self.labels
        if args.random_flip:
            pixels = torch.cat([pixels, pixels.flip(-1)])
            labels = None if labels is None else labels.repeat(2)
        charges = Charges(pixels) if labels is None else ClassCharges(pixels, labels)
        self.accelerator.print(
            f"The field of a step is that of all {count:,} images, kept in {charges.dtype} and "
            f"{count * dim * charges.dtype.itemsize / 1e6:,.0f} MB."
        )
        return chosen, charges

    def validation(self) -> Validation | None:
        """What measures distances to the images held out; None without `--validation_split`."""
        if self._held_out is None:
            return None
        held_out = self._tensors(self._held_out, center_crop=True).plain()
        train = self.images.__getitems__(range(min(self.count, len(held_out))))
        return Validation(held_out, train, self._held_out_labels)

    def _tensors(self, dataset: datasets.Dataset, center_crop: bool, random_flip: bool = False) -> ImageTensors:
        args = self.args
        return ImageTensors(
            dataset,
            args.resolution,
            args.image_column,
            self.mode,
            center_crop,
            random_flip,
            cache=args.dataloader_num_workers == 0,
            seed=self.seed,
        )

    def _stream(self, dataset: datasets.IterableDataset) -> StreamedImages:
        args, label_column = self.args, self.args.label_column
        if args.class_conditional and label_column is None:
            found = [name for name, kind in (dataset.features or {}).items() if isinstance(kind, datasets.ClassLabel)]
            label_column = found[0] if found else "label"
        return StreamedImages(
            dataset,
            args.resolution,
            args.image_column,
            args.image_mode,
            args.center_crop,
            args.random_flip,
            self.seed,
            label_column,
            skip_broken=args.broken_images == "skip",
        )

    def _without_broken(self, dataset: datasets.Dataset) -> datasets.Dataset:
        """The images that can be read. Each process tries its share of them."""
        args, accelerator = self.args, self.accelerator
        images = ImageTensors(dataset, args.resolution, args.image_column, args.image_mode or "RGB", cache=False)
        own = range(accelerator.process_index, len(dataset), accelerator.num_processes)
        shown = tqdm(own, desc="Looking for broken images", disable=not accelerator.is_main_process, leave=False)
        broken = dict(sorted(gather_object([*images.broken(shown).items()])))
        if broken:
            reasons = "\n  ".join([*broken.values()][:NAMED])
            more = f"\n  and {len(broken) - NAMED:,} more" if len(broken) > NAMED else ""
            if len(broken) == len(dataset):
                raise ValueError(f"None of the {len(dataset):,} images can be read:\n  {reasons}{more}")
            accelerator.print(f"{len(broken):,} of {len(dataset):,} images are left out:\n  {reasons}{more}")
        return dataset.select([index for index in range(len(dataset)) if index not in broken])
