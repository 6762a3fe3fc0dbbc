"""The images that train_pfgm.py's options name: to train on, to measure on, and as charges."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from accelerate import Accelerator

from diffusers_pfgm import Charges
from diffusers_pfgm.physics.class_charges import ClassCharges
from diffusers_pfgm.training.broken_images import without_broken_images
from diffusers_pfgm.training.field_batch import Batch, choose_charges
from diffusers_pfgm.training.image_data import ImageTensors, load_image_dataset
from diffusers_pfgm.training.image_labels import LabelledImages, read_class_labels
from diffusers_pfgm.training.stream import BatchPlan, ImageOrder, PlannedBatches
from diffusers_pfgm.training.streamed_images import StreamedImages
from diffusers_pfgm.training.validation import split_dataset


class TrainingData:
    """A data set as a run reads it.

    Args:
        args: of the command line.
        seed: of the run, for the split that is held out and for crops and flips.

    Attributes:
        count: images to train on; 0 for a stream, which tells no number.
        channels: of an image.
        id2label: names of the classes by number; None without classes.
        held_out: images and labels to measure on; None without `--validation_split`.
    """

    def __init__(self, args: argparse.Namespace, seed: int) -> None:
        self.args, self.seed = args, seed
        self.held_out: Batch | None = None
        self.labels: torch.Tensor | None = None
        self.id2label: dict[int, str] | None = None
        dataset = load_image_dataset(
            args.dataset_name, args.dataset_config_name, args.train_data_dir, args.cache_dir, streaming=args.streaming
        )
