"""The distance of samples to images that training never saw, and the model for which it was smallest."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import torch

from ...metrics.sliced_wasserstein import sliced_wasserstein
from ...pipelines.pipeline_pfgm import PFGMPipeline
from .folders import recover_folder, replace_folder
from .run_files import NOTE
from .samples import draw_samples

MOST_IMAGES = 1000  # that are compared; the distance of finite sets depends on it


def split_indices(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the images to train on and of those held out, each in their order.

    Raises:
        ValueError: if one of both would be empty.
    """
    held_out = round(count * share)
    if not 0 < held_out < count:
        raise ValueError(
            f"`--validation_split` {share} of {count} images holds {held_out} out. At least one must be held out and "
            "one left to train on."
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return sorted(order[held_out:].tolist()), sorted(order[:held_out].tolist())


class Validation:
    """Sliced Wasserstein distance of samples to held-out images.

    Args:
        held_out: (K, C, R, R) in [-1, 1]; of more than 1,000 the first ones count.
        train: images that were trained on, as many or more, for the distance that perfect samples would have.
        labels: (K,), classes of the held-out images, of which samples are then drawn.
    """

    def __init__(self, held_out: torch.Tensor, train: torch.Tensor, labels: torch.Tensor | None = None) -> None:
        count = min(len(held_out), MOST_IMAGES)
        self.held_out, self.labels = held_out[:count], None if labels is None else labels[:count]
        self.floor = sliced_wasserstein(train[:count], self.held_out)

    def distance(self, pipeline: PFGMPipeline, num_inference_steps: int, batch_size: int = 256) -> float:
        """Distance of as many samples from fixed seeds, in data units; compare with `floor`, that of real images.

        Args:
            pipeline: to draw from.
            num_inference_steps: network calls.
            batch_size: samples that are drawn at a time; the distance does not depend on it.
        """
        samples = draw_samples(pipeline, len(self.held_out), num_inference_steps, self.labels, batch_size=batch_size)
        return sliced_wasserstein(samples * 2 - 1, self.held_out)


class BestModel:
    """The pipeline of the smallest distance so far, in a folder that a run which goes on reads again.

    Args:
        folder: of the pipeline, with `validation.json` that tells its step and distance.

    Raises:
        ValueError: if there is such a file and it cannot be read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()  # a link to another disk stays one
        recover_folder(self.folder)
        note = self.folder / NOTE
        try:
            self.distance = float(json.loads(note.read_text())["distance"]) if note.exists() else math.inf
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{note} does not tell the distance of the best model so far: {error}. Repair it, or move the folder "
                "away to begin with the next model that is measured."
            ) from error

    def offer(self, pipeline: PFGMPipeline, distance: float, step: int) -> bool:
        """Keep the pipeline if it is the best; whether it was.

        It is written aside, with its note, and then exchanged for the one before.
        """
        if not distance < self.distance:
            return False
        partial = self.folder.with_name(f".{self.folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        pipeline.save_pretrained(partial)
        (partial / NOTE).write_text(json.dumps({"step": step, "distance": distance}))
        replace_folder(partial, self.folder)
        self.distance = distance
        return True
