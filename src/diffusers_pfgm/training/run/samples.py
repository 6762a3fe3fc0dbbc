"""Sample grids during training. The seeds are fixed, so that all grids of a run start from the same noise."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from ...pipelines.calls import Callback
from ...pipelines.pipeline_pfgm import PFGMPipeline
from ...plots.image_grid import image_grid
from ...utils.atomic_file import atomic_file


def draw_samples(
    pipeline: PFGMPipeline,
    count: int,
    num_inference_steps: int,
    class_labels: torch.Tensor | None = None,
    guidance_scale: float = 1.0,
    batch_size: int = 256,
    callback_on_step_end: Callback | None = None,
) -> torch.Tensor:
    """Draw samples (count, C, H, W) in [0, 1].

    Sample i is drawn from the seed i, so it does not depend on the batch size, unless a callback depends on the batch.

    Args:
        pipeline: The pipeline to draw from.
        count: Number of samples.
        num_inference_steps: Number of network calls per sample.
        class_labels: Class labels (count,). By default a class-conditional network gets all classes in turn.
        guidance_scale: Scale of classifier-free guidance; 1 means no guidance.
        batch_size: Number of samples drawn at a time.
        callback_on_step_end: Called after each step, as by the pipeline.
    """
    if class_labels is None and pipeline.config.id2label is not None:
        class_labels = torch.arange(count) % len(pipeline.config.id2label)
    images = []
    for first in range(0, count, batch_size):
        batch = slice(first, min(first + batch_size, count))
        generators = [torch.Generator().manual_seed(seed) for seed in range(batch.start, batch.stop)]
        labels = None if class_labels is None else class_labels[batch]
        images.append(
            pipeline(
                len(generators),
                num_inference_steps,
                generators,
                output_type="pt",
                class_labels=labels,
                guidance_scale=guidance_scale,
                callback_on_step_end=callback_on_step_end,
            ).images.cpu()
        )
    return torch.cat(images)


def save_samples(pipeline: PFGMPipeline, path: Path, count: int, num_inference_steps: int) -> Image.Image:
    """Draw a grid of samples, write it to a PNG file, and return it."""
    samples = draw_samples(pipeline, count, num_inference_steps)
    grid = image_grid(samples, scale=max(1, 64 // samples.shape[-1]))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        grid.save(partial, format="png")
    return grid
