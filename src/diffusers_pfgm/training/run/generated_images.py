"""Images that a model generates for its evaluation, on any number of processes.

They are kept in files, so that an evaluation that was killed continues with the missing images.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ...pipelines.pipeline_pfgm import PFGMPipeline
from ...utils.atomic_file import atomic_file, partial_path
from ..data.order import position_generators
from .settings import differences

SETTINGS = "settings.json"


class GeneratedImages:
    """A folder of generated images, with one file for each batch.

    With fixed steps image i depends only on the seed and on i, whatever the batch size and the number of processes are.
    With the adaptive solver it also depends on the other images of its batch, since all of them share the steps; the
    batches are the same on any number of processes.

    Args:
        folder: The folder. It is created if it does not exist.
        settings: All values on which the images depend, in types that JSON can represent. They are written into the
            folder. `generate` reads the options `num_images`, `batch_size`, `num_inference_steps`, `tolerance`,
            `guidance_scale` and `seed` of evaluate_pfgm.py.

    Raises:
        ValueError: if the folder has images of other settings, or other files.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.settings = settings
        folder.mkdir(parents=True, exist_ok=True)
        note = folder / SETTINGS
        if note.exists():
            differing = differences(json.loads(note.read_text()), json.loads(json.dumps(settings)))
            if not differing:
                return
            if any(folder.glob("*.npz")):
                raise ValueError(
                    f"`--output_dir` {str(folder.parent)!r} has images of other settings: {'; '.join(differing)}. Pass "
                    "these again, or name another folder."
                )
        elif any(path != partial_path(note) for path in folder.iterdir()):
            raise ValueError(f"`--output_dir` has a folder {str(folder)!r} of other files. Name another folder.")
        with atomic_file(note) as partial:
            partial.write_text(json.dumps(settings))

    def generate(self, pipeline: PFGMPipeline, accelerator: Accelerator) -> None:
        """Generate the batches that are missing. Each process generates some of them.

        Every process must call this. It does not wait for the other processes. Image i of a model with classes has the
        class i modulo the number of classes.

        Args:
            pipeline: The pipeline, on the device of this process.
            accelerator: accelerate's `Accelerator` of the run.
        """
        settings = self.settings
        classes = pipeline.config.id2label
        firsts = self._firsts()[accelerator.process_index :: accelerator.num_processes]
        for first in tqdm(firsts, desc="Images", unit="batch", disable=not accelerator.is_main_process):
            path = self._path(first)
            if path.exists():
                continue
            count = min(settings["batch_size"], settings["num_images"] - first)
            labels = None if classes is None else torch.arange(first, first + count) % len(classes)
            output = pipeline(
                count,
                settings["num_inference_steps"],
                position_generators(settings["seed"], first, count),
                output_type="np",
                class_labels=labels,
                guidance_scale=settings["guidance_scale"],
                tolerance=settings["tolerance"],
            )
            pixels = (np.asarray(output.images) * 255).round().astype(np.uint8)
            with atomic_file(path) as partial, partial.open("wb") as file:
                np.savez(file, pixels=pixels, nfe=output.nfe)

    def load(self) -> tuple[torch.Tensor, int]:
        """Return the images (num_images, C, H, W) as uint8, and the largest number of network calls of a batch."""
        pixels, calls = [], []
        for first in self._firsts():
            with np.load(self._path(first), allow_pickle=False) as file:
                pixels.append(file["pixels"])
                calls.append(int(file["nfe"]))
        return torch.from_numpy(np.concatenate(pixels)).permute(0, 3, 1, 2).contiguous(), max(calls)

    def remove(self) -> None:
        """Remove the folder.

        The settings are removed after the images: the next evaluation would refuse images without settings, which a
        kill could leave, as files of another origin.
        """
        for path in self.folder.glob("*.npz"):
            path.unlink()
        shutil.rmtree(self.folder)

    def _firsts(self) -> range:
        """The indices of the first image of each batch."""
        return range(0, self.settings["num_images"], self.settings["batch_size"])

    def _path(self, first: int) -> Path:
        return self.folder / f"{first:07d}.npz"
