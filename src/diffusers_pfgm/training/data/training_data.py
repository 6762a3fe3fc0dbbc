"""The data set that the options of train_pfgm.py select: training images, held-out images and charges."""

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
from ..run.broadcast import broadcast_from_main
from ..run.stopping import ignore_first_signals
from ..run.validation import Validation, split_indices
from .field_batches import Batch, choose_charges
from .images import ImageTensors, RandomCropError
from .labels import LabelledImages, read_class_labels
from .order import BatchPlan, ImageOrder, PlannedBatches, evenly_spaced
from .source import load_image_dataset
from .streams import StreamedImages

MAX_NAMED_IMAGES = 10  # broken images that a message lists
MAX_VALIDATION_IMAGES = 1000  # images that samples are compared with; the distance depends on their number


class TrainingData:
    """The data set of a training run.

    Args:
        args: The options of train_pfgm.py.
        seed: The seed of the run, which determines the held-out images, the order, crops and flips.
        accelerator: accelerate's `Accelerator` of the run.

    Attributes:
        images: The training images, `ImageTensors` or `StreamedImages`.
        labels: Class labels (count,) of the training images; None without classes or for a stream.
        count: Number of training images; 0 for a stream, whose length is not known.
        id2label: Names of the classes by label; None without classes.
    """

    def __init__(self, args: argparse.Namespace, seed: int, accelerator: Accelerator) -> None:
        self.args = args
        self.seed = seed
        self.accelerator = accelerator
        self.mode = args.image_mode
        source = args.dataset_name, args.dataset_config_name, args.train_data_dir, args.cache_dir
        dataset: Any = load_image_dataset(*source, args.streaming)
        self._held_out = self.labels = None
        if args.streaming:
            self.images: Any = self._stream(dataset)
            self.count = 0
            self.id2label = self.images.id2label
            return
        if args.broken_images == "skip":
            dataset = self._without_broken(dataset)
        labels = self.id2label = None
        if args.class_conditional:
            labels, self.id2label = read_class_labels(dataset, args.label_column)
        train = list(range(len(dataset)))
        held_out: list[int] = []
        if args.validation_split:
            train, held_out = split_indices(len(dataset), args.validation_split, seed)
            # A data set may be sorted by class, so that its first images would be of few classes.
            held_out = [held_out[row] for row in evenly_spaced(len(held_out), MAX_VALIDATION_IMAGES).tolist()]
        self.images = self._tensors(dataset.select(train), args.center_crop, args.random_flip)
        self.mode = self.images.mode  # the held-out images are converted to the same mode
        self.labels = None if labels is None else labels[train]
        self.count = len(train)
        self._held_out = dataset.select(held_out) if held_out else None
        self._held_out_labels = None if labels is None else labels[held_out]

    @property
    def stream_length(self) -> int | None:
        """Number of images of a stream; None until a whole epoch was read, and without a stream."""
        return self.images.length if self.args.streaming else None

    def batches(self, plan: BatchPlan, first_step: int, stopped: Callable[[], bool] = lambda: False) -> Iterator[Batch]:
        """Return an iterator without end over this process's batches: images (B, C, R, R) and labels (B,).

        Args:
            plan: The division of a step's positions.
            first_step: The first step, counted from 0.
            stopped: Called while a stream skips the images of earlier steps. If it returns True, the iterator ends.
        """
        if self.args.streaming:
            batches: Iterator[Batch] = self.images.batches(plan, first_step, stopped)
            return batches
        loader = torch.utils.data.DataLoader(
            LabelledImages(self.images, self.labels),
            batch_sampler=PlannedBatches(ImageOrder(self.count, self.seed), plan, first_step),
            collate_fn=tuple,
            num_workers=self.args.dataloader_num_workers,
            worker_init_fn=ignore_first_signals,
            pin_memory=self.accelerator.device.type == "cuda",
            # Without a generator the loader would draw from the global random state, which a resumed run restores.
            generator=torch.Generator(),
        )
        return iter(loader)

    def charges(self, saved: str | None) -> tuple[str | None, Charges | ClassCharges | None]:
        """Choose the charges of the run. Every process must call this.

        The main process decides for all: the processes may have different amounts of free memory, and a run with
        different choices would hang.

        Args:
            saved: The charges of the checkpoint that the run resumes from, which "auto" keeps; None for a new run.

        Returns:
            "local", "gathered" or "dataset", or None without charges; and all images as charges with "dataset".

        Raises:
            ValueError: if `--charges` is "dataset" and the data are a stream or have images that are cropped at random.
        """
        args = self.args
        option = (saved or "auto") if args.charges == "auto" else args.charges
        if option == "none":
            return None, None
        device = self.accelerator.device
        processes = self.accelerator.num_processes
        if args.streaming and option == "dataset":
            raise ValueError("`--charges dataset` needs all images, not a stream. Leave out `--streaming`.")
        count = self.count * (1 + args.random_flip)  # mirror images are charges too
        dim = self.images.channels * args.resolution**2
        choice = broadcast_from_main(choose_charges(option, count or sys.maxsize, dim, device, processes))
        if choice == "dataset":
            try:
                pixels = self.images.plain().to(device)
            except RandomCropError:
                if option == "dataset":
                    raise
                choice = "gathered" if processes > 1 else "local"
        if choice != "dataset":
            self.accelerator.print(
                f"The field of a step is computed from {args.field_batch_size:,} images (--charges {choice})."
            )
            return choice, None
        labels = self.labels
        if args.random_flip:
            pixels = torch.cat([pixels, pixels.flip(-1)])
            labels = None if labels is None else labels.repeat(2)
        charges = Charges(pixels) if labels is None else ClassCharges(pixels, labels)
        self.accelerator.print(
            f"The field of a step is computed from all {count:,} images, kept as {charges.dtype} in "
            f"{count * dim * charges.dtype.itemsize / 1e6:,.0f} MB."
        )
        return choice, charges

    def validation(self) -> Validation | None:
        """Return the `Validation` on the held-out images; None without `--validation_split`."""
        if self._held_out is None:
            return None
        held_out = self._tensors(self._held_out, center_crop=True).plain()
        rows = evenly_spaced(self.count, len(held_out))
        return Validation(held_out, self.images.__getitems__(rows.tolist()), self._held_out_labels)

    def reference_images(self, validation: Validation | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return at most 1,000 images (K, C, R, R) to compare samples with, and their labels (K,) or None.

        They are the held-out images of `validation`; if it is None, training images that are evenly spaced in the data
        set, or the first of a stream.
        """
        if validation is not None:
            return validation.held_out, validation.labels
        if self.args.streaming:
            images, labels = next(self.batches(BatchPlan(MAX_VALIDATION_IMAGES, 1, 1, 0), 0))
            return images, labels if self.args.class_conditional else None
        rows = evenly_spaced(self.count, MAX_VALIDATION_IMAGES)
        return self.images.__getitems__(rows.tolist()), None if self.labels is None else self.labels[rows]

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
        args = self.args
        label_column = args.label_column
        if args.class_conditional and label_column is None:
            features = dataset.features or {}
            names = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
            label_column = names[0] if names else "label"
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
        """Return the data set without the images that cannot be read. Each process tries its share of the images."""
        args = self.args
        accelerator = self.accelerator
        images = ImageTensors(dataset, args.resolution, args.image_column, args.image_mode or "RGB", cache=False)
        own = range(accelerator.process_index, len(dataset), accelerator.num_processes)
        progress_bar = tqdm(own, desc="Looking for broken images", disable=not accelerator.is_main_process, leave=False)
        broken = dict(sorted(gather_object([*images.broken(progress_bar).items()])))
        if broken:
            reasons = "\n  ".join([*broken.values()][:MAX_NAMED_IMAGES])
            more = f"\n  and {len(broken) - MAX_NAMED_IMAGES:,} more" if len(broken) > MAX_NAMED_IMAGES else ""
            if len(broken) == len(dataset):
                raise ValueError(f"None of the {len(dataset):,} images can be read:\n  {reasons}{more}")
            accelerator.print(f"{len(broken):,} of {len(dataset):,} images are left out:\n  {reasons}{more}")
        return dataset.select([index for index in range(len(dataset)) if index not in broken])
