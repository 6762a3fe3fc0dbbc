"""The noise levels at which a consistency model is called again, fitted by the distance of its samples to images."""

from __future__ import annotations

import torch

from ...metrics.sliced_wasserstein import sliced_wasserstein
from ...pipelines import PFGMPipeline
from ...schedulers import PoissonFlowScheduler
from .samples import draw_samples

CANDIDATES = (0.3, 0.5, 0.8, 1.3, 2.0, 3.2, 5.0)  # relative to the second level before the fit, which is about σ_d


def fit_levels(
    pipeline: PFGMPipeline, images: torch.Tensor, labels: torch.Tensor | None, batch_size: int
) -> PoissonFlowScheduler:
    """Return the pipeline's scheduler with other `consistency_sigmas`, whose samples are closest to images.

    The levels are chosen one after the other (arXiv 2303.01469, section 3), each among multiples of the present second
    one, by the sliced Wasserstein distance of as many samples as images. All candidates have the same random numbers.

    Args:
        pipeline: A pipeline with a consistency model.
        images: Images (K, C, R, R) in [-1, 1].
        labels: Class labels (K,) for the samples; None without classes.
        batch_size: Number of samples drawn at a time.
    """
    config = pipeline.scheduler.config
    sigmas = config.consistency_sigmas
    candidates = sorted((float(f"{sigmas[1] * ratio:.3g}") for ratio in CANDIDATES), reverse=True)
    chosen = sigmas[:1]
    for _ in sigmas[1:]:
        distances = {}
        for sigma in candidates:
            if sigma < chosen[-1]:
                scheduler = PoissonFlowScheduler.from_config(config, consistency_sigmas=[*chosen, sigma])
                trial = PFGMPipeline(pipeline.unet, scheduler, pipeline.config.id2label)
                trial.set_progress_bar_config(disable=True)
                samples = draw_samples(trial, len(images), len(chosen) + 1, labels, batch_size=batch_size)
                distances[sigma] = sliced_wasserstein(samples * 2 - 1, images)
        if not distances:  # the level before is the smallest candidate
            break
        chosen = [*chosen, min(distances, key=lambda sigma: distances[sigma])]
    return PoissonFlowScheduler.from_config(config, consistency_sigmas=chosen)
