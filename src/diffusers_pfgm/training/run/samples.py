"""Grids of samples on the way, from a fixed seed, so that they show the same starts at every step."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

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
) -> torch.Tensor:
    """Samples (count, C, H, W) in [0, 1], each from a seed of its own, the same in any batch.

    Args:
        pipeline: of the network.
        count: number of samples.
        num_inference_steps: network calls.
        class_labels: (count,); by default the classes in turn, for a network that knows some.
        guidance_scale: of classifier-free guidance to the classes.
        batch_size: samples at a time.
    """
    if class_labels is None and pipeline.config.id2label is not None:
        class_labels = torch.arange(count) % len(pipeline.config.id2label)
    found = []
    for first in range(0, count, batch_size):
        chosen = slice(first, min(first + batch_size, count))
        generators = [torch.Generator().manual_seed(seed) for seed in range(chosen.start, chosen.stop)]
        labels = None if class_labels is None else class_labels[chosen]
        found.append(
            pipeline(
                len(generators),
                num_inference_steps,
                generators,
                output_type="pt",
                class_labels=labels,
                guidance_scale=guidance_scale,
            ).images.cpu()
        )
    return torch.cat(found)


def save_samples(
    pipeline: PFGMPipeline, folder: str | Path, step: int, count: int, num_inference_steps: int
) -> Image.Image:
    """A grid of samples, also as `samples/step-<step>.png` in `folder`, which is whole or not there."""
    samples = draw_samples(pipeline, count, num_inference_steps)
    grid = image_grid(samples, scale=max(1, 64 // samples.shape[-1]))
    path = Path(folder) / "samples" / f"step-{step:06d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        grid.save(partial, format="png")
    return grid
