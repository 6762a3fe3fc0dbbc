"""Images of the MNIST models that come with the package, and their features."""

from __future__ import annotations

from typing import Any

import torch

from ...hub.pretrained import pretrained_model
from ...metrics import FeatureStatistics, frechet_distance, load_feature_network
from ...metrics.feature_statistics import mnist_statistics
from ...pipelines import PFGMPipeline
from ...schedulers import PoissonFlowScheduler


def load_model(name: str, **options: Any) -> PFGMPipeline:
    """Return a model that comes with the package, without progress bars. The options replace those of its scheduler."""
    pipe = PFGMPipeline.from_pretrained(pretrained_model(name))
    pipe.scheduler = PoissonFlowScheduler.from_config(pipe.scheduler.config, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw_digits(pipe: PFGMPipeline, count: int, seed: int, num_inference_steps: int) -> torch.Tensor:
    """Draw images (count, 1, 28, 28) in [-1, 1]. Image i has the label i modulo 10."""
    scale = pipe.scheduler.config.consistency_guidance or 1.0  # a consistency model accepts its own guidance only
    output = pipe(
        count,
        num_inference_steps,
        torch.Generator().manual_seed(seed),
        class_labels=torch.arange(count) % 10,
        guidance_scale=scale,
        output_type="pt",
    )
    return output.images * 2 - 1


@torch.no_grad()
def mnist_distance(images: torch.Tensor) -> float:
    """Return the Fréchet distance of images to MNIST's test images, in the features of the package's classifier."""
    features, _ = load_feature_network("mnist")(images)
    return frechet_distance(FeatureStatistics.of_features(features, "mnist"), mnist_statistics())


@torch.no_grad()
def label_agreement(images: torch.Tensor) -> float:
    """Return the share of images from `draw_digits` that the package's classifier assigns to their label."""
    _, logits = load_feature_network("mnist")(images)
    return (logits.argmax(1) == torch.arange(len(images)) % 10).double().mean().item()
