"""Validation: the distance of samples to held-out images, and the model with the smallest distance."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import torch

from ...metrics.sliced_wasserstein import sliced_wasserstein
from ...pipelines.pipeline_pfgm import PFGMPipeline
from .folders import recover_folder, replace_folder
from .run_files import BEST_NOTE
from .samples import draw_samples


def split_indices(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Split images at random into training and held-out images, and return the sorted indices of both.

    Args:
        count: Number of images.
        share: Fraction of the images to hold out.
        seed: The seed of the split.

    Raises:
        ValueError: if one of the two sets would be empty.
    """
    held_out = round(count * share)
    if not 0 < held_out < count:
        raise ValueError(
            f"`--validation_split` {share} of {count} images holds out {held_out}. At least one image must be held "
            "out, and at least one must remain for training."
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return sorted(order[held_out:].tolist()), sorted(order[:held_out].tolist())


class Validation:
    """Sliced Wasserstein distance of samples to held-out images.

    Args:
        held_out: Held-out images (K, C, R, R) in [-1, 1].
        train: Training images (at least K, C, R, R) in [-1, 1].
        labels: Class labels (K,) of the held-out images, which the samples then have too; None without classes.

    Attributes:
        floor: The distance of as many training images to the held-out images, which perfect samples would have.
    """

    def __init__(self, held_out: torch.Tensor, train: torch.Tensor, labels: torch.Tensor | None = None) -> None:
        self.held_out = held_out
        self.labels = labels
        self.floor = sliced_wasserstein(train[: len(held_out)], held_out)

    def distance(self, pipeline: PFGMPipeline, num_inference_steps: int, batch_size: int = 256) -> float:
        """Draw as many samples as held-out images, from fixed seeds, and return their distance in data units.

        Args:
            pipeline: The pipeline to draw from.
            num_inference_steps: Number of network calls per sample.
            batch_size: Number of samples drawn at a time. The distance does not depend on it.
        """
        samples = draw_samples(pipeline, len(self.held_out), num_inference_steps, self.labels, batch_size=batch_size)
        return sliced_wasserstein(samples * 2 - 1, self.held_out)


class BestModel:
    """Keeps the pipeline with the smallest validation distance in a folder. A resumed run continues with this folder.

    Args:
        folder: The folder of the pipeline. Its file `validation.json` records the step and the distance.

    Attributes:
        distance: The smallest distance so far; infinity if the folder holds no pipeline.

    Raises:
        ValueError: if the file exists and cannot be read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()  # a link to a folder on another disk is followed, not replaced
        recover_folder(self.folder)
        note = self.folder / BEST_NOTE
        try:
            self.distance = float(json.loads(note.read_text())["distance"]) if note.exists() else math.inf
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{note} does not contain the distance of the best model so far: {error}. Repair the file, or move the "
                "folder away to start with the next model that is validated."
            ) from error

    def offer(self, pipeline: PFGMPipeline, distance: float, step: int) -> bool:
        """Save the pipeline if its distance is the smallest so far, and return whether it was saved.

        The pipeline and its note are written into a hidden folder, which then replaces the previous one.
        """
        if not distance < self.distance:
            return False
        partial = self.folder.with_name(f".{self.folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        pipeline.save_pretrained(partial)
        (partial / BEST_NOTE).write_text(json.dumps({"step": step, "distance": distance}))
        replace_folder(partial, self.folder)
        self.distance = distance
        return True
